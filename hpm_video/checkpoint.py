"""Checkpoints: written whole or not at all, read without executing anything, refused clearly.

A checkpoint is one file of plain containers and tensors:

    kind     "pretrain" or "finetune"
    config   all settings, a plain dict
    step     optimizer steps done
    model    weights of the student or of the classifier
    ...      what the kind needs to go on (teacher, optimizer, logs), or to be used (class names)
"""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from hpm_video.config import config_to_dict, config_to_yaml, differing_keys

# Settings that may change between two starts of one run without changing its results.
_FREE_TO_CHANGE = (
    "run.output_dir", "run.log_every", "run.checkpoint_every_minutes", "run.keep_checkpoints",
    "run.resume", "run.device", "run.compile", "data.num_workers", "data.root",
    "data.max_bad_fraction", "evaluation.batch_size",
)  # fmt: skip


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write ``state`` to folder/step_<step>.pt, point folder/last at it, keep the newest ``keep``.

    The file appears under its name only when it is complete and on disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{state['step']:08d}.pt"
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        torch.save(dict(state), file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    link = folder / "last.part"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    os.replace(link, folder / "last")
    if keep:
        for old in sorted(folder.glob("step_*.pt"))[:-keep]:
            old.unlink()
    return path


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint file meant by a file, a checkpoints folder, or a run folder (its last)."""
    path = Path(path)
    for candidate in (path, path / "last", path / "checkpoints" / "last"):
        if candidate.is_file():
            return candidate
    if path.is_dir():
        raise FileNotFoundError(f"checkpoint ({path}): the folder holds no checkpoints/last")
    raise FileNotFoundError(f"checkpoint ({path}) does not exist")


def load_checkpoint(path: str | Path, *, kind: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Raises FileNotFoundError, or ValueError when it is not one of ours or of another ``kind``.
    """
    file = find_checkpoint(path)
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).strip().splitlines()[0]
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
        shown = "; ".join(misfits[:3]) + (f"; and {len(misfits) - 3} more" if misfits[3:] else "")
        raise ValueError(f"checkpoint ({source}) does not fit the model of these settings: {shown}")
    module.load_state_dict(dict(weights))


@dataclass(frozen=True)
class Start:
    """Where a run starts: ``state`` is the checkpoint it continues, or None; ``line`` says it."""

    state: dict[str, Any] | None
    line: str


def find_start(config: Any, model: nn.Module, *, kind: str) -> Start:
    """Load the weights a run starts from into ``model``, whose encoder is ``model.encoder``.

    In this order: the run folder's own last checkpoint, ``run.resume``, ``model.init``, scratch.
    Raises ValueError or FileNotFoundError when what is named does not exist or does not fit.
    """
    own = Path(config.run.output_dir or "") / "checkpoints" / "last"
    source = own if own.is_file() else config.run.resume
    if source is not None:
        state = load_checkpoint(source, kind=kind)
        load_weights(model, state["model"], source=source)
        return Start(state, f"continues after step {state['step']} of {source}")
    if config.model.init is not None:
        state = load_checkpoint(config.model.init)
        load_encoder(model.get_submodule("encoder"), state, source=config.model.init)
        return Start(
            None, f"starts with the encoder of step {state['step']} of {config.model.init}"
        )
    return Start(None, "starts from scratch")


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


def claim_run_folder(config: Any, *, is_main: bool) -> Path:
    """Make the run folder and write its config.yaml, or check that it belongs to this config.

    Raises ValueError when run.output_dir is not given, is no folder, or belongs to other settings.
    """
    if not config.run.output_dir:
        raise ValueError("run.output_dir (null) must name a folder for the run")
    folder = Path(config.run.output_dir)
    file = folder / "config.yaml"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"run.output_dir ({folder}) is a file: must be a folder")
    if file.is_file():
        there = yaml.safe_load(file.read_text()) or {}
        keys = [key for key in differing_keys(there, config_to_dict(config)) if _matters(key)]
        if keys:
            raise ValueError(
                f"run.output_dir ({folder}) belongs to a run with other settings "
                f"({', '.join(keys)}): choose another folder"
            )
    elif folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"run.output_dir ({folder}) holds other files: must be empty or a run")
    if is_main:
        folder.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        part.write_text(config_to_yaml(config))
        os.replace(part, file)
    return folder


def _matters(key: str) -> bool:
    return not any(re.fullmatch(rf"{re.escape(free)}(\..*)?", key) for free in _FREE_TO_CHANGE)
