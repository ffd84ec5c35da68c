"""Figures that show whether a pre-training is healthy: scalars on the device, one set per step.

Notation as in `hpm_video.models.tokens`; U mining units. A *hard* unit was masked because of its
score, a *random* unit was drawn.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpm_video.method.losses import rank_accuracy
from hpm_video.method.masking import unit_scores
from hpm_video.method.step import Pairs, PretrainStep
from hpm_video.models.parallel import whole
from hpm_video.models.tokens import TokenGrid

Figures = Mapping[str, Tensor | None]
_MOST_ROWS = 2048  # of `effective_rank`


@torch.no_grad()
def step_figures(step: PretrainStep, grid: TokenGrid, tube_length: int) -> Figures:
    """All figures of a step, keyed by their names in the log: scalars on its device.

    rank_accuracy: see `hpm_video.method.losses.rank_accuracy`; None without a predictor.
    spearman: rank correlation of predicted and measured loss over the masked units with ranked
        tokens, mean over clips; None without predictions.
    pixel_rank_accuracy, pixel_spearman: the same for the second predictor, if there is one.
    hard_share: share of the masked units that are hard.
    hard_loss, random_loss: mean measured loss of hard and of random units; NaN without any.
    feature_variation, effective_rank: see the functions of these names.
    """
    losses = _unit_means(step.token_losses, step.masked, grid, tube_length)  # (B, U)
    hidden = unit_scores(step.mask.float(), grid, tube_length) > 0.5  # (B, U)
    hard = unit_scores(step.hard.float(), grid, tube_length) > 0.5
    own = Pairs(
        *(step.ranked, step.ranked_losses, step.ranked_predictions, step.predicted, step.measured)
    )
    accuracy, correlation = _order(own, grid, tube_length)
    of_pixels: dict[str, Tensor | None] = {}
    if step.pixels is not None:
        names = ("pixel_rank_accuracy", "pixel_spearman")
        of_pixels = dict(zip(names, _order(step.pixels, grid, tube_length), strict=True))
    return {
        "rank_accuracy": accuracy,
        "spearman": correlation,
        **of_pixels,
        "hard_share": hard.sum() / hidden.sum(),
        "hard_loss": losses.where(hard, torch.nan).nanmean(),
        "random_loss": losses.where(hidden & ~hard, torch.nan).nanmean(),
        "feature_variation": feature_variation(step.encoded),
        "effective_rank": effective_rank(step.encoded),
    }


def _order(pairs: Pairs, grid: TokenGrid, tube_length: int) -> tuple[Tensor | None, Tensor | None]:
    """Rank accuracy of a predictor and its correlation over units; None without predictions."""
    accuracy = correlation = None
    if pairs.predicted is not None and pairs.measured is not None:
        accuracy = rank_accuracy(pairs.predicted, pairs.measured)
    if pairs.predictions is not None:
        predicted, measured = (
            _unit_means(values, pairs.tokens, grid, tube_length)
            for values in (pairs.predictions, pairs.losses)
        )
        correlation = rank_correlation(predicted, measured).mean()
    return accuracy, correlation


@torch.no_grad()
def feature_variation(encoded: Tensor) -> Tensor:
    """Share of the energy of features (B, V, D) that differs between the V tokens of a clip.

    Mean over clips, scalar in [0, 1]. Near 0 the encoder gives all tokens the same feature.
    """
    encoded = encoded.float()
    common = encoded.mean(dim=1).square().sum(dim=1)  # (B,)
    return 1 - (common / encoded.square().sum(dim=2).mean(dim=1).clamp(min=1e-12)).mean()


@torch.no_grad()
def effective_rank(encoded: Tensor) -> Tensor:
    """RankMe (arXiv 2210.02885) of features (B, V, D): the effective number of their dimensions.

    exp(entropy) of the singular values of the (B * V, D) feature matrix, divided by their sum, each
    with the paper's 1e-7 added. It is about 1 if all features are equal and at most
    min(B * V, D). Above `_MOST_ROWS` rows an evenly spaced part of them is used. NaN for features
    that are not finite.
    """
    rows = encoded.flatten(0, 1)
    rows = rows[:: -(-len(rows) // _MOST_ROWS)].double()
    is_finite = rows.isfinite().all()
    rows = torch.where(is_finite, rows, 0.0)
    # In float64: squaring the matrix squares its singular values, and float32 would lose small ones
    square = rows.T @ rows if len(rows) > rows.shape[1] else rows @ rows.T
    values = torch.linalg.eigvalsh(square).clamp(min=0).sqrt()
    shares_of_sum = values / values.sum().clamp(min=1e-300) + 1e-7
    rank = torch.exp(-(shares_of_sum * shares_of_sum.log()).sum())
    return torch.where(is_finite, rank, torch.nan)


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of each row: (B, K), (B, K) -> (B,).

    Ties share their mean rank. Values that are NaN in either row are left out. A row of equal
    values, as a dead predictor gives, has correlation 0.
    """
    left_out = one.isnan() | other.isnan()
    a, b = (_centred_ranks(values.masked_fill(left_out, torch.inf)) for values in (one, other))
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return (a * b).sum(dim=1) / scale.clamp(min=1e-9)


@torch.no_grad()
def ema_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """|teacher - student| / |student|, L2 norms over the parameters that they share."""
    theirs = dict(student.named_parameters())
    pairs = [(mine, theirs[name]) for name, mine in teacher.named_parameters()]
    apart = torch.stack([torch.linalg.vector_norm(mine - other) for mine, other in pairs])
    size = torch.stack([torch.linalg.vector_norm(other) for _, other in pairs])
    return whole(torch.linalg.vector_norm(apart)) / whole(torch.linalg.vector_norm(size))


def mean_figures(parts: Sequence[Figures]) -> dict[str, Tensor | None]:
    """Mean of every figure over the micro-batches of a step, which have the same figures."""
    means: dict[str, Tensor | None] = {}
    for name in parts[0]:
        values = [value for part in parts if (value := part[name]) is not None]
        means[name] = torch.stack(values).mean() if values else None
    return means


def _unit_means(values: Tensor, index: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Mean of values (B, M) at index (B, M) over each unit -> (B, U), NaN for units without any."""
    zeros = values.new_zeros(len(values), grid.num_tokens)
    total = unit_scores(zeros.scatter(1, index, values), grid, tube_length)
    return total / unit_scores(zeros.scatter(1, index, 1.0), grid, tube_length)


def _centred_ranks(values: Tensor) -> Tensor:
    """Rank minus the row's mean rank, 0 for infinite values: (B, K) -> (B, K) float64."""
    counts = values.isfinite()
    found = ranks(values) * counts
    mean = found.sum(dim=1, keepdim=True) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    return (found - mean) * counts


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, 0 = lowest, ties share their mean: (B, K) -> float64."""
    values = values.contiguous()
    ordered = values.sort(dim=1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to - 1).double() / 2


def shares(values: Tensor) -> Tensor:
    """Percentile of each value within its clip, in [0, 1]: (B, N) -> (B, N) float64.

    Ties share their mean.
    """
    return ranks(values) / max(1, values.shape[1] - 1)
