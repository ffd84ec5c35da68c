"""How hard the videos of a list are for a pre-training checkpoint, and where in them.

Notation: K readable videos of the list, a clip of each; R x C tubes (row, column) and T steps in
time of its grid. Clips are compared by the *measured* loss alone: a predictor learns the order
within a clip, and what it says of two clips was never compared.
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
# What is said of each of K clips, by its column in clips.csv: (K,), None for unknown
ClipNumbers = dict[str, Array | None]

_AT_ONCE = 4096  # clips whose ranks are made at a time


@dataclass(frozen=True)
class Losses:
    """Losses of K clips, predicted or measured: tubes (K, R, C), means over time; times (K, T),
    means over tubes. Both float32."""

    tubes: npt.NDArray[np.float32]
    times: npt.NDArray[np.float32]

    @property
    def clips(self) -> Array:
        """Mean loss of each clip (K,)."""
        return self.tubes.mean(axis=(1, 2), dtype=np.float64)

    def tube_ranks(self) -> Array:
        """(K, R, C): see `rank_shares`, among the tubes of a clip."""
        return rank_shares(self.tubes)

    def time_ranks(self) -> Array:
        """(K, T): see `rank_shares`, among the time steps of a clip."""
        return rank_shares(self.times)


@dataclass(frozen=True)
class ShownClip:
    """Some frames (F, S, S, 3) uint8 of a clip, and the `rank_shares`, among all tokens of the
    clip, of theirs (F, R, C), by kind of loss."""

    frames: npt.NDArray[np.uint8]
    ranks: dict[str, Array]


@dataclass(frozen=True)
class Hardness:
    """What was found of a list.

    indices (K,): places in the list of the readable videos, in order. labels (K,): -1 for none.
    losses: "measured", where asked for, then "predicted", unless for plain VideoMAE.
    spearman (K,): rank correlation of both over the mining units of a clip; None without both.
    shown: place in the list -> pictures, of the hardest and easiest clips.
    bad: (place in the list, reason) of unreadable videos.
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
        """What clips are ordered by: measured, or else predicted."""
        return next(iter(self.losses.values()))

    @property
    def predicted(self) -> Losses | None:
        return self.losses.get("predicted")

    @property
    def measured(self) -> Losses | None:
        return self.losses.get("measured")

    def class_name(self, label: int) -> str:
        """The name of a class, '' where there is none."""
        classes = self.manifest.classes
        return classes[label] if classes is not None and label >= 0 else ""

    def titled(self, label: int) -> str:
        """A class by number and name, '' for none."""
        return f"{label} {self.class_name(label)}".strip() if label >= 0 else ""

    def hardest_first(self) -> npt.NDArray[np.int64]:
        """(K,): rows of all arrays, of equals the first in the list first."""
        return np.argsort(-self.judged.clips, kind="stable")


def clip_numbers(found: Hardness) -> ClipNumbers:
    """All numbers of the readable clips."""
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
    """The share of the others in its row below each value, equals counting half: (K, ...) -> same.

    Their mean is 1/2, and rows of equals are 1/2 throughout. See `diagnostics.shares`.
    """
    return _by_parts(shares, values).reshape(values.shape)


def _middles(grid: TokenGrid) -> tuple[Array, Array]:
    """Middles of tokens in a frame whose half sides are 1: of rows (R, 1), of columns (1, C)."""
    rows, columns = ((np.arange(n) + 0.5) / n * 2 - 1 for n in (grid.height, grid.width))
    return rows[:, None], columns[None, :]


def centre_distance(grid: TokenGrid) -> Array:
    """(R, C): distance of each token's middle from that of the frame, whose half sides are 1."""
    return np.hypot(*_middles(grid))


def centre_bias(tubes: npt.NDArray[np.floating]) -> Array:
    """Rank correlation, per clip, of the loss of tubes (K, R, C) with their nearness to the
    middle of the frame -> (K,): 1 where the nearest are the hardest, 0 for no relation."""
    nearness = -centre_distance(TokenGrid(1, *tubes.shape[1:]))
    return _correlation(tubes, np.broadcast_to(nearness, tubes.shape))


def central_tubes(grid: TokenGrid) -> npt.NDArray[np.bool_]:
    """(R, C): whether a token's middle lies in the central rectangle of half the frame's area."""
    rows, columns = (np.abs(middles) <= math.sqrt(0.5) for middles in _middles(grid))
    return rows & columns


def central_share(tubes: npt.NDArray[np.floating], grid: TokenGrid) -> Array:
    """Which share of the hardest quarter of the tubes (K, R, C) of a clip is central -> (K,).

    Chance is the share of all tubes that is; see `central_tubes`.
    """
    flat = tubes.reshape(len(tubes), -1)
    quarter = max(1, flat.shape[1] // 4)
    hardest = np.argsort(-flat, axis=1, kind="stable")[:, :quarter]
    return central_tubes(grid).reshape(-1)[hardest].mean(axis=1, dtype=np.float64)


def position_alone(measured: Losses) -> Array | None:
    """How well the place of a tube alone tells its measured loss -> (K,); None of a single clip.

    Rank correlation of a clip's tubes with the mean ranks that the tubes of all *other* clips have
    in their places. A predictor that does no better knows places, and not what is in them.
    """
    ranks = measured.tube_ranks()
    if len(ranks) < 2:
        return None
    others = (ranks.sum(axis=0) - ranks) / (len(ranks) - 1)
    return _correlation(ranks, others.round(9))  # equal but for rounding: a tie


def tube_spearman(predicted: Losses, measured: Losses) -> Array:
    """Rank correlation of predicted with measured losses over the tubes of each clip -> (K,)."""
    return _correlation(predicted.tubes, measured.tubes)


def correlation_of_clips(one: Array, other: Array) -> float | None:
    """Rank correlation of two numbers of K clips, None below 3 of them."""
    return None if len(one) < 3 else float(_correlation(one[None], other[None])[0])


def _correlation(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> Array:
    return _by_parts(lambda *rows: rank_correlation(*(part.double() for part in rows)), one, other)


def _by_parts(function: Callable[..., torch.Tensor], *arrays: npt.NDArray[np.floating]) -> Array:
    """A function of tensors (K, M), called with parts of arrays (K, ...): memory stays small."""
    rows = [array.reshape(len(array), -1) for array in arrays]
    starts = range(0, len(rows[0]), _AT_ONCE)
    parts = ([torch.from_numpy(a[i : i + _AT_ONCE].copy()) for a in rows] for i in starts)
    return np.concatenate([function(*part).numpy() for part in parts])
