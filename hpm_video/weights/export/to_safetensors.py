"""The tensors by our names in a file of safetensors, the rest of a checkpoint in its header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file


def write(state: Mapping[str, Any], output: Path) -> list[str]:
    """Write ``state["model"]``, with everything else as JSON: ``kind``, ``step``, ``config``, …"""
    weights = {name: value.contiguous() for name, value in state["model"].items()}
    rest = {name: value for name, value in state.items() if name != "model"}
    header = {name: v if isinstance(v, str) else json.dumps(v) for name, v in rest.items()}
    save_file(weights, output, metadata=header)
    return []
