"""A file as the official VideoMAE and VideoMAE V2 write and read it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpm_video.weights.foreign.formats import OFFICIAL_FINETUNED, OFFICIAL_PRETRAINED
from hpm_video.weights.foreign.from_ours import export_tensors


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write the weights in a container ``model``; returns what to say about what is left out."""
    is_pretrained = state["kind"] == "pretrain"
    exported = export_tensors(state, OFFICIAL_PRETRAINED if is_pretrained else OFFICIAL_FINETUNED)
    torch.save({"model": exported.tensors}, output)
    return exported.words
