"""Which tubes to mask: at random, or by predicted loss, on a schedule from easy to hard.

Pure tensor functions: batched, on the device of their inputs, driven by an explicit generator.
A *mining unit* is one (row, column) over ``tube_length`` grid steps in time: the whole clip gives
tube masking, 1 gives single-token masking. One rule serves all: the share ``hard_ratio`` of the
masked units is the hardest ones, the others are drawn uniformly (HPM, arXiv 2304.05919).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpm_video.config.values import DecoderMask
from hpm_video.models.tokens import TokenGrid

Rows = tuple[int, int]


def num_units(grid: TokenGrid, tube_length: int) -> int:
    """Number of mining units U of a grid; raises ValueError if tube_length does not divide time."""
    if tube_length < 1 or grid.time % tube_length:
        raise ValueError(
            f"masking.tube_length ({tube_length}) must divide the grid's {grid.time} time steps"
        )
    return (grid.time // tube_length) * grid.num_tubes


def num_masked_units(grid: TokenGrid, *, mask_ratio: float, tube_length: int) -> int:
    """How many of the U units are masked: floor(mask_ratio * U), leaving at least one of each."""
    units = num_units(grid, tube_length)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"masking.mask_ratio ({mask_ratio}) must be in (0, 1)")
    masked = _floor_share(mask_ratio, units)
    if not 0 < masked < units:
        raise ValueError(
            f"masking.mask_ratio ({mask_ratio}) masks {masked} of {units} units: "
            "at least one must be masked and one visible"
        )
    return masked


def num_hard_units(
    grid: TokenGrid, *, mask_ratio: float, tube_length: int, hard_ratio: float
) -> int:
    """How many of the masked units `hard_mask` takes by their score: floor(hard_ratio * masked)."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    return _floor_share(hard_ratio, masked)


def num_visible_tokens(grid: TokenGrid, *, mask_ratio: float, tube_length: int) -> int:
    """How many tokens V every mask of these settings leaves visible."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    return grid.num_tokens - masked * tube_length


def hard_ratio_at(progress: float, start: float, end: float) -> float:
    """Share of hard units at progress in [0, 1]: linear from start to end."""
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def unit_scores(scores: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Mean score of each unit's tokens: (B, N) -> (B, U), U in (window, row, column) order."""
    num_units(grid, tube_length)
    # (B, windows, tube_length, rows * columns)
    windows = scores.reshape(len(scores), -1, tube_length, grid.num_tubes)
    return windows.mean(dim=2).flatten(1)


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
    """Mask floor(mask_ratio * U) units of every clip at random -> (B, N) bool, True = masked.

    ``rows`` (first, total): the batch is rows first .. first + B of a batch of ``total``, whose
    noise is drawn in full, so that masks do not depend on how the batch is split over processes.
    """
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    units = num_units(grid, tube_length)
    noise = batch_noise(batch_size, units, generator=generator, device=device, rows=rows)
    return units_to_tokens(_ranks(noise) < masked, grid, tube_length)


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
    """Mask the units of highest mean score, and random others -> (B, N) bool, True = masked.

    scores (B, N): predicted loss per token. Of the floor(mask_ratio * U) masked units,
    floor(hard_ratio * masked) are those with the highest mean score (ties broken at random), the
    rest is drawn uniformly from the other units. For ``rows`` see `random_mask`.
    """
    if not 0 <= hard_ratio <= 1:
        raise ValueError(f"hard_ratio ({hard_ratio}) must be in [0, 1]")
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length)
    hard = _floor_share(hard_ratio, masked)
    per_unit = unit_scores(scores, grid, tube_length)
    batch, units = per_unit.shape
    noise = batch_noise(batch, 2 * units, generator=generator, device=scores.device, rows=rows)
    order_noise, tie_noise = noise.chunk(2, dim=1)
    # Sorting a shuffled copy with a stable sort breaks ties by the shuffle, not by position.
    shuffle = tie_noise.argsort(dim=1)
    hardness = (-per_unit).gather(1, shuffle).argsort(dim=1, stable=True)
    is_hard = _inverse(shuffle.gather(1, hardness)) < hard
    # Hard units go before all others; what remains of the budget is filled by the lowest noise.
    return units_to_tokens(
        _ranks(order_noise.masked_fill(is_hard, -1.0)) < masked, grid, tube_length
    )


