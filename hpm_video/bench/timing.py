"""Measures time and memory of functions; calls to compare are interleaved to share noise."""

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from hpm_video.config.values import Precision

Name = TypeVar("Name")


def median_seconds(functions: Mapping[Name, Callable[[], object]], **how: Any) -> dict[Name, float]:
    """Median time of each function over rounds; ``how``: arguments of `round_seconds`."""
    times = round_seconds(functions, **how)
    return {name: statistics.median(values) for name, values in times.items()}


def round_seconds(
    functions: Mapping[Name, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 1,
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Times of each function, one per round.

    Each round calls all functions, every other round in reverse order, so that a slower machine
    affects all alike. ``clock`` returns seconds; ``time.process_time`` gives the CPU time of all
    threads of this process.
    """
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    seconds: dict[Name, list[float]] = {name: [] for name in functions}
    for index in range(warmup + rounds):
        names = list(functions)
        for name in names if index % 2 == 0 else reversed(names):
            wait(device)
            start = clock()
            functions[name]()
            wait(device)
            if index >= warmup:
                seconds[name].append(clock() - start)
    return seconds


def matmul(device: torch.device, precision: Precision) -> tuple[Callable[[], Tensor], float]:
    """A large matrix product on the device and its number of multiply-adds, to measure peak speed.

    The values are random: with constant values, a GPU draws less power and runs faster than in any
    step.
    """
    side = 8192 if device.type == "cuda" else 2048
    dtype = getattr(torch, precision)
    one, other = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
    return lambda: one @ other, float(side**3)


def spread(times: Sequence[float]) -> float:
    """Half the interquartile range relative to the median; 0 for a single time."""
    if len(times) == 1:
        return 0.0
    first, median, third = statistics.quantiles(times, n=4, method="inclusive")
    return (third - first) / 2 / median


def peak_extra_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Peak memory during the call, beyond what was in use before it.

    CUDA: PyTorch's allocations. CPU: resident memory of the process, whose high-water mark is reset
    first if Linux permits. Most accurate in a separate process, after a small call.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM := VmRSS
    before = _resident("VmHWM")
    function()
    return _resident("VmHWM") - before


def _resident(key: str) -> int:
    """A memory figure of this process in bytes, from Linux's /proc."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(rf"^{key}:\s*(\d+)", text, re.MULTILINE)
    assert found, f"/proc/self/status has no {key}"
    return int(found[1]) * 1024
