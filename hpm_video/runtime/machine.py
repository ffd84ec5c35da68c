"""The machine: processor, device and software versions."""

import os
import platform
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from hpm_video.runtime.gpus import driver_version

# Flags in /proc/cpuinfo of units that multiply bfloat16: two of x86, one of ARM
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")


def device_words(device: torch.device) -> str:
    """The name of a device for logs."""
    if device.type != "cuda":
        has_affinity = hasattr(os, "sched_getaffinity")
        cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
        threads = _plural(torch.get_num_threads(), "thread")
        return f"{processor_name()} ({_plural(cores, 'core')}, {threads} per rank)"
    about = torch.cuda.get_device_properties(device)
    return (
        f"{about.name} ({about.total_memory / 2**30:.0f} GiB, compute capability "
        f"{about.major}.{about.minor}, driver {driver_version()})"
    )


def describe_machine(ranks: Sequence[tuple[str, str]], device: torch.device) -> list[str]:
    """Log lines on the (host, `device_words`) of all ranks and on software versions."""
    nodes = len({host for host, _ in ranks})
    found = Counter(words for _, words in ranks).items()
    devices = "; ".join(
        words if len(ranks) == 1 else f"{count} x {words}" for words, count in found
    )
    on = f"{_plural(len(ranks), 'rank')} on {_plural(nodes, 'node')}"
    versions = [f"torch {torch.__version__}"]
    if device.type == "cuda":
        versions += [f"CUDA {torch.version.cuda}", f"cuDNN {_cudnn_version()}"]
        if torch.distributed.is_nccl_available():
            versions.append("NCCL " + ".".join(map(str, torch.cuda.nccl.version())))
        tf32 = torch.get_float32_matmul_precision() != "highest", torch.backends.cudnn.allow_tf32
        products, convolutions = ("on" if each else "off" for each in tf32)
        versions.append(f"TF32 {products} in matrix products, {convolutions} in convolutions")
    if torch.are_deterministic_algorithms_enabled():
        versions.append("deterministic algorithms")
    return [f"machine: {on}: {devices}", f"software: {', '.join(versions)}"]


def processor_name() -> str:
    """The CPU's model name from Linux, else from Python."""
    named = re.search(r"^model name\s*:(.*)", _cpuinfo(), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def bfloat16_units(device: torch.device) -> str | None:
    """The hardware for bfloat16 products, in words; None if they would be emulated."""
    if device.type == "cuda":
        # Asks the current device, which `join_world` has set
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name(device) if has_units else None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)", _cpuinfo(), re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    return next((unit for unit in _BFLOAT16_UNITS if unit in found), None)


def _cudnn_version() -> str:
    number = torch.backends.cudnn.version() or 0
    major = 10_000 if number >= 90_000 else 1_000  # 8.9.2 is 8902, 9.1.0 is 90100
    return f"{number // major}.{number % major // 100}.{number % 100}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _cpuinfo() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return ""
