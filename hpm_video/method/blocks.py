"""Block masks: rectangles of the frame, masked over the whole clip, after V-JEPA.

V-JEPA (arXiv 2404.08471) uses two masks per clip: the union of 8 blocks of 15 % of the frame, and
the union of 2 blocks of 70 %. Aspect ratios (height / width) are uniform in .75 to 1.5, places are
uniform, and the number of masked tokens varies. Ours differs: every block has its own shape, and a
clip gets one mask per step, of either kind with equal probability. It always masks the same number
of the U = rows * columns tubes:

- blocks are filled in one after the other; random units of the block that exceeds the budget stay
  visible;
- if all blocks together mask too few units, random others are added.

With scores, the hard part of the mask comes first. It is made of `_CANDIDATES` additional blocks of
15 %, in order of their mean score, cut to the budget in the same way. Blocks of 70 % overlap too
much to differ in hardness.
"""

import torch
from torch import Tensor

from hpm_video.models.tokens import TokenGrid

_SMALL, _LARGE = 0.15, 0.7  # shares of the frame
_NUM_SMALL, _NUM_LARGE = 8, 2
_ASPECT = 0.75, 1.5  # height over width
_CANDIDATES = 32
_PER_BLOCK = 3  # random numbers: shape, row, column


def num_draws(*, with_scores: bool) -> int:
    """Number of random numbers that `Blocks` needs per clip."""
    return 1 + _PER_BLOCK * (_NUM_SMALL + (_CANDIDATES if with_scores else 0))


class Blocks:
    """The blocks of B clips, drawn from noise (B, `num_draws`) in [0, 1)."""

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
        """Number of the first block that holds each unit; units in no block come last: (B, U)."""
        place = torch.arange(_NUM_SMALL, device=self._random.device)[:, None]
        return torch.where(self._random, place, _NUM_SMALL).amin(dim=1)

    def scores(self, per_unit: Tensor) -> Tensor:
        """Highest mean score of the candidate blocks that hold each unit: (B, U) -> (B, U).

        NaN for units in no candidate. Units whose own score is NaN are NaN and count in no mean.
        """
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
    """Units that blocks hold: drawn (B, K, 3), size in units (scalar or (B, 1)) -> (B, K, U)."""
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
