"""Numbers of mining units of a clip, of masked and of reconstructed ones. Needs no PyTorch."""

import math

from hpm_video.config import MaskingConfig
from hpm_video.models.grid import TokenGrid

ROUNDING = 1e-9  # keeps 0.29 * 100 = 28.999... at 29
CELL = 4  # places in a cell of 2 x 2, and the period of its pattern in time steps


def num_units(grid: TokenGrid, tube_length: int) -> int:
    """Number of mining units U; raises ValueError if tube_length does not divide the time steps."""
    if tube_length < 1 or grid.time % tube_length:
        raise ValueError(
            f"masking.tube_length ({tube_length}) must divide the grid's {grid.time} time steps"
        )
    return (grid.time // tube_length) * grid.num_tubes


def num_masked_units(grid: TokenGrid, *, mask_ratio: float, tube_length: int) -> int:
    """Number of masked units: floor(mask_ratio * U).

    Raises ValueError unless at least one unit is masked and one visible.
    """
    units = num_units(grid, tube_length)
    if not 0 < mask_ratio < 1:
        raise ValueError(f"masking.mask_ratio ({mask_ratio}) must be in (0, 1)")
    masked = floor_share(mask_ratio, units)
    if not 0 < masked < units:
        raise ValueError(
            f"masking.mask_ratio ({mask_ratio}) masks {masked} of {units} units: "
            "at least one must be masked and one visible"
        )
    return masked


def num_reconstructed_tokens(grid: TokenGrid, masking: MaskingConfig) -> int:
    """Number of reconstructed tokens of M masked ones: round((1 - decoder_mask_ratio) * M).

    Raises ValueError if that is 0, or if the pattern does not fit the grid.
    """
    length, ratio = masking.unit_length(grid.time), masking.decoder_mask_ratio
    masked = num_masked_units(grid, mask_ratio=masking.mask_ratio, tube_length=length) * length
    kept = round((1 - ratio) * masked)
    if kept < 1:
        raise ValueError(
            f"masking.decoder_mask_ratio ({ratio}) must leave at least one of {masked} masked "
            "tokens to reconstruct; lower it"
        )
    if remasks(masking) and (length % CELL or grid.height % 2 or grid.width % 2):
        raise ValueError(
            f"masking.decoder_mask (videomae_v2) of {grid} and mining units of {length} time steps "
            "would keep more tokens of some clips than of others: a unit must have a multiple of "
            f"{CELL} time steps, and rows and columns must be even. Change the clip or "
            "masking.tube_length, or set masking.decoder_mask=running_cell"
        )
    return kept


def num_remasked_tokens(grid: TokenGrid, masking: MaskingConfig) -> int:
    """Number of visible tokens that decoders get as mask tokens as well."""
    if not remasks(masking):
        return 0
    in_cells = round((1 - masking.decoder_mask_ratio) * grid.num_tokens)
    return in_cells - num_reconstructed_tokens(grid, masking)


def remasks(masking: MaskingConfig) -> bool:
    """Whether decoders get visible tokens as mask tokens as well."""
    return masking.decoder_mask == "videomae_v2" and masking.decoder_mask_ratio > 0


def floor_share(ratio: float, count: int) -> int:
    """floor(ratio * count)."""
    return math.floor(ratio * count + ROUNDING)
