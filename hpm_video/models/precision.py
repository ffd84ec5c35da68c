"""Mixed precision."""

import torch


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models run: bfloat16 where asked for, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