def num_reconstructed_tokens(
    grid: TokenGrid, *, mask_ratio: float, tube_length: int, decoder_mask_ratio: float
) -> int:
    """How many of the M masked tokens the decoders see: round((1 - decoder_mask_ratio) * M)."""
    if not 0 <= decoder_mask_ratio < 1:
        raise ValueError(f"masking.decoder_mask_ratio ({decoder_mask_ratio}) must be in [0, 1)")
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=tube_length) * tube_length
    kept = round((1 - decoder_mask_ratio) * masked)
    if kept < 1:
        raise ValueError(
            f"masking.decoder_mask_ratio ({decoder_mask_ratio}) leaves 0 of {masked} masked tokens "
            "to reconstruct: at least one must be"
        )
    return kept


def reconstructed_tokens(
    mask: Tensor,
    grid: TokenGrid,
    *,
    num_kept: int,
    pattern: DecoderMask,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """The masked tokens that the decoders see (VideoMAE V2, arXiv 2303.16727): mask (B, N) -> index
    (B, num_kept), ascending.

    ``random``: any. ``running_cell``: 2 x 2 places make a cell, of which a run of neighbours is
    seen (two for half of the tokens, three for three quarters) that moves on by one place with
    every time step, so that over 4 of them each place is seen equally often; where it begins is
    random per clip. Where that gives too many tokens or too few, random ones of the last place of
    the run are left out, or random ones of the place after it come in. For ``rows`` see
    `random_mask`.
    """
    batch = len(mask)
    noise = batch_noise(
        batch, grid.num_tokens + 1, generator=generator, device=mask.device, rows=rows
    )
    order = noise[:, 1:]
    if pattern == "running_cell":
        time, row, column = (
            torch.arange(size, device=mask.device) for size in (grid.time, grid.height, grid.width)
        )
        # Places of a cell, going around it: 0 1 in its upper row, 3 2 below: (rows, columns)
        place = (row[:, None] % 2 * 3) ^ (column % 2)
        begin = time + (noise[:, :1] * 4).long()  # (B, time)
        # Places from the begin of the run on, 0 to 3: (B, time, rows * columns) -> (B, N)
        order = order + ((place.flatten() - begin[..., None]) % 4).flatten(1)
    # Noise is below 1, so visible tokens come last.
    order = order.masked_fill(~mask, 5.0)
    return order.argsort(dim=1)[:, :num_kept].sort(dim=1).values


def batch_noise(
    batch_size: int,
    columns: int,
    *,
    generator: torch.Generator,
    device: torch.device | str,
    rows: Rows | None = None,
) -> Tensor:
    """Uniform noise (B, columns) in [0, 1): rows first .. first + B of what ``total`` rows get."""
    first, total = rows or (0, batch_size)
    assert 0 <= first <= first + batch_size <= total
    noise = torch.rand(total, columns, generator=generator, device=device)
    return noise[first : first + batch_size]


def _floor_share(ratio: float, count: int) -> int:
    # The small term keeps 0.29 * 100 = 28.999... at 29.
    return math.floor(ratio * count + 1e-9)


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, 0 = lowest: (B, K) -> (B, K)."""
    return _inverse(values.argsort(dim=1))


def _inverse(permutation: Tensor) -> Tensor:
    positions = torch.arange(permutation.shape[1], device=permutation.device)
    return torch.empty_like(permutation).scatter_(1, permutation, positions.expand_as(permutation))


def units_to_tokens(units: Tensor, grid: TokenGrid, tube_length: int) -> Tensor:
    """Repeat each unit's flag over its tokens: (B, U) -> (B, N)."""
    windows = units.reshape(len(units), -1, 1, grid.num_tubes)
    return windows.expand(-1, -1, tube_length, -1).flatten(1)
