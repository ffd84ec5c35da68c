"""A checkpoint as one file, or in the format of others."""

from __future__ import annotations

import os
import shutil
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
) -> list[str]:
    """Write a checkpoint of either form, or the last of a run, as one of `TARGETS`.

    Returns lines to say: what was left out or changed, and where it is. Without ``to`` a name that
    ends in ``.safetensors`` gets that, any other one a checkpoint.

    Raises FileNotFoundError, or ValueError where it cannot be read or written.
    """
    to = to or ("safetensors" if Path(output).suffix == ".safetensors" else "checkpoint")
    parts = TARGETS[to].parts
    part = part or parts[0]
    if part not in parts:
        raise ValueError(f"part ({part}) must be one of {', '.join(parts)} with --to {to}")
    check_output(output)
    state = load_checkpoint(checkpoint, optimizer=part == "all")
    if part != "all":
        state = {name: value for name, value in state.items() if name not in _OF_TRAINING}
    if part == "encoder":
        weights = state["model"].items()
        state["model"] = {name: value for name, value in weights if name.startswith("encoder.")}
    return write_output(state, output, to=to)


def check_output(output: str | Path) -> None:
    """Raise ValueError unless a file, or a new folder, can be written there."""
    if Path(output).is_dir():
        raise ValueError(f"--output ({output}) is a folder: must name what does not exist yet")
    check_can_be_folder(Path(output).parent, name="folder of --output")


def write_output(state: Mapping[str, Any], output: str | Path, *, to: str) -> list[str]:
    """Write a checkpoint, or what is left of it, as one of `TARGETS`; it appears when complete.

    Returns lines to say, the last one its name.
    """
    output = Path(output)
    check_output(output)
    write: Callable[[Mapping[str, Any], Path], list[str]] = import_module(TARGETS[to].module).write
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.part")
    if unfinished.is_dir():
        shutil.rmtree(unfinished)
    words = write(state, unfinished)
    if unfinished.is_dir():
        output.unlink(missing_ok=True)
    os.replace(unfinished, output)
    return [*words, str(output)]
