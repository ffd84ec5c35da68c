"""One step of the method, pure compute: score, mask, reconstruct, compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hpm_video.config import LossConfig, MaskingConfig, PretrainConfig
from hpm_video.method import losses
from hpm_video.method.diagnostics import feature_variation, mask_figures
from hpm_video.method.masking import (
    Rows,
    hard_mask,
    num_hard_units,
    num_reconstructed_tokens,
    num_visible_tokens,
    random_mask,
    reconstructed_tokens,
    unit_scores,
)
from hpm_video.method.teacher import Teacher, View, score_tokens
from hpm_video.models.hpm import HPMOutput, PredictorInput
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import (
    TokenGrid,
    patchify,
    scatter_tokens,
    split_mask,
)


@dataclass(frozen=True)
class PretrainStep:
    """One forward pass: scalars with gradient, and what was compared for the prediction.

    prediction_loss: 0 without a predictor.
    predicted, measured (B, K): predicted and measured loss of the K masked tokens (or units) that
    are ranked; None without a predictor.
    mask (B, N): True = masked; made from the teacher's scores (B, N), None for a random mask.
    masked (B, M): the tokens whose loss was measured, token_losses (B, M).
    ranked (B, K): those of them whose loss was predicted, ranked_losses (B, K) as measured and
    ranked_predictions (B, K), which are None without a predictor.
    encoded (B, V, D): what the encoder made of the visible tokens.
    """

    loss: Tensor
    reconstruction_loss: Tensor
    prediction_loss: Tensor
    predicted: Tensor | None
    measured: Tensor | None
    mask: Tensor
    scores: Tensor | None
    masked: Tensor
    token_losses: Tensor
    ranked: Tensor
    ranked_losses: Tensor
    ranked_predictions: Tensor | None
    encoded: Tensor


def pretrain_step(
    student: nn.Module,
    teacher: Teacher | None,
    clips: Tensor,
    *,
    grid: TokenGrid,
    masking: MaskingConfig,
    loss: LossConfig,
    predictor_input: PredictorInput,
    hard_ratio: float,
    token_ratio: float,
    view: View = "tokens",
    draws: int = 1,
    generator: torch.Generator,
    precision: str = "float32",
    rows: Rows | None = None,
) -> PretrainStep:
    """Score, mask, reconstruct, compare: clips (B, 3, T, H, W) in [0, 1] -> `PretrainStep`.

    The teacher, if there is one, predicts which tokens will be hard, the mask takes the hardest
    share ``hard_ratio`` of them, the student reconstructs what is masked (with decoder masking, a
    share of it) and predicts its own loss on it. ``token_ratio``, ``view`` and ``draws`` say what
    the teacher sees, see `score_tokens`; a predictor from pixels learns from the same share of the
    reconstructed tokens, drawn at random. Pure compute: no optimizer, no global random state.
    ``rows`` as in `random_mask`.
    """
    tube_length = masking.tube_length or grid.time
    patches = patchify(clips, grid)  # once, for the teacher, the student and the targets
    with autocast(clips.device, precision):
        scores = None
        if teacher is not None and hard_ratio > 0:
            scores = score_tokens(
                teacher,
                patches,
                token_ratio=token_ratio,
                view=view,
                draws=draws,
                generator=generator,
                rows=rows,
            )
        if scores is not None:
            mask = hard_mask(
                scores,
                grid,
                mask_ratio=masking.mask_ratio,
                hard_ratio=hard_ratio,
                tube_length=tube_length,
                generator=generator,
                rows=rows,
            )
        else:
            mask = random_mask(
                len(clips),
                grid,
                mask_ratio=masking.mask_ratio,
                tube_length=tube_length,
                generator=generator,
                device=clips.device,
                rows=rows,
            )
        num_measured = num_reconstructed_tokens(
            grid,
            mask_ratio=masking.mask_ratio,
            tube_length=tube_length,
            decoder_mask_ratio=masking.decoder_mask_ratio,
        )
        kept = ranked = None
        if masking.decoder_mask_ratio > 0:
            kept = reconstructed_tokens(
                mask,
                grid,
                num_kept=num_measured,
                pattern=masking.decoder_mask,
                generator=generator,
                rows=rows,
            )
        if loss.prediction != "none" and predictor_input == "pixels" and token_ratio < 1:
            # A share of the tokens that are reconstructed, as the teacher sees of all
            ranked = reconstructed_tokens(
                mask if kept is None else torch.zeros_like(mask).scatter(1, kept, True),
                grid,
                # Two at least: one alone has no order
                num_kept=min(num_measured, max(2, round(token_ratio * num_measured))),
                pattern="random",
                generator=generator,
                rows=rows,
            )
        num_visible = num_visible_tokens(
            grid, mask_ratio=masking.mask_ratio, tube_length=tube_length
        )
        output: HPMOutput = student(patches, mask, num_visible, kept, ranked)

    token_losses = losses.patch_loss(
        output.reconstruction, patches, output.masked, normalize=loss.normalize_targets
    )  # (B, M)
    total = reconstruction = token_losses.mean()
    measured = token_losses.detach()
    ranked_losses = measured
    if ranked is not None:
        everywhere = measured.new_zeros(mask.shape).scatter(1, output.masked, measured)
        ranked_losses = everywhere.gather(1, output.ranked)
    prediction = torch.zeros_like(reconstruction)
    predictions = predicted = target = None
    if output.predicted_loss is not None and loss.prediction != "none":
        predictions = output.predicted_loss.gather(1, output.ranked)
        predicted, target = predictions, ranked_losses
        if loss.ranking_level == "unit":
            assert ranked is None and kept is None, "units are not compared by parts"
            target = _mean_per_masked_unit(target, output.masked, mask, grid, tube_length)
            predicted = _mean_per_masked_unit(predicted, output.masked, mask, grid, tube_length)
        objective = losses.ranking_loss if loss.prediction == "ranking" else losses.absolute_loss
        prediction = objective(predicted, target)
        total = reconstruction + loss.prediction_weight * prediction
    return PretrainStep(
        loss=total,
        reconstruction_loss=reconstruction,
        prediction_loss=prediction,
        predicted=None if predicted is None else predicted.detach(),
        measured=target,
        mask=mask,
        scores=scores,
        masked=output.masked,
        token_losses=measured,
        ranked=output.ranked,
        ranked_losses=ranked_losses,
        ranked_predictions=None if predictions is None else predictions.detach(),
        encoded=output.encoded.detach(),
    )


def configured_step(config: PretrainConfig, grid: TokenGrid) -> Callable[..., PretrainStep]:
    """`pretrain_step` with the settings of a config; what is left to give changes from step to
    step: student, teacher, clips, hard_ratio, generator, rows."""
    return partial(
        pretrain_step,
        grid=grid,
        masking=config.masking,
        loss=config.loss,
        predictor_input=config.model.predictor_input,
        token_ratio=config.teacher.token_ratio,
        view=config.teacher.view,
        draws=config.teacher.draws,
        precision=config.run.precision,
    )


def _mean_per_masked_unit(
    values: Tensor, masked: Tensor, mask: Tensor, grid: TokenGrid, tube_length: int
) -> Tensor:
    """Mean over each masked mining unit: (B, M) at index masked -> (B, masked units)."""
    canvas = values.new_zeros(mask.shape)
    per_token = scatter_tokens(canvas[..., None], masked, values[..., None]).squeeze(-1)
    unit_is_masked = unit_scores(mask.float(), grid, tube_length) > 0.5
    visible_units = unit_is_masked.shape[1] - values.shape[1] // tube_length
    _, units = split_mask(unit_is_masked, visible_units)
    return unit_scores(per_token, grid, tube_length).gather(1, units)


def step_figures(
    step: PretrainStep, *, grid: TokenGrid, masking: MaskingConfig, hard_ratio: float
) -> dict[str, Tensor | None]:
    """Rank accuracy, `mask_figures` and `feature_variation` of a step: scalars on its device."""
    tube_length = masking.tube_length or grid.time
    accuracy = None
    if step.predicted is not None and step.measured is not None:
        accuracy = losses.rank_accuracy(step.predicted, step.measured)
    figures = mask_figures(
        mask=step.mask,
        scores=step.scores,
        masked=step.masked,
        measured=step.token_losses,
        ranked=step.ranked,
        ranked_losses=step.ranked_losses,
        ranked_predictions=step.ranked_predictions,
        grid=grid,
        tube_length=tube_length,
        num_hard=num_hard_units(
            grid,
            mask_ratio=masking.mask_ratio,
            tube_length=tube_length,
            hard_ratio=hard_ratio,
        ),
    )
    variation = feature_variation(step.encoded)
    return {"rank_accuracy": accuracy, **figures, "feature_variation": variation}
