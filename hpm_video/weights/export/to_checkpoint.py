"""One file of ours, as `hpm_video.weights.checkpoint.load_checkpoint` reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write a checkpoint, or what is left of it, to one file."""
    torch.save(dict(state), output)
    return []
