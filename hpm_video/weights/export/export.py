"""A checkpoint as one file, or in the format of others."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from hpm_video.runtime.files import check_can_be_folder, make_folder
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.export.targets import TARGETS, Part
from hpm_video.weights.foreign.account import is_finite
from hpm_video.weights.foreign.our_tensors import account_of

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
    check_output(output, source=checkpoint)
    state = load_checkpoint(checkpoint, optimizer=part == "all")
    account_of(state, source=checkpoint)
    if part != "all":
        state = {name: value for name, value in state.items() if name not in _OF_TRAINING}
    if part == "encoder":
        weights = state["model"].items()
        state["model"] = {name: value for name, value in weights if name.startswith("encoder.")}
    return write_output(state, output, to=to)


def check_output(output: str | Path, *, source: str | Path | None = None) -> None:
    """Raise ValueError unless a file, or a new folder, can be written there.

    A file that is there is replaced, if it is not ``source``; a folder, a pipe or a device is not.
    """
    there = source is not None and Path(output).exists() and Path(source).exists()
    if there and Path(output).samefile(source or ""):
        raise ValueError(f"--output ({output}) must be another file than what is read")
    if Path(output).exists() and not Path(output).is_file():
        kind = "a folder" if Path(output).is_dir() else "a device or a pipe"
        raise ValueError(f"--output ({output}) is {kind}: must name what does not exist yet")
    check_can_be_folder(Path(output).parent, name="folder of --output")


def write_output(state: Mapping[str, Any], output: str | Path, *, to: str) -> list[str]:
    """Write a checkpoint, or what is left of it, as one of `TARGETS`; it appears when complete.

    Returns lines to say, the last one its name. Raises ValueError where it cannot be written, or
    where a number is not finite.
    """
    output = Path(output)
    check_output(output)
    for name, value in state["model"].items():
        if not is_finite(value):
            raise ValueError(f"weights to write: {name} must be finite")
    write: Callable[[Mapping[str, Any], Path], list[str]] = import_module(TARGETS[to].module).write
    make_folder(output.parent, name="folder of --output")
    unfinished = output.with_name(f"{output.name}.part")
    _remove(unfinished)
    try:
        words = write(state, unfinished)
    except BaseException:
        _remove(unfinished)
        raise
    if unfinished.is_dir():
        output.unlink(missing_ok=True)
    os.replace(unfinished, output)
    return [*words, str(output)]


def _remove(path: Path) -> None:
    """Remove what a writing that did not come to its end has left, if anything."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
