"""Decoder masking: reconstruct only some masked tokens (VideoMAE V2, arXiv 2303.16727)."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.config.values import DecoderMask
from hpm_video.method.masking import Rows, batch_noise
from hpm_video.method.unit_counts import (
    CELL,
    num_reconstructed_tokens,
    num_remasked_tokens,
    remasks,
)
from hpm_video.models.tokens import TokenGrid, split_mask


def reconstructed_tokens(
    mask: Tensor,
    grid: TokenGrid,
    *,
    num_kept: int,
    pattern: DecoderMask,
    generator: torch.Generator,
    rows: Rows | None = None,
) -> Tensor:
    """Choose the masked tokens to reconstruct: mask (B, N) -> index (B, num_kept), ascending.

    ``random``: uniformly. ``running_cell``: the frame is divided into cells of 2 x 2 places. In
    each cell a run of neighbouring places is kept (two for half of the tokens, three for three
    quarters). The run moves on by one place with every time step, so each place is kept equally
    often over 4 steps; its start is random per clip. If that gives too many tokens, random ones of
    the run's last place are dropped; if too few, random ones of the next place are added.
    ``rows``: see `make_mask`.
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
    """Tokens that VideoMAE V2's decoder gets as mask tokens, drawn without the mask: (B, N) bool.

    The places of a 2 x 2 cell are numbered row by row, 0 1 above 2 3, and 0 follows 3. A run of
    them is chosen, which moves back by one place with every time step. Half of the tokens are thus
    a row of each cell at one step and a diagonal at the next. The start is random per clip.
    """
    noise = batch_noise(batch_size, 1, generator=generator, device=device, rows=rows)
    seen = round((1 - decoder_mask_ratio) * CELL)
    return _ranks_in_cells(grid, noise, lambda row, column: -(row * 2 + column)) < seen


def _ranks_in_cells(
    grid: TokenGrid, noise: Tensor, number: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """Position of each token in its cell's run: noise (B, 1) in [0, 1) -> (B, N) in 0 to 3.

    ``number`` numbers the places of a cell, from row and column (0 or 1). The run starts one number
    later with every time step.
    """
    time, row, column = (
        torch.arange(size, device=noise.device) for size in (grid.time, grid.height, grid.width)
    )
    places = number(row[:, None] % 2, column % 2)  # (rows, columns)
    begin = time + (noise * CELL).long()  # (B, time)
    # (B, time, rows * columns) -> (B, N)
    return ((places.flatten() - begin[..., None]) % CELL).flatten(1)


class Drawn(NamedTuple):
    """The tokens that decoders work on. Indices are ascending.

    kept (B, K): masked tokens to reconstruct; None means all.
    ranked (B, K'): kept tokens whose loss is predicted; None means all of them.
    remasked (B, R): visible tokens that decoders get as mask tokens as well; None means none.
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
    """Draw the tokens to reconstruct from a mask (B, N), and the share ``ranked_ratio`` of them
    whose loss is predicted."""
    decoded = num_reconstructed_tokens(grid, masking)
    draw = partial(reconstructed_tokens, grid=grid, generator=generator, rows=rows)
    kept = ranked = remasked = None
    if remasks(masking):
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
        # A single token has no order
        count = min(decoded, max(2, round(ranked_ratio * decoded)))
        ranked = draw(among, num_kept=count, pattern="random")
    return Drawn(kept, ranked, remasked)
