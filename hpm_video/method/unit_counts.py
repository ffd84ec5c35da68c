"""How many mining units a clip has, and how many are masked. Needs no PyTorch."""

import math

from hpm_video.models.grid import TokenGrid

ROUNDING = 1e-9  # keeps 0.29 * 100 = 28.999... at 29


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


def floor_share(ratio: float, count: int) -> int:
    """floor(ratio * count)."""
    return math.floor(ratio * count + ROUNDING)
