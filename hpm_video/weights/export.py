"""A checkpoint as one file, or in the format of others."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hpm_video.checkpoint import load_checkpoint
from hpm_video.run_folder import check_can_be_folder
from hpm_video.weights.targets import TARGETS, Part

_OF_TRAINING = ("trained_model", "teacher", "optimizer", "window", "data")


def export(
    checkpoint: str | Path, output: str | Path, *, to: str | None = None, part: Part | None = None
) -> Path:
    """Write a checkpoint of either form, or the last of a run, as one of `TARGETS`; returns where.

    Without ``to`` a name that ends in ``.safetensors`` gets that, any other one a checkpoint.

    Raises FileNotFoundError, or ValueError where it cannot be read or written.
    """
    output = Path(output)
    to = to or ("safetensors" if output.suffix == ".safetensors" else "checkpoint")
    target = TARGETS[to]
    if output.is_dir():
        raise ValueError(f"--output ({output}) is a folder: must name what does not exist yet")
    check_can_be_folder(output.parent, name="folder of --output")
    part = part or target.parts[0]
    if part not in target.parts:
        raise ValueError(f"part ({part}) must be one of {', '.join(target.parts)} with --to {to}")
    state = load_checkpoint(checkpoint, optimizer=part == "all")
    if part != "all":
        state = {name: value for name, value in state.items() if name not in _OF_TRAINING}
    if part == "encoder":
        weights = state["model"].items()
        state["model"] = {name: value for name, value in weights if name.startswith("encoder.")}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.part")
    write: Callable[[Mapping[str, Any], Path], None] = import_module(target.module).write
    write(state, unfinished)
    os.replace(unfinished, output)
    return output
