"""The account of what became of every tensor, and why one does not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor

Status = Literal["loaded", "renamed", "interpolated", "initialised", "unused"]
_MAX_SHOWN = 12  # names that do not fit, in an error


@dataclass(frozen=True)
class Row:
    """What became of a tensor: ``theirs`` in the file, ``ours`` in the model; either may be ""."""

    theirs: str
    ours: str
    status: Status
    shape: tuple[int, ...]
    note: str = ""


def misfit(tensor: Tensor | None, wanted: Tensor) -> str:
    """Why a tensor cannot be used as one like ``wanted``, in words; empty if it can be."""
    if tensor is None:
        return "is missing"
    if tensor.shape != wanted.shape:
        return f"is {tuple(tensor.shape)}, must be {tuple(wanted.shape)}"
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
        kind = "without numbers (meta)" if tensor.is_meta else "sparse or quantised"
        return f"is {kind}, must be dense"
    if tensor.is_floating_point() != wanted.is_floating_point():
        kinds = [str(t.dtype).removeprefix("torch.") for t in (tensor, wanted)]
        return f"is of {kinds[0]}, must be of {kinds[1]}"
    return ""


def is_finite(tensor: Tensor) -> bool:
    """Whether there is neither an infinity nor a NaN among its numbers."""
    return bool(torch.isfinite(tensor).all())


def is_allowed(patterns: Sequence[str], *names: str) -> bool:
    """Whether one of the patterns fits one of the names."""
    return any(fnmatchcase(name, pattern) for name in names if name for pattern in patterns)


def shown(misfits: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    text = "; ".join(misfits[:_MAX_SHOWN])
    return text + (f"; and {len(misfits) - _MAX_SHOWN} more" if len(misfits) > _MAX_SHOWN else "")
