"""Distribution of a model over ranks: replicated (DDP) or sharded (FSDP2).

Under FSDP every parameter is a `DTensor`, sharded along its first dimension, as are its gradient,
the optimizer state and the teacher's average. A block's weights are gathered just before it runs
and freed afterwards. Results are equal up to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from hpm_video.config import RunConfig
from hpm_video.models.vit import Block
from hpm_video.runtime.distributed import World, replicate

Module = TypeVar("Module", bound=nn.Module)


def spread(module: nn.Module, world: World, run: RunConfig) -> nn.Module:
    """Move a model to the devices of all ranks; returns the module to call from now on.

    The weights must be equal on all ranks. A model without trainable parameters (a teacher) is not
    wrapped. FSDP changes the module in place and replaces its parameters, so create optimizers and
    averages afterwards. Raises ValueError if run.shard_processes does not divide the number of
    ranks.
    """
    is_trained = any(parameter.requires_grad for parameter in module.parameters())
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for block in blocks:  # frozen blocks keep no activations anyway
        learns = any(parameter.requires_grad for parameter in block.parameters())
        block.recompute = run.activation_checkpointing and learns
    if world.is_alone or run.parallel == "ddp":
        module.to(world.device)
        return replicate(module, world) if is_trained else module
    share = run.shard_processes or world.size
    if world.size % share:
        raise ValueError(
            f"run.shard_processes ({share}) must divide the number of processes ({world.size})"
        )
    kind = world.device.type
    if share == world.size:
        mesh = init_device_mesh(kind, (share,))
    else:  # neighbouring ranks shard one copy of the weights
        mesh = init_device_mesh(
            kind, (world.size // share, share), mesh_dim_names=("copy", "share")
        )
    gathered_as = gather_policy(run.precision, world.device)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=gathered_as)
    # Weights outside of blocks stay gathered until the backward pass. A teacher has none, and its
    # update needs the shards.
    fully_shard(module, mesh=mesh, reshard_after_forward=not is_trained)
    if kind == "cpu":  # with older PyTorch, gloo returns sums where FSDP asks for means
        for part in (*blocks, module):
            assert isinstance(part, FSDPModule)
            part.set_force_sum_reduction_for_comms(True)
    return module


def gather_policy(precision: str, device: torch.device) -> MixedPrecisionPolicy:
    """Precision in which FSDP gathers a block's weights and reduces its gradients.

    On CUDA, weights are gathered in the block's compute precision: bfloat16 halves the bytes, and
    autocast would round to it anyway. Gradients and the residual stream stay in float32. Nothing is
    converted in float32 runs, nor on a CPU, whose autocast needs norms in one precision.
    """
    if device.type != "cuda" or precision == "float32":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=getattr(torch, precision),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # keeps the residual stream as precise as without FSDP
    )


def clip_gradients(module: nn.Module, largest: float | None) -> Tensor:
    """Clip the gradient norm to ``largest``, if given; returns the norm before, a scalar."""
    if largest:
        return whole(nn.utils.clip_grad_norm_(module.parameters(), largest))
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of one that may be sharded; all ranks must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The full state dict of a model that may be sharded; all ranks must call."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Move a full ``value``, equal on all ranks, to a parameter's device, and shard it like the
    parameter if it has the same shape. A sharded value stays as it is."""
    value = value.to(parameter.device)
    if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    if value.shape != parameter.shape:  # a counter
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A context in which every rank has all weights, so ranks may make different calls.

    For evaluation, without gradient. All ranks must enter and leave it.
    """
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not module, recurse=False)


def load_whole(plain: Module, spread_out: nn.Module) -> Module:
    """Give a model that is not spread the weights of one that may be; all processes must call."""
    own = plain.state_dict()
    with torch.no_grad():
        for name, value in whole_weights(spread_out).items():
            own[name].copy_(value)
    return plain
