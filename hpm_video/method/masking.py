"""Random and score-based masks, on a schedule from easy to hard.

Pure tensor functions: batched, on the device of their inputs, with an explicit generator.
A *mining unit* is one (row, column) over ``tube_length`` time steps of the token grid. A unit as
long as the clip gives tube masking, length 1 gives single-token masking. One rule covers all: the
share ``hard_ratio`` of the masked units are those with the highest scores, the others are drawn
uniformly (HPM, arXiv 2304.05919). Scores come from the teacher or from `hpm_video.method.sources`;
`hpm_video.method.blocks` shapes masks as blocks.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method.blocks import Blocks, num_draws
from hpm_video.method.unit_counts import ROUNDING, floor_share, num_masked_units, num_units
from hpm_video.models.tokens import TokenGrid

Rows = tuple[int, int]


def num_hard_units(
    grid: TokenGrid, *, mask_ratio: float, tube_length: int, hard_ratio: float
) -> int:
    """Number of masked units chosen by score: floor(hard_ratio * masked units)."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    return floor_share(hard_ratio, masked)


def num_visible_tokens(grid: TokenGrid, *, mask_ratio: float, tube_length: int) -> int:
    """Number of visible tokens V, the same for every mask with these settings."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    return grid.num_tokens - masked * tube_length


def hard_ratio_at(progress: float, start: float, end: float) -> float:
    """Share of hard units at progress in [0, 1]: linear from start to end."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def planned_hard_ratio(masking: MaskingConfig, progress: float) -> float:
    """Hard ratio of a run with masking.ramp=time at this progress; 0 if it masks at random."""
    if not masking.mines:
        return 0.0
    return hard_ratio_at(progress, masking.hard_ratio_start, masking.hard_ratio_end)


def unit_scores(scores: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Mean score of each unit's tokens: (B, N) -> (B, U), U in (window, row, column) order."""
    num_units(grid, tube_length)
    # (B, windows, tube_length, rows * columns)
    windows = scores.reshape(len(scores), -1, tube_length, grid.num_tubes)
    return windows.mean(dim=2).flatten(1)


@dataclass(frozen=True)
class Masked:
    """mask (B, N) bool: True = masked. hard (B, N) bool: True = masked because of its score."""

    mask: Tensor
    hard: Tensor


def make_mask(
    scores: Tensor | None,
    grid: TokenGrid,
    masking: MaskingConfig,
    *,
    hard_ratio: float | Tensor,
    batch_size: int,
    generator: torch.Generator,
    device: torch.device | str | None = None,
    rows: Rows | None = None,
) -> Masked:
    """Choose floor(mask_ratio * U) units of every clip to mask. All masks are made here.

    Without scores, all are drawn uniformly. With scores (B, N), for example the predicted loss of
    each token, the floor(hard_ratio * masked) units with the highest mean score come first (ties
    broken at random); the rest is drawn uniformly from the other units. A unit whose score is
    unknown (NaN) can only be drawn. With masking.pattern=blocks, units come in rectangles, see
    `Blocks`.

    Args:
        hard_ratio: share of the masked units chosen by score, in [0, 1]. A scalar tensor on the
            device is used without a synchronisation.
        device: of the mask; the generator's by default.
        rows: (first, total). The batch is rows first .. first + B of a batch of ``total``, whose
            noise is drawn in full, so masks do not depend on how ranks split the batch.
    """
    if not isinstance(hard_ratio, Tensor) and not 0 <= hard_ratio <= 1:
        raise ValueError(f"hard_ratio ({hard_ratio}) must be in [0, 1]")
    tube_length = masking.unit_length(grid.time)
    units = num_units(grid, tube_length)
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=tube_length)
    columns = units if scores is None else 2 * units
    in_blocks = masking.pattern == "blocks"
    noise = batch_noise(
        batch_size,
        columns + (num_draws(with_scores=scores is not None) if in_blocks else 0),
        generator=generator,
        device=device or generator.device,
        rows=rows,
    )
    blocks = Blocks(noise[:, columns:], grid) if in_blocks else None
    order = noise[:, :units] if blocks is None else noise[:, :units] + blocks.order()
    is_hard = torch.zeros_like(order, dtype=torch.bool)
    if scores is not None:
        per_unit = unit_scores(scores, grid, tube_length)
        if blocks is not None:
            per_unit = blocks.scores(per_unit)
        # Sorting a shuffled copy with a stable sort breaks ties by the shuffle, not by position.
        shuffle = noise[:, units:columns].argsort(dim=1)
        hardness = (-per_unit).gather(1, shuffle).argsort(dim=1, stable=True)
        hardest = shuffle.gather(1, hardness)  # (B, U), all of them; NaN is last
        if isinstance(hard_ratio, Tensor):
            place = torch.arange(units, device=noise.device).expand_as(hardest)
            is_hard.scatter_(1, hardest, place < (hard_ratio * masked + ROUNDING).floor())
        else:
            is_hard.scatter_(1, hardest[:, : floor_share(hard_ratio, masked)], True)
        is_hard &= ~per_unit.isnan()
    # Hard units come first; the lowest noise fills the rest of the budget.
    first = order.masked_fill(is_hard, -1.0).argsort(dim=1)[:, :masked]
    is_masked = torch.zeros_like(is_hard).scatter_(1, first, True)
    return Masked(
        units_to_tokens(is_masked, grid, tube_length), units_to_tokens(is_hard, grid, tube_length)
    )


def random_mask(
    batch_size: int,
    grid: TokenGrid,
    *,
    mask_ratio: float,
    tube_length: int,
    generator: torch.Generator,
    device: torch.device | str,
    rows: Rows | None = None,
) -> Tensor:
    """The mask (B, N) of `make_mask` without scores, True = masked."""
    masking = MaskingConfig(mask_ratio=mask_ratio, tube_length=tube_length)
    return make_mask(
        None,
        grid,
        masking,
        hard_ratio=0.0,
        batch_size=batch_size,
        generator=generator,
        device=device,
        rows=rows,
    ).mask


def hard_mask(
    scores: Tensor,
    grid: TokenGrid,
    *,
    mask_ratio: float,
    hard_ratio: float,
    tube_length: int,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """The mask (B, N) of `make_mask` by scores (B, N), True = masked."""
    masking = MaskingConfig(mask_ratio=mask_ratio, tube_length=tube_length)
    return make_mask(
        scores,
        grid,
        masking,
        hard_ratio=hard_ratio,
        batch_size=len(scores),
        generator=generator,
        device=scores.device,
        rows=rows,
    ).mask


def batch_noise(
    batch_size: int,
    columns: int,
    *,
    generator: torch.Generator,
    device: torch.device | str,
    rows: Rows | None = None,
) -> Tensor:
    """Uniform noise (B, columns) in [0, 1): rows first .. first + B of noise for ``total`` rows."""
    first, total = rows or (0, batch_size)
    assert 0 <= first <= first + batch_size <= total
    noise = torch.rand(total, columns, generator=generator, device=device)
    return noise[first : first + batch_size]


def units_to_tokens(units: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Repeat each unit's flag over its tokens: (B, U) -> (B, N)."""
    windows = units.reshape(len(units), -1, 1, grid.num_tubes)
    return windows.expand(-1, -1, tube_length, -1).flatten(1)
