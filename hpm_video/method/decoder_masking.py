"""Decoder masking: which masked tokens are reconstructed at all (VideoMAE V2, arXiv 2303.16727)."""

from functools import partial

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.config.values import DecoderMask, values_of
from hpm_video.method.masking import Rows, batch_noise, num_masked_units
from hpm_video.models.tokens import TokenGrid


def num_reconstructed_tokens(grid: TokenGrid, masking: MaskingConfig) -> int:
    """How many of the M masked tokens the decoders see: round((1 - decoder_mask_ratio) * M)."""
    length, ratio = masking.tube_length or grid.time, masking.decoder_mask_ratio
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=length) * length
    kept = round((1 - ratio) * masked)
    if kept < 1:
        raise ValueError(
            f"masking.decoder_mask_ratio ({ratio}) leaves 0 of {masked} masked tokens "
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
    if pattern not in values_of(DecoderMask):
        raise ValueError(f"masking.decoder_mask ({pattern}) must be running_cell or random")
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


def draw_decoded(
    mask: Tensor,
    grid: TokenGrid,
    masking: MaskingConfig,
    *,
    ranked_ratio: float,
    generator: torch.Generator,
    rows: Rows | None,
) -> tuple[Tensor | None, Tensor | None]:
    """Of the tokens of a mask (B, N): those that are decoded (decoder masking), and of them the
    share whose loss is predicted, each (B, K) ascending; None where it is all of them."""
    decoded = num_reconstructed_tokens(grid, masking)
    draw = partial(reconstructed_tokens, grid=grid, generator=generator, rows=rows)
    kept = ranked = None
    if masking.decoder_mask_ratio > 0:
        kept = draw(mask, num_kept=decoded, pattern=masking.decoder_mask)
    if ranked_ratio < 1:
        among = mask if kept is None else torch.zeros_like(mask).scatter(1, kept, True)
        # Two at least: one alone has no order
        count = min(decoded, max(2, round(ranked_ratio * decoded)))
        ranked = draw(among, num_kept=count, pattern="random")
    return kept, ranked
