"""Exports as executable graphs: one module from clips to outputs that needs none of our code."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from hpm_video.config import DataConfig
from hpm_video.models.build import Classifier
from hpm_video.models.tokens import patchify
from hpm_video.models.vit import Encoder
from hpm_video.weights.load import classifier_of, encoder_of


class ClipEncoder(nn.Module):
    """Encodes whole clips, without masks."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> tokens (B, N, D)."""
        return self.encoder(patchify(clips, self.encoder.grid))


@dataclass(frozen=True)
class Deployed:
    """A module that takes clips (B, 3, T, H, W) in [0, 1] and normalises them itself.

    output: name of its output, ``logits`` (B, classes) or ``tokens`` (B, N, D).
    clip_shape: (3, T, H, W). facts: metadata to store in the file.
    """

    module: nn.Module
    output: str
    clip_shape: tuple[int, int, int, int]
    facts: Mapping[str, str]

    def program(self) -> ExportedProgram:
        """The module as a graph for any batch size."""
        clips = torch.zeros(2, *self.clip_shape)  # torch.export would fix a batch size of 1
        with torch.no_grad():
            return torch.export.export(
                self.module, (clips,), dynamic_shapes={"clips": {0: Dim("batch")}}
            )


def deployed(state: Mapping[str, Any]) -> Deployed:
    """The classifier of a checkpoint, or its encoder if it has no head.

    Raises ValueError if the weights do not fit or are of a baseline.
    """
    module: nn.Module
    data: DataConfig
    facts = {"kind": str(state["kind"]), "step": str(state["step"])}
    if "head.weight" in state["model"]:
        model, config, classes = classifier_of(state, source="export")
        module, data, output = model, config.data, "logits"
        if not isinstance(model, Classifier):
            raise ValueError(
                f"model.name ({config.model.name}) must be videomae for this format; use "
                "--to checkpoint or --to safetensors"
            )
        if classes is not None:
            facts["classes"] = json.dumps(classes)
        if model.several_labels:
            facts["scores"] = "sigmoid of the logits: a clip may have several classes"
    else:
        encoder, data = encoder_of(state, source="export")
        module, output = ClipEncoder(encoder), "tokens"
    shape = (3, data.num_frames, data.crop_size, data.crop_size)
    facts["input"] = f"clips (batch, {', '.join(map(str, shape))}), RGB in [0, 1]"
    return Deployed(module.requires_grad_(False).eval(), output, shape, facts)
