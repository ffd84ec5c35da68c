"""Time, kernels and memory of a call, as several stages take them."""

import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from gpu_stages.stage import Stage
from hpm_video.bench.timing import matmul, round_seconds


def seconds_of(stage: Stage, call: Callable[[], Any], *, rounds: int = 10) -> float:
    """Median seconds of a call and of what it starts on the device."""
    found = medians(stage, {"call": call}, rounds=rounds)
    return found["call"]


def medians(
    stage: Stage, calls: dict[str, Callable[[], Any]], *, rounds: int = 10
) -> dict[str, float]:
    """Median seconds of calls that take turns."""
    rounds = stage.either(rounds, 2)
    times = round_seconds(calls, rounds=rounds, warmup=2, device=stage.device)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def product_rate(stage: Stage, precision: str) -> float:
    """Multiply-adds a second of a large product of random matrices."""
    call, multiply_adds = matmul(stage.device, precision)
    return multiply_adds / seconds_of(stage, call)


def num_kernels(kernels: dict[str, list[float]]) -> int | None:
    """How many there are, of `kernel_seconds`; None on a CPU."""
    return sum(map(len, kernels.values())) or None


def kernel_seconds(stage: Stage, call: Callable[[], Any]) -> dict[str, list[float]]:
    """Seconds of each kernel and copy that a call starts on a GPU, by name; nothing on a CPU."""
    if not stage.on_gpu:
        return {}
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as trace:
        call()
        torch.cuda.synchronize(stage.device)
    # Ranges that the program named have a place on the device too
    found: dict[str, list[float]] = {}
    for event in trace.events() or ():
        is_range = getattr(event, "is_user_annotation", False)
        if event.device_type == DeviceType.CUDA and not is_range:
            found.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e6)
    return found


@contextmanager
def peak_gb(stage: Stage) -> Iterator[dict[str, float]]:
    """The most memory that PyTorch allocates within the context, in 10⁹ bytes, as ``gb``; nothing
    on a CPU."""
    found: dict[str, float] = {}
    if stage.on_gpu:
        torch.cuda.init()  # a process that has not used the device has no record of its memory
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(stage.device)
    yield found
    if stage.on_gpu:
        found["gb"] = torch.cuda.max_memory_allocated(stage.device) / 1e9
