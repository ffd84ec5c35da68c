"""A loaded pre-training checkpoint: student outputs and reconstructed pixels of masked clips."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.method.targets import Features, FrozenModel, target_features
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPM, HPMOutput, build
from hpm_video.models.precision import autocast, choose_precision
from hpm_video.models.tokens import (
    TokenGrid,
    gather_tokens,
    patchify,
    scatter_tokens,
    unpatchify,
)
from hpm_video.runtime.distributed import World
from hpm_video.weights.checkpoint import (
    load_weights,
    settings_of,
    trained_grid,
)
from hpm_video.weights.foreign.stored_model import read_model
from hpm_video.weights.targets import check_digest, load_target


@dataclass(frozen=True)
class Pretrained:
    """Contents of a pre-training checkpoint.

    student: reconstructs, in eval mode. scorer: predicts losses. It is the EMA teacher if the
    checkpoint has one, else made from the student; None for plain VideoMAE. step: optimizer steps
    done. average: the encoder of loss.target=ema; None for other targets, or if the checkpoint has
    none. frozen: the model of loss.target=frozen, if loaded already; target_digest: of its weights
    in training.
    """

    student: HPM
    scorer: Teacher | None
    config: PretrainConfig
    grid: TokenGrid
    step: int
    average: Teacher | None = None
    frozen: FrozenModel | None = None
    target_digest: str | None = None

    @property
    def tube_length(self) -> int:
        """Time steps of the grid per mining unit."""
        return self.config.masking.unit_length(self.grid.time)

    def features(self, clips: Tensor, patches: Tensor) -> Features | None:
        """Targets for clips (B, 3, T, H, W) and their patches; None if targets are pixels.

        Raises ValueError or FileNotFoundError if the target model is not available.
        """
        loss = self.config.loss
        if loss.target == "ema" and self.average is None:
            raise ValueError(
                "checkpoint must have the averaged encoder, the target of loss.target=ema, to "
                "measure losses; use a checkpoint of the run itself, not exported weights"
            )
        frozen = self._frozen if loss.target == "frozen" else None
        with autocast(clips.device, self.config.run.precision):
            return target_features(loss, clips, patches, teacher=self.average, frozen=frozen)

    @cached_property
    def _frozen(self) -> FrozenModel | None:
        if self.frozen is not None:
            return self.frozen
        _, encoder = load_target(self.config, self.student.encoder.mean.device)
        if encoder is not None:
            state = {"target_digest": self.target_digest}
            check_digest(self.config.loss, encoder.digest(), state, source=f"step {self.step}")
        return encoder


def load_pretrained(checkpoint: str | Path, *, device: torch.device | str = "cpu") -> Pretrained:
    """Load a pre-training of any origin; for a run folder, its last checkpoint.

    Raises FileNotFoundError; ValueError if it is not a pre-training, or has no decoder.
    """
    state = read_model(checkpoint, kind="pretrain").state
    config = settings_of(state)
    assert isinstance(config, PretrainConfig)
    # Imported weights come without a run that has resolved auto
    if config.run.precision == "auto":
        precision, _ = choose_precision("auto", World(0, 1, torch.device(device)))
        config = replace(config, run=replace(config.run, precision=precision))
    student = build(config, trained_grid=trained_grid(state))
    load_weights(student, state["model"], source=checkpoint)
    student.requires_grad_(False).eval().to(device)
    stored, encodes = state.get("teacher") or {}, config.loss.target == "ema"
    teacher = None
    predicts = student.predictor is not None and any(not n.startswith("encoder.") for n in stored)
    if stored and (predicts or encodes):
        teacher = Teacher(student, predicts=predicts, encodes=encodes)
        load_weights(teacher, stored, source=checkpoint)
    return Pretrained(
        student,
        scorer_of(student, teacher),
        config,
        student.grid,
        state["step"],
        average=teacher if encodes else None,
        target_digest=state.get("target_digest"),
    )


def scorer_of(student: HPM, teacher: Teacher | None) -> Teacher | None:
    """The teacher if it predicts losses, else a scorer made from the student."""
    if teacher is not None and teacher.predicts:
        return teacher
    return None if student.predictor is None else Teacher(student)


def require_scorer(pretrained: Pretrained) -> Teacher:
    """The scorer; raises ValueError for a checkpoint without a predictor."""
    if pretrained.scorer is None:
        raise ValueError(
            "checkpoint must have a loss predictor; use one trained with loss.prediction=ranking "
            "or loss.prediction=absolute"
        )
    return pretrained.scorer


@torch.no_grad()
def run_student(pretrained: Pretrained, clips: Tensor, mask: Tensor) -> HPMOutput:
    """Run one forward pass in the run's precision: clips (B, 3, T, H, W), mask (B, N)."""
    with autocast(clips.device, pretrained.config.run.precision):
        output: HPMOutput = pretrained.student(clips, mask)
    return output


def reconstruct(
    pretrained: Pretrained,
    clips: Tensor,
    mask: Tensor,
    *,
    true_statistics: bool = False,
    output: HPMOutput | None = None,
) -> Tensor:
    """Replace the masked tokens of clips (B, 3, T, H, W) by the student's prediction; mask (B, N).

    With normalised targets the student predicts no brightness, colour and contrast. They come from
    the clip's visible tokens: per channel the mean of their means and of their deviations. With
    ``true_statistics`` they come from each masked token itself, which no model can know.
    ``output``: of `run_student` for these clips, if known. Raises ValueError for a student that
    predicts features.
    """
    config, grid = pretrained.config, pretrained.grid
    if not config.loss.has_pixels:
        raise ValueError(
            f"checkpoint reconstructs features (loss.target {config.loss.target}), which give no "
            "pictures; use one trained with loss.target=pixels"
        )
    output = output or run_student(pretrained, clips, mask)
    predicted, patches = output.reconstruction.float(), patchify(clips, grid)
    if config.loss.normalize_targets:
        index = output.masked if true_statistics else output.visible
        pixels = gather_tokens(patches, index).unflatten(-1, (-1, 3))  # (B, K, pixels, 3)
        mean, std = pixels.mean(dim=2, keepdim=True), pixels.std(dim=2, keepdim=True)
        if not true_statistics:
            mean, std = mean.mean(dim=1, keepdim=True), std.mean(dim=1, keepdim=True)
        predicted = (predicted.unflatten(-1, (-1, 3)) * std + mean).flatten(2)
    patches = scatter_tokens(patches, output.masked, predicted.clamp(0, 1))
    return unpatchify(patches, grid, tubelet_size=config.model.tubelet_size)
