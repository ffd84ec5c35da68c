"""A program of `torch.export`: a graph with its weights, which PyTorch runs without our code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hpm_video.weights.export.program import deployed

FACTS = "hpm_video.json"


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write what ``torch.export.load`` reads; returns what to say about it."""
    model = deployed(state)
    with output.open("wb") as file:  # by its name it would have to end in .pt2
        torch.export.save(model.program(), file, extra_files={FACTS: json.dumps(dict(model.facts))})
    return [f"{model.facts['input']} -> {model.output}"]
