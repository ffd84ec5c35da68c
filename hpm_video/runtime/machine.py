"""What this process knows of the machine it runs on."""

import platform
import re
from contextlib import suppress
from pathlib import Path

import torch

# Flags in /proc/cpuinfo of units that multiply bfloat16: two of x86 and one of ARM.
_BFLOAT16_UNITS = ("amx_bf16", "avx512_bf16", "bf16")


def processor_name() -> str:
    """The CPU's model as Linux gives it, else what Python knows."""
    named = re.search(r"^model name\s*:(.*)", _cpuinfo(), re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def bfloat16_units(device: torch.device) -> str | None:
    """What computes bfloat16 products on a device, in words; None where it would be emulated."""
    if device.type == "cuda":
        # On current device: `join_world` has made it this process's own
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.cuda.get_device_name(device) if has_units else None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)", _cpuinfo(), re.MULTILINE)
    found = set(flags[1].split()) if flags else set()
    return next((unit for unit in _BFLOAT16_UNITS if unit in found), None)


def _cpuinfo() -> str:
    with suppress(OSError):
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    return ""
