"""Masks of blocks: rectangles of a frame, over the whole clip, as V-JEPA hides them.

V-JEPA (arXiv 2404.08471) hides, in two masks for each clip, the union of 8 blocks of 15 % of the
frame, and that of 2 blocks of 70 %; their heights are .75 to 1.5 of their widths, drawn uniformly
like their places. How many tokens that hides varies. Here each block has a shape of its own, and a
clip has one mask per step, of either kind as likely, that always hides the same number of units,
the U = rows * columns tubes:

- blocks hide their units one after the other; of the block that is too much, random units stay
  visible;
- where all blocks together hide too few, random other units are masked, too.

With scores, the hard part of a mask is made first, from `_CANDIDATES` more blocks of 15 %, those
with the highest mean score before the others, and cut in the same way. Blocks of 70 % differ too
little from each other to be hard or easy.
"""

import torch
from torch import Tensor

from hpm_video.models.tokens import TokenGrid

_SMALL, _LARGE = 0.15, 0.7  # shares of the frame
_NUM_SMALL, _NUM_LARGE = 8, 2
_ASPECT = 0.75, 1.5  # height over width
_CANDIDATES = 32
_PER_BLOCK = 3  # numbers drawn for one: its shape, row and column


def num_draws(*, with_scores: bool) -> int:
    """How many random numbers `Blocks` needs for a clip."""
    return 1 + _PER_BLOCK * (_NUM_SMALL + (_CANDIDATES if with_scores else 0))


class Blocks:
    """The blocks of clips, given noise (B, `num_draws`) in [0, 1)."""

    def __init__(self, noise: Tensor, grid: TokenGrid) -> None:
        is_small = noise[:, :1] < 0.5
        drawn = noise[:, 1:].unflatten(1, (-1, _PER_BLOCK))  # (B, K, 3)
        sizes = torch.where(is_small, _count(_SMALL, grid), _count(_LARGE, grid))  # (B, 1)
        covers = _covers(drawn[:, :_NUM_SMALL], sizes, grid)
        place = torch.arange(_NUM_SMALL, device=noise.device)
        is_there = is_small | (place < _NUM_LARGE)  # (B, 8)
        self._random = covers & is_there[..., None]  # (B, 8, U)
        self._candidates, self._grid = drawn[:, _NUM_SMALL:], grid

    def order(self) -> Tensor:
        """Of which block each unit is, the first if of several, and after all where of none:
        (B, U)."""
        place = torch.arange(_NUM_SMALL, device=self._random.device)[:, None]
        return torch.where(self._random, place, _NUM_SMALL).amin(dim=1)

    def scores(self, per_unit: Tensor) -> Tensor:
        """For each unit the highest mean of the candidates that hold it: (B, U) -> (B, U). NaN in
        no candidate, and for a unit whose own score is NaN, which no mean counts."""
        is_known = ~per_unit.isnan()
        covers = _covers(self._candidates, _count(_SMALL, self._grid), self._grid)  # (B, C, U)
        covers &= is_known[:, None]
        total = (per_unit.nan_to_num(nan=0.0)[:, None] * covers).sum(dim=2)
        means = total / covers.sum(dim=2).clamp(min=1)
        best = torch.where(covers, means[..., None], -torch.inf).amax(dim=1)
        return best.masked_fill(~covers.any(dim=1), torch.nan)


def _count(share: float, grid: TokenGrid) -> float:
    return float(int(share * grid.num_tubes))


def _covers(drawn: Tensor, size: Tensor | float, grid: TokenGrid) -> Tensor:
    """Which units blocks hold: drawn (B, K, 3), size in units, of all or (B, 1) -> (B, K, U)."""
    shape, *places = drawn.unbind(dim=2)
    aspect = _ASPECT[0] + (_ASPECT[1] - _ASPECT[0]) * shape
    inside = []
    for length, long, place in zip(
        (grid.height, grid.width), (size * aspect, size / aspect), places, strict=True
    ):
        extent = long.sqrt().round().clamp(1, length)  # (B, K)
        free = length - extent
        first = torch.minimum((place * (free + 1)).floor(), free)
        line = torch.arange(length, device=drawn.device)
        after = line - first[..., None]
        inside.append((after >= 0) & (after < extent[..., None]))  # (B, K, length)
    rows, columns = inside
    return (rows[..., None] & columns[..., None, :]).flatten(2)
