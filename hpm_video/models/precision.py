"""Mixed precision."""

import torch
from torch import Tensor


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models run: bfloat16 where asked for, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def no_autocast(like: Tensor) -> torch.autocast:
    """A context in which tensors on the device of ``like`` keep their precision."""
    # By name: the meta device, on which costs are counted, knows no autocast.
    return torch.autocast("cuda" if like.is_cuda else "cpu", enabled=False)
