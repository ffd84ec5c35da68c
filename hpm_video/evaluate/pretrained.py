"""A pre-training checkpoint, ready to be asked what it finds hard and what it makes of a clip."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_from_dict
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPM, HPMOutput, build_model, token_grid
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid
from hpm_video.weights.checkpoint import load_checkpoint, load_weights


@dataclass(frozen=True)
class Pretrained:
    """What a checkpoint holds.

    student: reconstructs, in eval mode. scorer: predicts losses; the EMA teacher where the
    checkpoint has one, else one made of the student, and None for plain VideoMAE, which has no
    predictor. step: optimizer steps done.
    """

    student: HPM
    scorer: Teacher | None
    config: PretrainConfig
    grid: TokenGrid
    step: int

    @property
    def tube_length(self) -> int:
        """Grid steps in time of a mining unit."""
        return self.config.masking.tube_length or self.grid.time


def load_pretrained(checkpoint: str | Path, *, device: torch.device | str = "cpu") -> Pretrained:
    """Read a pre-training checkpoint, or the last one of a run folder.

    Raises FileNotFoundError, or ValueError when it is no pre-training checkpoint of ours.
    """
    state = load_checkpoint(checkpoint, kind="pretrain")
    config = config_from_dict(PretrainConfig, state["config"])
    grid = token_grid(
        config.model, num_frames=config.data.num_frames, crop_size=config.data.crop_size
    )
    student = build_model(config.model, grid, predict_loss=config.loss.prediction != "none")
    load_weights(student, state["model"], source=checkpoint)
    student.requires_grad_(False).eval().to(device)
    scorer = None if student.predictor is None else Teacher(student)
    if scorer is not None and state.get("teacher") is not None:
        load_weights(scorer, state["teacher"], source=checkpoint)
    return Pretrained(student, scorer, config, grid, state["step"])


def require_scorer(pretrained: Pretrained) -> Teacher:
    """The scorer; raises ValueError for a checkpoint without a predictor."""
    if pretrained.scorer is None:
        raise ValueError(
            "checkpoint has no loss predictor (loss.prediction none): "
            "loss.prediction must be ranking or absolute"
        )
    return pretrained.scorer


@torch.no_grad()
def run_student(pretrained: Pretrained, clips: Tensor, mask: Tensor) -> HPMOutput:
    """One forward pass in the run's precision: clips (B, 3, T, H, W), mask (B, N)."""
    with autocast(clips.device, pretrained.config.run.precision):
        output: HPMOutput = pretrained.student(clips, mask)
    return output
