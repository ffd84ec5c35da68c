"""A checkpoint as one file for others: whole, only the weights, or only the encoder's."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Literal

import torch

from hpm_video.checkpoint import load_checkpoint
from hpm_video.run_folder import check_can_be_folder

Part = Literal["all", "weights-only", "encoder"]


def export(checkpoint: str | Path, output: str | Path, *, part: Part = "all") -> Path:
    """Write a checkpoint of either form, or the last of a run, to one file; returns its path.

    ``all``: what is needed to go on with the run. ``weights-only``: the student's or classifier's
    with the settings. ``encoder``: its encoder's alone, for model.init. Each is a checkpoint as
    `load_checkpoint` reads it. A name that ends in ``.safetensors`` gets the same tensors by their
    names, with kind, step and settings (as JSON) in its header: not with ``all``.

    Raises FileNotFoundError, or ValueError where it cannot be read or written.
    """
    output = Path(output)
    is_safe = output.suffix == ".safetensors"
    if output.is_dir():
        raise ValueError(f"--output ({output}) is a folder: must name a file")
    check_can_be_folder(output.parent, name="folder of --output")
    if is_safe and part == "all":
        raise ValueError(
            f"--output ({output}) must end in .pt, or be of --weights-only or --encoder: "
            "safetensors files hold tensors only"
        )
    state = load_checkpoint(checkpoint, optimizer=part == "all")
    if part != "all":
        for name in ("trained_model", "teacher", "optimizer", "window", "data"):
            state.pop(name, None)
    if part == "encoder":
        weights = state["model"].items()
        state["model"] = {name: value for name, value in weights if name.startswith("encoder.")}
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished = output.with_name(f"{output.name}.part")
    if is_safe:
        try:
            from safetensors.torch import save_file  # noqa: PLC0415 (not installed everywhere)
        except ImportError as error:
            raise ValueError(f"--output ({output}) needs the package safetensors") from error
        header = {"kind": state["kind"], "step": str(state["step"])}
        header["config"] = json.dumps(state["config"])
        save_file(state["model"], unfinished, metadata=header)
    else:
        torch.save(state, unfinished)
    os.replace(unfinished, output)
    return output
