"""Optimizer state keyed by parameter name, full or sharded like the parameters.

Names make it independent of the optimizer's parameter order and groups.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpm_video.models.parallel import cut_like
from hpm_video.weights.checkpoint import find_checkpoint
from hpm_video.weights.shards import read_shards_into, stored_shapes

_PREFIX = "optimizer/"  # prefix of shard names


def optimizer_state(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, dict[str, Tensor]]:
    """Parameter name -> its moments and step counter, not copied."""
    named = model.named_parameters()
    return {name: dict(optimizer.state[each]) for name, each in named if each in optimizer.state}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    state: Mapping[str, Any],
    *,
    source: str | Path,
) -> None:
    """Load the optimizer state of a checkpoint.

    ``state``: from `load_checkpoint` of ``source``. Of sharded checkpoints it lacks the optimizer,
    and each rank reads its own shards here. Raises ValueError, naming the first parameter that
    differs.
    """
    parameters = {n: each for n, each in model.named_parameters() if each.requires_grad}
    if "optimizer" in state:
        _check_names(state["optimizer"], parameters, source)
        for name, values in state["optimizer"].items():
            target = parameters[name]
            optimizer.state[target] = {key: cut_like(values[key], target) for key in values}
        return
    folder = find_checkpoint(source)
    stored = stored_shapes(folder)
    shapes = {path: size for path, size in stored.items() if path.startswith(_PREFIX)}
    owners = {path: path.split("/")[1] for path in shapes}
    _check_names(owners.values(), parameters, source)
    targets = {path: _zeros(parameters[owners[path]], size) for path, size in shapes.items()}
    read_shards_into(folder, targets)
    for path, value in targets.items():
        optimizer.state[parameters[owners[path]]][path.split("/")[2]] = value


def _zeros(parameter: Tensor, shape: torch.Size) -> Tensor:
    """Zeros of a shape, sharded like the parameter if it has the same shape."""
    if shape == parameter.shape:
        return torch.zeros_like(parameter)
    return torch.zeros(shape, device=parameter.device)


def _check_names(stored: Iterable[str], own: Iterable[str], source: str | Path) -> None:
    for name in sorted(set(stored) ^ set(own))[:1]:
        raise ValueError(
            f"checkpoint ({source}) does not fit the optimizer of these settings: {name} is "
            f"{'missing' if name in own else 'not trained'}"
        )
