"""Decoder masking: which masked tokens are reconstructed at all (VideoMAE V2, arXiv 2303.16727)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.config.values import DecoderMask
from hpm_video.method.masking import Rows, batch_noise, num_masked_units
from hpm_video.models.tokens import TokenGrid, split_mask

_CELL = 4  # places of a cell, 2 x 2, and time steps after which its run begins anew


def num_reconstructed_tokens(grid: TokenGrid, masking: MaskingConfig) -> int:
    """How many of the M masked tokens are reconstructed: round((1 - decoder_mask_ratio) * M).

    Raises ValueError where that is none, or where the pattern does not fit the grid.
    """
    length, ratio = masking.unit_length(grid.time), masking.decoder_mask_ratio
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=length) * length
    kept = round((1 - ratio) * masked)
    if kept < 1:
        raise ValueError(
            f"masking.decoder_mask_ratio ({ratio}) leaves 0 of {masked} masked tokens "
            "to reconstruct: at least one must be"
        )
    if _remasks(masking) and (length % _CELL or grid.height % 2 or grid.width % 2):
        raise ValueError(
            f"masking.decoder_mask (videomae_v2) of {grid} and mining units of {length} time steps "
            f"would keep more tokens of some clips: time steps of a unit must be a multiple of "
            f"{_CELL}, rows and columns even. Choose such a clip and masking.tube_length, or "
            "masking.decoder_mask=running_cell"
        )
    return kept


def num_remasked_tokens(grid: TokenGrid, masking: MaskingConfig) -> int:
    """How many visible tokens the decoders see as mask tokens, too."""
    if not _remasks(masking):
        return 0
    in_cells = round((1 - masking.decoder_mask_ratio) * grid.num_tokens)
    return in_cells - num_reconstructed_tokens(grid, masking)


def _remasks(masking: MaskingConfig) -> bool:
    return masking.decoder_mask == "videomae_v2" and masking.decoder_mask_ratio > 0


def reconstructed_tokens(
    mask: Tensor,
    grid: TokenGrid,
    *,
    num_kept: int,
    pattern: DecoderMask,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """The masked tokens that the decoders see, by our patterns: mask (B, N) -> index (B, num_kept),
    ascending.

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
    if pattern not in ("running_cell", "random"):
        raise ValueError(f"masking.decoder_mask ({pattern}) must be running_cell or random")
    if pattern == "running_cell":
        # Places of a cell, going around it: 0 1 in its upper row, 3 2 below
        order = order + _ranks_in_cells(grid, noise[:, :1], lambda row, column: row * 3 ^ column)
    # Noise is below 1, so visible tokens come last.
    order = order.masked_fill(~mask, 5.0)
    return order.argsort(dim=1)[:, :num_kept].sort(dim=1).values


def running_cells(
    batch_size: int,
    grid: TokenGrid,
    *,
    decoder_mask_ratio: float,
    generator: torch.Generator,
    device: torch.device | str,
    rows: Rows | None = None,
) -> Tensor:
    """Where VideoMAE V2's decoder sees mask tokens, whatever the encoder sees: (B, N) bool.

    The places of a 2 x 2 cell are counted row by row, 0 1 above 2 3. A run of them, on which 0
    follows 3, is seen and moves back by one place with every time step. So half of the tokens are a
    row of each cell at one step and a diagonal at the next. Where it begins is random per clip.
    """
    noise = batch_noise(batch_size, 1, generator=generator, device=device, rows=rows)
    seen = round((1 - decoder_mask_ratio) * _CELL)
    return _ranks_in_cells(grid, noise, lambda row, column: -(row * 2 + column)) < seen


def _ranks_in_cells(
    grid: TokenGrid, noise: Tensor, number: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """How far each token's place is from that where its cell's run begins: noise (B, 1) in [0, 1)
    -> (B, N) in 0 to 3. ``number``: of a place, from its row and column in the cell, 0 or 1; with
    every time step the run begins one number later."""
    time, row, column = (
        torch.arange(size, device=noise.device) for size in (grid.time, grid.height, grid.width)
    )
    places = number(row[:, None] % 2, column % 2)  # (rows, columns)
    begin = time + (noise * _CELL).long()  # (B, time)
    # (B, time, rows * columns) -> (B, N)
    return ((places.flatten() - begin[..., None]) % _CELL).flatten(1)


class Drawn(NamedTuple):
    """What decoders see and predict, None where it is as without decoder masking.

    kept (B, K): index of the masked tokens that are reconstructed, ascending; None: all.
    ranked (B, K'): index of those whose loss is predicted, ascending; None: all of these.
    remasked (B, R): index of the visible tokens that decoders see as mask tokens, too; None: none.
    """

    kept: Tensor | None
    ranked: Tensor | None
    remasked: Tensor | None


def draw_decoded(
    mask: Tensor,
    grid: TokenGrid,
    masking: MaskingConfig,
    *,
    ranked_ratio: float,
    generator: torch.Generator,
    rows: Rows | None,
) -> Drawn:
    """Of the tokens of a mask (B, N): those that decoders see, and the share ``ranked_ratio`` of
    the reconstructed ones."""
    decoded = num_reconstructed_tokens(grid, masking)
    draw = partial(reconstructed_tokens, grid=grid, generator=generator, rows=rows)
    kept = ranked = remasked = None
    if _remasks(masking):
        cells = running_cells(
            len(mask),
            grid,
            decoder_mask_ratio=masking.decoder_mask_ratio,
            generator=generator,
            device=mask.device,
            rows=rows,
        )
        kept, _ = split_mask(~(cells & mask), decoded)
        remasked, _ = split_mask(~cells | mask, num_remasked_tokens(grid, masking))
    elif masking.decoder_mask_ratio > 0:
        kept = draw(mask, num_kept=decoded, pattern=masking.decoder_mask)
    if ranked_ratio < 1:
        among = mask if kept is None else torch.zeros_like(mask).scatter(1, kept, True)
        # Two at least: one alone has no order
        count = min(decoded, max(2, round(ranked_ratio * decoded)))
        ranked = draw(among, num_kept=count, pattern="random")
    return Drawn(kept, ranked, remasked)
