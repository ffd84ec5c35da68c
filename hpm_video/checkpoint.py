"""Checkpoints: written whole or not at all, read without executing anything, refused clearly.

A checkpoint is one file of plain containers and tensors:

    kind     "pretrain" or "finetune"
    config   all settings, a plain dict
    step     optimizer steps done
    model    weights of the student or of the classifier: those to be used
    ...      what the kind needs to go on (teacher, optimizer, logs; trained_model where `model` is
             an average of it), or to be used (class names)
"""

from __future__ import annotations

import os
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# What torch.load raises for files that are damaged, foreign, or would need to run code.
_UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, ValueError, TypeError, AttributeError,
    KeyError, IndexError, struct.error,
)  # fmt: skip
_MAX_SHOWN = 12  # keys that do not fit, in an error


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write ``state`` to folder/step_<step>.pt, point folder/last at it, keep the newest ``keep``.

    The file appears under its name only when it is complete and on disk.
    """
    path = folder / f"step_{state['step']:08d}.pt"
    write_checkpoint(path, state)
    link = folder / "last.part"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, folder / "last")
    if keep:
        for old in sorted(folder.glob("step_*.pt"))[:-keep]:
            old.unlink()
    return path


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state``; the file appears under its name only when it is complete and on disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def find_checkpoint(path: str | Path, which: str = "last") -> Path:
    """The checkpoint file meant by a file, a checkpoints folder, or a run folder.

    ``which``: name of the one to take of a folder, ``last`` or ``best.pt``.
    """
    path = Path(path)
    for candidate in (path, path / which, path / "checkpoints" / which):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(f"checkpoint ({path}): the folder holds no checkpoints/{which}")
    raise FileNotFoundError(f"checkpoint ({path}) does not exist")


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Raises FileNotFoundError, or ValueError when it is not one of ours or of another ``kind``.
    """
    file = find_checkpoint(path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError):
            reason = "it is no checkpoint, or could only be read by running code from it"
        raise ValueError(f"checkpoint ({file}) cannot be read: {reason}") from error
    if not isinstance(state, dict) or not {"kind", "config", "step", "model"} <= state.keys():
        raise ValueError(f"checkpoint ({file}) was not written by hpm-video")
    if kind is not None and state["kind"] != kind:
        raise ValueError(f"checkpoint ({file}) is of kind {state['kind']}: must be {kind}")
    return state


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Load weights strictly; raises ValueError naming the first keys that do not fit."""
    own = module.state_dict()
    misfits = [f"{name} is missing" for name in own if name not in weights]
    misfits += [f"{name} is not in the model" for name in weights if name not in own]
    misfits += [
        f"{name} is {tuple(weights[name].shape)}, the model has {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    if misfits:
        shown = "; ".join(misfits[:_MAX_SHOWN])
        if more := misfits[_MAX_SHOWN:]:
            shown += f"; and {len(more)} more"
        raise ValueError(f"checkpoint ({source}) does not fit the model of these settings: {shown}")
    module.load_state_dict(dict(weights))


def load_encoder(encoder: nn.Module, state: Mapping[str, Any], *, source: str | Path) -> None:
    """Load the encoder's part of a checkpoint; a final norm the encoder lacks is left out."""
    weights = {
        name.removeprefix("encoder."): value
        for name, value in state["model"].items()
        if name.startswith("encoder.")
    }
    if not any(name.startswith("norm.") for name in encoder.state_dict()):
        weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    load_weights(encoder, weights, source=source)
