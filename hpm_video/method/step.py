"""One training step of the method as pure computation: score, mask, reconstruct, compare."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hpm_video.config import LossConfig, MaskingConfig, PretrainConfig
from hpm_video.config.values import Precision, PredictorInput, View
from hpm_video.method.decoder_masking import draw_decoded
from hpm_video.method.losses import OBJECTIVES
from hpm_video.method.masking import Rows, make_mask, num_visible_tokens, unit_scores
from hpm_video.method.sources import measured_scores, motion_scores
from hpm_video.method.targets import FrozenModel, target_features, token_losses
from hpm_video.method.teacher import Teacher, score_tokens
from hpm_video.models.hpm import HPMOutput
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid, patchify, scatter_tokens, split_mask


class Pairs(NamedTuple):
    """Measured losses and what one predictor said about them.

    tokens (B, K): index of the tokens. losses (B, K): their measured losses. predictions (B, K):
    their predicted losses. predicted, measured: the values that the objective compares, (B, K) per
    token or (B, masked units) per mining unit. Without a predictor, all but the first two are None.
    """

    tokens: Tensor
    losses: Tensor
    predictions: Tensor | None = None
    predicted: Tensor | None = None
    measured: Tensor | None = None

    def detached(self) -> "Pairs":
        """The same without what the backward pass needs."""
        return self._replace(
            predictions=_detached(self.predictions), predicted=_detached(self.predicted)
        )


@dataclass(frozen=True)
class PretrainStep:
    """The result of one forward pass: the loss to minimise and the inputs of all logged figures.

    losses: scalars with gradient, keyed by their names in the log. ``loss`` is the one to minimise;
        ``prediction_loss`` is 0 without a predictor.
    scores (B, N): hardness from masking.source; None for a random mask.
    mask (B, N): True = masked. hard (B, N): True = masked because of its score.
    masked (B, M): index of the reconstructed tokens, token_losses (B, M): their losses.
    ranked (B, K): index of the reconstructed tokens whose loss was predicted, ranked_losses (B, K):
        their measured losses, ranked_predictions (B, K): their predictions, None without a
        predictor.
    predicted, measured: the values that the objective compared, (B, K) per token or
        (B, masked units) per mining unit; None without a predictor.
    encoded (B, V, D): the encoder's output for the visible tokens.
    pixels: the same for the second predictor, which reads pixels; None without one.
    """

    losses: dict[str, Tensor]
    scores: Tensor | None
    mask: Tensor
    hard: Tensor
    masked: Tensor
    token_losses: Tensor
    ranked: Tensor
    ranked_losses: Tensor
    ranked_predictions: Tensor | None
    predicted: Tensor | None
    measured: Tensor | None
    encoded: Tensor
    pixels: Pairs | None = None

    @property
    def loss(self) -> Tensor:
        return self.losses["loss"]

    def detached(self) -> "PretrainStep":
        """The same without what the backward pass needs."""
        return replace(self, losses={name: each.detach() for name, each in self.losses.items()})


def pretrain_step(
    student: nn.Module,
    teacher: Teacher | None,
    clips: Tensor,
    *,
    grid: TokenGrid,
    masking: MaskingConfig,
    loss: LossConfig,
    predictor_input: PredictorInput,
    hard_ratio: float | Tensor,
    token_ratio: float,
    view: View = "tokens",
    draws: int = 1,
    generator: torch.Generator,
    precision: Precision = "float32",
    rows: Rows | None = None,
    given: Tensor | None = None,
    frozen: FrozenModel | None = None,
) -> PretrainStep:
    """Score, mask, reconstruct, compare: clips (B, 3, T, H, W) -> `PretrainStep`.

    1. masking.source (by default the teacher) scores all tokens by how hard they will be.
    2. The mask takes the share ``hard_ratio`` of its units by score, the rest at random.
    3. The student reconstructs the masked tokens (with decoder masking, a share of them) and
       predicts its own loss on them.
    4. The measured losses train the reconstruction; their order trains the predictor.

    No optimizer and no global random state are involved.

    Args:
        clips: floats in [0, 1] or bytes. Only the patches in use are converted; results are equal.
        hard_ratio: see `make_mask`. A tensor may turn out to be 0, so the source is then always
            asked.
        token_ratio, view, draws: what the teacher sees, see `score_tokens`. A predictor that reads
            pixels learns from a random share ``token_ratio`` of the reconstructed tokens.
        rows: see `make_mask`.
        given: (B, N) scores that came with the clips, for masking.source=codec.
        frozen: the model of loss.target_model, for loss.target=frozen. With loss.target=ema the
            teacher provides the features to reconstruct.
    """
    tube_length = masking.unit_length(grid.time)
    patches = patchify(clips, grid)  # once, for the teacher, the student and the targets
    with autocast(clips.device, precision):
        features = target_features(loss, clips, patches, teacher=teacher, frozen=frozen)
        losses_of = partial(token_losses, loss, patches=patches, features=features)
        source = masking.source if isinstance(hard_ratio, Tensor) or hard_ratio > 0 else "none"
        scores = None
        if source == "predicted" and teacher is not None:
            scores = score_tokens(
                teacher,
                patches,
                token_ratio=token_ratio,
                view=view,
                draws=draws,
                generator=generator,
                rows=rows,
                encoded=None if features is None else features.encoded,
            )
        elif source == "motion":
            scores = motion_scores(patches, grid, tubelet_size=clips.shape[2] // grid.time)
        elif source == "measured":
            scores = measured_scores(
                student, patches, losses_of, grid, masking, generator=generator, rows=rows
            )
        elif source == "codec":
            if given is None:
                raise ValueError("masking.source (codec) needs scores that come with the clips")
            scores = given
        chosen = make_mask(
            scores,
            grid,
            masking,
            hard_ratio=hard_ratio,
            batch_size=len(clips),
            generator=generator,
            device=clips.device,
            rows=rows,
        )
        # A predictor that reads pixels ranks the same share of tokens as the teacher sees
        ranks_share = loss.prediction != "none" and predictor_input != "encoded"
        drawn = draw_decoded(
            chosen.mask,
            grid,
            masking,
            ranked_ratio=token_ratio if ranks_share else 1.0,
            generator=generator,
            rows=rows,
        )
        num_visible = num_visible_tokens(
            grid, mask_ratio=masking.mask_ratio, tube_length=tube_length
        )
        output: HPMOutput = student(
            patches, chosen.mask, num_visible, drawn.kept, drawn.ranked, remasked=drawn.remasked
        )
    losses_of_tokens = losses_of(output)  # (B, M)
    pairs_of = partial(
        _pairs,
        masked=output.masked,
        losses=losses_of_tokens.detach(),
        mask=chosen.mask,
        grid=grid,
        tube_length=tube_length,
        loss=loss,
    )
    pairs = pairs_of(output.predicted_loss, output.ranked)
    reconstruction = losses_of_tokens.mean()
    total, prediction = reconstruction, torch.zeros_like(reconstruction)
    if pairs.predicted is not None and pairs.measured is not None:
        prediction = OBJECTIVES[loss.objective](pairs.predicted, pairs.measured)
        total = reconstruction + loss.prediction_weight * prediction
    losses = {"loss": total, "reconstruction_loss": reconstruction, "prediction_loss": prediction}
    pixels = None
    if output.pixel_ranked is not None:
        pixels = pairs_of(output.pixel_predicted_loss, output.pixel_ranked)
        if pixels.predicted is not None and pixels.measured is not None:
            losses["pixel_prediction_loss"] = prediction = OBJECTIVES[loss.objective](
                pixels.predicted, pixels.measured
            )
            losses["loss"] = total + loss.pixel_prediction_weight * prediction
    return PretrainStep(
        losses=losses,
        scores=scores,
        mask=chosen.mask,
        hard=chosen.hard,
        masked=output.masked,
        token_losses=losses_of_tokens.detach(),
        ranked=pairs.tokens,
        ranked_losses=pairs.losses,
        ranked_predictions=_detached(pairs.predictions),
        predicted=_detached(pairs.predicted),
        measured=pairs.measured,
        encoded=output.encoded.detach(),
        pixels=None if pixels is None else pixels.detached(),
    )


def configured_step(
    config: PretrainConfig, grid: TokenGrid, frozen: FrozenModel | None = None
) -> Callable[..., PretrainStep]:
    """`pretrain_step` with a run's settings filled in.

    The caller passes what changes from step to step: student, teacher, clips, hard_ratio,
    generator, rows. ``frozen``: the model for loss.target=frozen. run.precision must not be auto.
    """
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
        frozen=frozen,
    )


def _pairs(
    predicted_loss: Tensor | None,
    tokens: Tensor,
    *,
    masked: Tensor,
    losses: Tensor,
    mask: Tensor,
    grid: TokenGrid,
    tube_length: int,
    loss: LossConfig,
) -> Pairs:
    """Pair measured with predicted losses.

    losses (B, M) belong to the tokens ``masked`` (B, M), predicted_loss (B, N) to all tokens; the
    result covers ``tokens`` (B, K), a part of ``masked``.
    """
    if tokens.shape != masked.shape:
        losses = losses.new_zeros(mask.shape).scatter(1, masked, losses).gather(1, tokens)
    if predicted_loss is None or loss.prediction == "none":
        return Pairs(tokens, losses)
    predictions = predicted_loss.gather(1, tokens)
    if loss.ranking_level == "token":
        return Pairs(tokens, losses, predictions, predictions, losses)
    # Per unit. The config refuses this where only part of a unit's tokens is ranked.
    place = (masked, mask, grid, tube_length)
    predicted, measured = (
        _mean_per_masked_unit(values, *place) for values in (predictions, losses)
    )
    return Pairs(tokens, losses, predictions, predicted, measured)


def _detached(values: Tensor | None) -> Tensor | None:
    return None if values is None else values.detach()


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
