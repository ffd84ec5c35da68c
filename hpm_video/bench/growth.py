"""How time and memory of a step grow with frames, resolution, mask ratio and batch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from hpm_video.bench.compared_steps import Setting, make_setting, multiply_adds, our_step
from hpm_video.bench.flops import default_variant
from hpm_video.bench.live_tensors import modelled_bytes
from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least, peak_extra_bytes, round_seconds
from hpm_video.runtime.distributed import pick_device

# What is varied, one at a time, from the base: 16 frames, 224 pixels, mask ratio 0.9.
GRID: dict[str, tuple[float, ...]] = {
    "frames": (4, 8, 16, 32),
    "crop_size": (112, 160, 224, 288),
    "mask_ratio": (0.95, 0.9, 0.75, 0.5),
    "batch_size": (1, 2, 4, 8),
}
_BASE = {"frames": 16, "crop_size": 224, "mask_ratio": 0.9}


def bench_growth(
    *,
    size: str,
    batch_size: int,
    rounds: int,
    precision: str,
    device: str,
    grid: Mapping[str, Sequence[float]] = GRID,
) -> Report:
    """Seconds, live memory and multiply-adds of a step of default HPM, one thing varied at a time.

    Memory: on CUDA PyTorch's allocations, on a CPU tensors alive, see `modelled_bytes`. The
    exponents say how a quantity q grows from one row to the next with what varies, x: q ~ x^e; with
    the pixels of a resolution and the visible share of a mask ratio. 1 is linear; attention makes
    that of multiply-adds larger.
    """
    at_least("batch-size", batch_size, 1)
    at_least("rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    rows: list[dict[str, Cell]] = []
    for name, values in grid.items():
        before: dict[str, float] = {}
        for value in values:
            setting = _setting(
                {**_BASE, "batch_size": batch_size, name: value}, size, precision, place
            )
            found = _measure(setting, rounds, place)
            x = {"mask_ratio": 1 - value, "crop_size": value**2}.get(name, value)
            rows.append(
                {
                    "varied": name,
                    "value": value,
                    "tokens": setting.grid.num_tokens,
                    **{key: q / scale for key, (q, scale) in _scaled(found).items()},
                    **{
                        f"{key}_exponent": exponent(before.get(key), q, before.get("x"), x)
                        for key, q in found.items()
                    },
                }
            )
            before = {**found, "x": x}
    return Report(
        "growth",
        machine_facts(place),
        {"size": size, "batch_size": batch_size, "precision": precision, "rounds": rounds, **_BASE},
        rows,
        [
            "q ~ x^exponent from the row above to this one; x of a resolution are its pixels, of a "
            "mask ratio the visible share; memory: "
            + ("allocations" if place.type == "cuda" else "tensors alive, counted, not measured"),
        ],
    )


def exponent(
    before: float | None, now: float, x_before: float | None, x_now: float
) -> float | None:
    """e of q ~ x^e between two points; None without the first."""
    if before is None or x_before is None:
        return None
    return math.log(now / before) / math.log(x_now / x_before)


def _scaled(found: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Columns with units in their names: (value, unit) of each."""
    return {
        "seconds": (found["seconds"], 1),
        "memory_mb": (found["memory"], 1e6),
        "multiply_adds_g": (found["multiply_adds"], 1e9),
    }


def _setting(
    values: Mapping[str, float], size: str, precision: str, device: torch.device
) -> Setting:
    return make_setting(
        size=size,
        batch_size=int(values["batch_size"]),
        num_frames=int(values["frames"]),
        crop_size=int(values["crop_size"]),
        device=device,
        precision=precision,
        mask_ratio=values["mask_ratio"],
    )


def _measure(setting: Setting, rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds, bytes and multiply-adds of a step, of its whole batch."""
    variant = default_variant()

    def steps() -> None:
        times.update(
            round_seconds(
                {"step": our_step(setting, variant)}, rounds=rounds, warmup=1, device=device
            )
        )

    times: dict[str, list[float]] = {}
    if device.type == "cuda":
        memory = peak_extra_bytes(steps, device)
    else:
        steps()
        on_cpu = replace(setting, device=torch.device("cpu"))
        memory = modelled_bytes(on_cpu, variant, as_on_gpu=False)
    return {
        "seconds": statistics.median(times["step"]),
        "memory": memory,
        "multiply_adds": multiply_adds(setting, variant) * len(setting.frames),
    }
