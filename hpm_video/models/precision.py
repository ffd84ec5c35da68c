"""Mixed precision: the fastest precision of a machine, and autocast contexts."""

from typing import NamedTuple

import torch
from torch import Tensor

from hpm_video.config.values import Precision
from hpm_video.runtime.distributed import World, gather_objects
from hpm_video.runtime.machine import bfloat16_units

# From the least demanding; a device that supports one also supports those before it.
_ORDER: tuple[Precision, ...] = ("float32", "float16", "bfloat16")
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Choice(NamedTuple):
    """A precision other than ``auto``. why: the reason, in words; None if it was requested."""

    precision: Precision
    why: str | None


def best_precision(device: torch.device) -> Choice:
    """The fastest precision on a device."""
    units = bfloat16_units(device)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if units is None:
            return Choice("float16", f"{name} has no bfloat16 units")
        return Choice("bfloat16", f"{name} has bfloat16 units")
    if units is None:
        return Choice("float32", "the CPU has no bfloat16 units (AMX, AVX512-BF16)")
    return Choice("bfloat16", f"the CPU has bfloat16 units ({units})")


def choose_precision(
    asked: Precision,
    world: World,
    *,
    kept: Precision | None = None,
    setting: str = "run.precision",
) -> Choice:
    """Resolve the requested precision; all ranks call and get the same answer.

    ``auto`` becomes the precision of the checkpoint that a run continues (``kept``), else the best
    one that is fast on all ranks. Raises ValueError, naming the setting, for bfloat16 on a GPU
    without bfloat16 units.
    """
    if asked != "auto":
        _check(asked, world.device, setting)
        return Choice(asked, None)
    choices = [Choice(*c) for c in gather_objects(tuple(best_precision(world.device)), world)]
    best = min(choices, key=lambda choice: _ORDER.index(choice.precision))
    if kept is None or kept == "auto":
        return best
    _check(kept, world.device, setting)
    if kept == best.precision:
        return Choice(kept, "as before")
    return Choice(kept, f"as before; a new run here would use {best.precision}, because {best.why}")


def _check(precision: Precision, device: torch.device, setting: str) -> None:
    if precision == "bfloat16" and device.type == "cuda" and bfloat16_units(device) is None:
        name = torch.cuda.get_device_name(device)
        raise ValueError(
            f"{setting} (bfloat16) must be float16 on {name}, which has no bfloat16 units"
        )


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The autocast context for models: bfloat16, float16, or disabled for float32."""
    assert precision != "auto", "choose_precision comes first"
    dtype = _DTYPES.get(precision)
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def no_autocast(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of ``like``."""
    # By name: the meta device, used to count costs, has no autocast
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)
