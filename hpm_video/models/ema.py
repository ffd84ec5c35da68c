"""Exponential moving averages of weights: of the teacher, and of a model in fine-tuning."""

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def move_average(
    pairs: Iterable[tuple[Tensor, Tensor]], momentum: float, *, skip: Tensor | None = None
) -> None:
    """average = momentum * average + (1 - momentum) * value for pairs (average, value), in place.

    ``skip``: scalar on the device, 1 leaves the averages as they are, 0 moves them. (timm's
    ModelEmaV3 would have to be told on the host, which had to wait for the device.)
    """
    averages, values = [list(side) for side in zip(*pairs, strict=True)]
    if skip is None:
        torch._foreach_lerp_(averages, values, 1 - momentum)
    else:  # a weight that only the device knows has to come as a list
        torch._foreach_lerp_(averages, values, [(1 - momentum) * (1 - skip)] * len(averages))


def average_of(model: Module) -> Module:
    """A copy of a model, for `follow`: without gradient, and as in evaluation."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def follow(
    average: nn.Module, model: nn.Module, momentum: float, *, skip: Tensor | None = None
) -> None:
    """Move a copy of a model towards it; buffers, as of batch norms, are averages already.

    ``skip`` as in `move_average`.
    """
    move_average(zip(average.parameters(), model.parameters(), strict=True), momentum, skip=skip)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs if skip is None else torch.where(skip > 0, mine, theirs))
