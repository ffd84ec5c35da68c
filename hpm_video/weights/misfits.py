"""Checks whether weights fit a model, and describes each tensor that does not."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

_MAX_SHOWN = 12  # names listed in an error message


def misfits(
    weights: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    *,
    rule: str = "must be",
    unknown: str = "is unknown",
) -> dict[str, str]:
    """Name -> reason, for every tensor that does not fit the state dict ``expected``.

    ``rule``: words between a tensor's actual and expected shape. ``unknown``: words for tensors
    that ``expected`` does not have; these come last.
    """
    found = {name: _misfit(weights.get(name), like, rule) for name, like in expected.items()}
    found |= {name: unknown for name in weights if name not in expected}
    return {name: why for name, why in found.items() if why}


def _misfit(tensor: Tensor | None, like: Tensor, rule: str) -> str:
    """Why a tensor cannot replace ``like``; empty if it can."""
    if tensor is None:
        return "is missing"
    if tensor.shape != like.shape:
        return f"is {tuple(tensor.shape)}, {rule} {tuple(like.shape)}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "without data (meta)" if tensor.is_meta else "sparse or quantised"
        return f"is {kind}, must be dense"
    if tensor.is_floating_point() != like.is_floating_point():
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, like)]
        return f"is {kinds[0]}, must be {kinds[1]}"
    return ""


def is_finite(tensor: Tensor) -> bool:
    """Whether all values of a tensor are finite."""
    return bool(torch.isfinite(tensor).all())


def is_allowed(patterns: Sequence[str], *names: str) -> bool:
    """Whether any pattern matches any of the names."""
    return any(fnmatchcase(name, pattern) for name in names if name for pattern in patterns)


def refuse(wrong: Sequence[str], words: str) -> None:
    """Raise ValueError if anything is wrong, naming the first few faults."""
    if wrong:
        more = f"; and {len(wrong) - _MAX_SHOWN} more" if len(wrong) > _MAX_SHOWN else ""
        raise ValueError(f"{words}: {'; '.join(wrong[:_MAX_SHOWN])}{more}")


def refusal(path: str | Path, found: str, expected: str) -> ValueError:
    """A ValueError that says what was found in weights, and what was expected."""
    return ValueError(f"weights ({path}): found {found}, expected {expected}")
