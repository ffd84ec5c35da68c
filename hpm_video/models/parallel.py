"""How a model is spread over processes: each keeps all of it (DDP), or a share of it (FSDP2).

Under FSDP every parameter is a `DTensor`: cut along its first dimension into one part per process,
with the gradient, the optimizer's state and the teacher's average cut alike. A block's weights are
gathered just before it works and let go after. What is computed is the same but for rounding.
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
    """Bring a model to the devices of all processes; returns what to call in its stead.

    The weights must be the same on all processes. A model without trainable parameters, a teacher,
    is not wrapped. Under FSDP the module itself changes. Parameters are others
    afterwards, so that optimizers and averages come after. Raises ValueError for a
    run.shard_processes that does not divide the number of processes.
    """
    is_trained = any(parameter.requires_grad for parameter in module.parameters())
    blocks = [part for part in module.modules() if isinstance(part, Block)]
    for block in blocks:  # of a frozen one nothing is kept anyway
        learns = any(parameter.requires_grad for parameter in block.parameters())
        block.recompute = run.activation_checkpointing and learns
    if world.is_alone or run.parallel == "ddp":  # one process has nobody to share with
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
    else:  # neighbours share one copy of the weights
        mesh = init_device_mesh(
            kind, (world.size // share, share), mesh_dim_names=("copy", "share")
        )
    gathered_as = gather_policy(run.precision, world.device)
    for block in blocks:
        fully_shard(block, mesh=mesh, mp_policy=gathered_as)
    # What is outside of blocks stays gathered up to the backward pass; a teacher has none, and its
    # update needs the parts.
    fully_shard(module, mesh=mesh, reshard_after_forward=not is_trained)
    if kind == "cpu":  # gloo adds up where older versions of PyTorch ask it for a mean
        for part in (*blocks, module):
            assert isinstance(part, FSDPModule)
            part.set_force_sum_reduction_for_comms(True)
    return module


def gather_policy(precision: str, device: torch.device) -> MixedPrecisionPolicy:
    """In which precision FSDP gathers a block's weights and adds up their gradients.

    On CUDA that in which the block computes, half the bytes in bfloat16: autocast would round the
    same weights to it after they came. Gradients are added up, and kept, in float32, and so is what
    runs between blocks. On a CPU, whose autocast has norms with weights of one precision only, and
    in float32 nothing is converted.
    """
    if device.type != "cuda" or precision == "float32":
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(
        param_dtype=getattr(torch, precision),
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the sum that blocks add to stays as precise as without FSDP
    )


def clip_gradients(module: nn.Module, largest: float | None) -> Tensor:
    """Scale gradients down to the norm ``largest``, if given; returns the norm before, a scalar."""
    if largest:
        return whole(nn.utils.clip_grad_norm_(module.parameters(), largest))
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    return whole(nn.utils.get_total_norm(gradients))


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be cut over processes, put together; all of them must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a model that may be spread over processes, whole; all of them must call."""
    return {name: whole(value) for name, value in module.state_dict().items()}


def cut_like(value: Tensor, parameter: Tensor) -> Tensor:
    """A whole ``value``, the same on all processes, on the device of a parameter, and cut as that
    is where it has its shape. What is cut already stays so."""
    value = value.to(parameter.device)
    if isinstance(value, DTensor) or not isinstance(parameter, DTensor):
        return value
    if value.shape != parameter.shape:  # a counter
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """A context in which every process has all weights: calls need not be the same on all.

    For evaluation: the context's begin and end are for all processes, and no gradient is made.
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
