"""How hard the videos of a list are for a pre-training checkpoint, and where in the frame.

Notation: K readable videos of the list with one clip each; R x C tubes (row, column) and T time
steps of the grid. Clips are compared by their *measured* loss alone. The predictor only learns the
order within a clip, so its values cannot be compared between clips.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from hpm_video.data.lists.manifest import Manifest
from hpm_video.method.diagnostics import rank_correlation, shares
from hpm_video.models.tokens import TokenGrid

Array = npt.NDArray[np.float64]
# Values per clip by column of clips.csv: (K,), None if unknown
ClipNumbers = dict[str, Array | None]

_AT_ONCE = 4096  # clips ranked at a time


@dataclass(frozen=True)
class Losses:
    """Predicted or measured losses of K clips, float32: tubes (K, R, C) averaged over time, times
    (K, T) averaged over tubes."""

    tubes: npt.NDArray[np.float32]
    times: npt.NDArray[np.float32]

    @property
    def clips(self) -> Array:
        """Mean loss of each clip (K,)."""
        return self.tubes.mean(axis=(1, 2), dtype=np.float64)

    def tube_ranks(self) -> Array:
        """(K, R, C): `rank_shares` among the tubes of a clip."""
        return rank_shares(self.tubes)

    def time_ranks(self) -> Array:
        """(K, T): `rank_shares` among the time steps of a clip."""
        return rank_shares(self.times)


@dataclass(frozen=True)
class ShownClip:
    """Some frames (F, S, S, 3) uint8 of a clip, with their `rank_shares` (F, R, C) among all tokens
    of the clip, by kind of loss."""

    frames: npt.NDArray[np.uint8]
    ranks: dict[str, Array]


@dataclass(frozen=True)
class Hardness:
    """Results for a list.

    indices (K,): list indices of the readable videos, ascending. labels (K,): -1 for none.
    losses: "measured" if asked for, then "predicted" unless plain VideoMAE.
    spearman (K,): rank correlation of the two over the mining units of a clip; None without both.
    shown: list index -> pictures, for the hardest and easiest clips.
    bad: (list index, reason) of unreadable videos.
    """

    manifest: Manifest
    grid: TokenGrid
    indices: npt.NDArray[np.int64]
    losses: dict[str, Losses]
    spearman: Array | None
    shown: dict[int, ShownClip] = field(default_factory=dict)
    bad: tuple[tuple[int, str], ...] = ()

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        return np.asarray(self.manifest.labels)[self.indices]

    @property
    def judged(self) -> Losses:
        """The losses that order clips: measured, else predicted."""
        return next(iter(self.losses.values()))

    @property
    def predicted(self) -> Losses | None:
        return self.losses.get("predicted")

    @property
    def measured(self) -> Losses | None:
        return self.losses.get("measured")

    def class_name(self, label: int) -> str:
        """Name of a class; '' if it has none."""
        classes = self.manifest.classes
        return classes[label] if classes is not None and label >= 0 else ""

    def titled(self, label: int) -> str:
        """Number and name of a class; '' for none."""
        return f"{label} {self.class_name(label)}".strip() if label >= 0 else ""

    def hardest_first(self) -> npt.NDArray[np.int64]:
        """(K,): row numbers in order of hardness; ties go to the first in the list."""
        return np.argsort(-self.judged.clips, kind="stable")


def clip_numbers(found: Hardness) -> ClipNumbers:
    """All values of the readable clips."""
    predicted, measured, grid = found.predicted, found.measured, found.grid
    both = tube_spearman(predicted, measured) if predicted and measured else None
    alone = position_alone(measured) if measured else None
    numbers = {"spearman": found.spearman, "tube_spearman": both, "position_alone": alone}
    for kind, losses in (("predicted", predicted), ("measured", measured)):
        numbers[f"{kind}_loss"] = losses.clips if losses else None
        numbers[f"{kind}_centre_bias"] = centre_bias(losses.tubes) if losses else None
        numbers[f"{kind}_central_share"] = central_share(losses.tubes, grid) if losses else None
    return numbers


def rank_shares(values: npt.NDArray[np.floating]) -> Array:
    """Share of the other values in the row below each value, ties counting half: (K, ...) -> same.

    The mean is 1/2; rows of equal values are 1/2 throughout. See `diagnostics.shares`.
    """
    return _by_parts(shares, values).reshape(values.shape)


def _middles(grid: TokenGrid) -> tuple[Array, Array]:
    """Token centres in a frame from -1 to 1: of rows (R, 1), of columns (1, C)."""
    rows, columns = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (grid.height, grid.width))
    return rows[:, None], columns[None, :]


def centre_distance(grid: TokenGrid) -> Array:
    """(R, C): distance of each token's centre from the frame's, in half sides of the frame."""
    return np.hypot(*_middles(grid))


def centre_bias(tubes: npt.NDArray[np.floating]) -> Array:
    """Rank correlation per clip of tube loss (K, R, C) and nearness to the frame's centre -> (K,).

    1: the nearest tubes are the hardest; 0: no relation.
    """
    nearness = -centre_distance(TokenGrid(1, *tubes.shape[1:]))
    return _correlation(tubes, np.broadcast_to(nearness, tubes.shape))


def central_tubes(grid: TokenGrid) -> npt.NDArray[np.bool_]:
    """(R, C): True if a token's centre lies in the central rectangle of half the frame's area."""
    rows, columns = (np.abs(middles) <= math.sqrt(0.5) for middles in _middles(grid))
    return rows & columns


def central_share(tubes: npt.NDArray[np.floating], grid: TokenGrid) -> Array:
    """Share of a clip's hardest quarter of tubes (K, R, C) that is central -> (K,).

    Chance is the share of central tubes among all; see `central_tubes`.
    """
    flat = tubes.reshape(len(tubes), -1)
    quarter = max(1, flat.shape[1] // 4)
    hardest = np.argsort(-flat, axis=1, kind="stable")[:, :quarter]
    return central_tubes(grid).reshape(-1)[hardest].mean(axis=1, dtype=np.float64)


def position_alone(measured: Losses) -> Array | None:
    """How well the position of a tube alone predicts its measured loss -> (K,); None for one clip.

    It is the rank correlation of a clip's tubes with the mean ranks of the same positions in all
    *other* clips. A predictor that does no better knows positions, not content.
    """
    ranks = measured.tube_ranks()
    if len(ranks) < 2:
        return None
    others = (ranks.sum(axis=0) - ranks) / (len(ranks) - 1)
    return _correlation(ranks, others.round(9))  # ties despite rounding errors


def tube_spearman(predicted: Losses, measured: Losses) -> Array:
    """Rank correlation of predicted and measured losses over the tubes of each clip -> (K,)."""
    return _correlation(predicted.tubes, measured.tubes)


def correlation_of_clips(one: Array, other: Array) -> float | None:
    """Rank correlation of two values over K clips; None for fewer than 3."""
    return None if len(one) < 3 else float(_correlation(one[None], other[None])[0])


def _correlation(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> Array:
    return _by_parts(lambda *rows: rank_correlation(*(part.double() for part in rows)), one, other)


def _by_parts(function: Callable[..., torch.Tensor], *arrays: npt.NDArray[np.floating]) -> Array:
    """Apply a function of tensors (K, M) to arrays (K, ...) in parts, to limit memory."""
    rows = [array.reshape(len(array), -1) for array in arrays]
    starts = range(0, len(rows[0]), _AT_ONCE)
    parts = ([torch.from_numpy(a[i : i + _AT_ONCE].copy()) for a in rows] for i in starts)
    return np.concatenate([function(*part).numpy() for part in parts])
