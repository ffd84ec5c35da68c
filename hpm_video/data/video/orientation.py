"""How a stored picture is rotated or mirrored for display."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.uint8, np.float32)


class Orientation(NamedTuple):
    """One of the eight orientations of a picture: transposed first, then mirrored."""

    transposed: bool = False
    left_right: bool = False  # columns in reverse order
    up_down: bool = False  # rows in reverse order

    def apply(self, frames: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Return pictures (..., H, W, C) as displayed, (..., W, H, C) if transposed."""
        if self == UPRIGHT:
            return frames
        if self.transposed:
            frames = frames.swapaxes(-3, -2)
        if self.left_right:
            frames = frames[..., ::-1, :]
        if self.up_down:
            frames = frames[..., ::-1, :, :]
        return np.ascontiguousarray(frames)

    @property
    def is_mirrored(self) -> bool:
        """Whether the orientation is not a pure rotation."""
        return sum(self) % 2 == 1


UPRIGHT = Orientation()


def is_tilt(matrix: Sequence[int] | npt.NDArray[np.int32]) -> bool:
    """Whether a display matrix rotates by an angle that is not a multiple of a quarter turn."""
    a, b, _, c, d = (int(number) for number in matrix[:5])
    small = (abs(a) + abs(b) + abs(c) + abs(d)) // 200  # tolerance for the writer's rounding
    return a * d != b * c and max(abs(a), abs(d)) > small and max(abs(b), abs(c)) > small


def of_matrix(matrix: Sequence[int] | npt.NDArray[np.int32]) -> Orientation:
    """Return the orientation of a display matrix (9 numbers by row), to the nearest quarter turn.

    A singular matrix, which some files have, means upright. (x, y) as stored is displayed at (a x +
    c y, b x + d y).
    """
    a, b, _, c, d = (int(number) for number in matrix[:5])
    if a * d == b * c:
        return UPRIGHT
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
