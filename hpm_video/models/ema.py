"""Exponential moving averages of weights, for the teacher and for fine-tuning."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hpm_video.runtime import gpu_kernels

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def move_average(
    pairs: Iterable[tuple[Tensor, Tensor]], momentum: float, *, skip: Tensor | None = None
) -> None:
    """average = momentum * average + (1 - momentum) * value for pairs (average, value), in place.

    ``skip``: scalar float32 on the device; 1 leaves the averages unchanged, 0 moves them. It needs
    no synchronisation (timm's ModelEmaV3 decides on the host). Under FSDP each rank moves its own
    shards, so both tensors of a pair must be sharded alike.
    """
    averages, values = [[_local(t) for t in side] for side in zip(*pairs, strict=True)]
    weight = 1 - momentum
    if skip is None:
        torch._foreach_lerp_(averages, values, weight)
    elif gpu_kernels.is_eager_gpu(skip.device):
        _lerp_unless(skip, averages, values, weight)
    else:  # bit-identical to a lerp without skip, for every weight
        torch._foreach_lerp_(averages, values, [weight * (1 - skip)] * len(averages))


def _lerp_unless(skip: Tensor, averages: list[Tensor], values: list[Tensor], weight: float) -> None:
    """Move all averages in one fused kernel, which returns early if skip is 1.

    `_foreach_lerp_` with a weight on the device launches one kernel per tensor. The fused SGD step
    has a flag to skip it, made for loss scaling. With gradient weight_decay * average - value, its
    learning rate is the weight.
    """
    torch._fused_sgd_(
        averages, values, [],
        lr=weight, weight_decay=1.0, maximize=True, found_inf=skip,
        momentum=0.0, dampening=0.0, nesterov=False, is_first_step=False,
    )  # fmt: skip


def _local(tensor: Tensor) -> Tensor:
    """This rank's shard; in some PyTorch versions the operations above do not support DTensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def average_of(model: Module) -> Module:
    """A copy of a model for `follow`: without gradient, in evaluation mode."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def follow(
    average: nn.Module, model: nn.Module, momentum: float, *, skip: Tensor | None = None
) -> None:
    """Move a copy of a model towards the model; buffers (batch norm statistics) are copied.

    ``skip``: see `move_average`.
    """
    move_average(zip(average.parameters(), model.parameters(), strict=True), momentum, skip=skip)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs if skip is None else torch.where(skip > 0, mine, theirs))
