"""Is a pre-training healthy? Figures about one step, for its record: scalar tensors on the device.

Notation as in `hpm_video.models.tokens`; U mining units. A *hard* unit is one that the mask took
for its predicted loss, a *random* one any other that it took.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from hpm_video.method.losses import rank_accuracy
from hpm_video.method.masking import unit_scores
from hpm_video.method.step import PretrainStep
from hpm_video.models.parallel import whole
from hpm_video.models.tokens import TokenGrid

Figures = Mapping[str, Tensor | None]


@torch.no_grad()
def step_figures(step: PretrainStep, grid: TokenGrid, tube_length: int) -> Figures:
    """All figures about a step, by the names under which they are logged: scalars on its device.

    rank_accuracy: see `hpm_video.method.losses.rank_accuracy`; None without a predictor.
    spearman: rank correlation of predicted with measured loss over the masked units with ranked
        tokens, mean over clips; None without predictions.
    hard_share: share of the masked units that are hard.
    hard_loss, random_loss: mean measured loss of hard and of random units; NaN where there are
        none.
    feature_variation: see there.
    """
    losses = _unit_means(step.token_losses, step.masked, grid, tube_length)  # (B, U)
    hidden = unit_scores(step.mask.float(), grid, tube_length) > 0.5  # (B, U)
    hard = unit_scores(step.hard.float(), grid, tube_length) > 0.5
    accuracy = correlation = None
    if step.predicted is not None and step.measured is not None:
        accuracy = rank_accuracy(step.predicted, step.measured)
    if step.ranked_predictions is not None:
        predicted, measured = (
            _unit_means(values, step.ranked, grid, tube_length)
            for values in (step.ranked_predictions, step.ranked_losses)
        )
        correlation = rank_correlation(predicted, measured).mean()
    return {
        "rank_accuracy": accuracy,
        "spearman": correlation,
        "hard_share": hard.sum() / hidden.sum(),
        "hard_loss": losses.where(hard, torch.nan).nanmean(),
        "random_loss": losses.where(hidden & ~hard, torch.nan).nanmean(),
        "feature_variation": feature_variation(step.encoded),
    }


@torch.no_grad()
def feature_variation(encoded: Tensor) -> Tensor:
    """Share of the energy of features (B, V, D) that is not common to the V tokens of a clip.

    Mean over clips, scalar in [0, 1]. Near 0 the encoder says the same of every token, whatever it
    is shown.
    """
    encoded = encoded.float()
    common = encoded.mean(dim=1).square().sum(dim=1)  # (B,)
    return 1 - (common / encoded.square().sum(dim=2).mean(dim=1).clamp(min=1e-12)).mean()


def rank_correlation(one: Tensor, other: Tensor) -> Tensor:
    """Spearman's correlation of each row: (B, K), (B, K) -> (B,).

    Ties share their mean rank. What is NaN in either is left out. 0 where a row has no order, as
    the predictions of a dead predictor.
    """
    left_out = one.isnan() | other.isnan()
    a, b = (_centred_ranks(values.masked_fill(left_out, torch.inf)) for values in (one, other))
    scale = (a.square().sum(dim=1) * b.square().sum(dim=1)).sqrt()
    return (a * b).sum(dim=1) / scale.clamp(min=1e-9)


@torch.no_grad()
def ema_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """|teacher - student| / |student|, L2 norms over all the parameters that both have."""
    theirs = dict(student.named_parameters())
    pairs = [(mine, theirs[name]) for name, mine in teacher.named_parameters()]
    apart = torch.stack([torch.linalg.vector_norm(mine - other) for mine, other in pairs])
    size = torch.stack([torch.linalg.vector_norm(other) for _, other in pairs])
    return whole(torch.linalg.vector_norm(apart)) / whole(torch.linalg.vector_norm(size))


def mean_figures(parts: Sequence[Figures]) -> dict[str, Tensor | None]:
    """The mean of every figure over the parts of a step, which have the same ones."""
    means: dict[str, Tensor | None] = {}
    for name in parts[0]:
        values = [value for part in parts if (value := part[name]) is not None]
        means[name] = torch.stack(values).mean() if values else None
    return means


def _unit_means(values: Tensor, index: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Mean over each unit's tokens among index: (B, M) at (B, M) -> (B, U), NaN without any."""
    zeros = values.new_zeros(len(values), grid.num_tokens)
    total = unit_scores(zeros.scatter(1, index, values), grid, tube_length)
    return total / unit_scores(zeros.scatter(1, index, 1.0), grid, tube_length)


def _centred_ranks(values: Tensor) -> Tensor:
    """Mean rank minus the row's mean, and 0 for what is infinite: (B, K) -> (B, K) float64."""
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
    """The share of its clip's other tokens below each value, in [0, 1]: (B, N) -> (B, N).

    Equal values share the mean of theirs; float64.
    """
    return ranks(values) / max(1, values.shape[1] - 1)
