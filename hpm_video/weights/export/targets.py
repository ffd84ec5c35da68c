"""What ``hpm-video weights export --to`` can write, and which part of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# all: what is needed to go on with the run. weights-only: the student's or classifier's, with the
# settings. encoder: its encoder's alone.
Part = Literal["all", "weights-only", "encoder"]


@dataclass(frozen=True)
class Target:
    """A format to write.

    module: has ``write(state, output)``, which writes the parts of a checkpoint, as
    `hpm_video.weights.checkpoint` describes them, to the file or new folder ``output``, and returns
    lines to say about what was left out or changed.
    parts: those it can hold, the usual one first.
    """

    help: str
    module: str
    parts: tuple[Part, ...] = ("weights-only", "encoder")


TARGETS = {
    "checkpoint": Target(
        "one .pt file of ours",
        "hpm_video.weights.export.to_checkpoint",
        parts=("all", "weights-only", "encoder"),
    ),
    "safetensors": Target("tensors and settings", "hpm_video.weights.export.to_safetensors"),
    "huggingface": Target("a folder for transformers", "hpm_video.weights.export.to_huggingface"),
    "official": Target("as VideoMAE's own code", "hpm_video.weights.export.to_official"),
    "timm": Target("timm's image transformer", "hpm_video.weights.export.to_timm"),
    "onnx": Target("a graph and its weights", "hpm_video.weights.export.to_onnx"),
    "torch-export": Target(
        "a program for torch.export.load", "hpm_video.weights.export.to_torch_export"
    ),
}
