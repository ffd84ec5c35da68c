"""The state dict of timm's vision transformer: the image model that an encoder holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpm_video.weights.foreign.formats import IMAGE
from hpm_video.weights.foreign.from_ours import export_tensors


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write the weights; returns what to say about what is left out.

    The patch embedding is that of clips that stand still, positions are means over time.
    """
    exported = export_tensors(state, IMAGE)
    torch.save(exported.tensors, output)
    return [
        "an image model without class token (class_token=False): what the encoder makes of a clip "
        "that stands still, at positions averaged over time",
        *exported.words,
    ]
