"""How a stored picture is turned or mirrored before it is shown."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Number = TypeVar("Number", np.uint8, np.float32)


class Orientation(NamedTuple):
    """One of the eight ways to lay a picture: rows and columns exchanged first, then mirrored."""

    transposed: bool = False
    left_right: bool = False  # columns in reverse order
    up_down: bool = False  # rows in reverse order

    def apply(self, frames: npt.NDArray[Number]) -> npt.NDArray[Number]:
        """Return pictures (..., H, W, C) as they are shown, (..., W, H, C) where transposed."""
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
        """Whether no rotation alone does it."""
        return sum(self) % 2 == 1


UPRIGHT = Orientation()


def is_tilt(matrix: Sequence[int] | npt.NDArray[np.int32]) -> bool:
    """Whether a display matrix asks for an angle that is no quarter turn."""
    a, b, _, c, d = (int(number) for number in matrix[:5])
    small = (abs(a) + abs(b) + abs(c) + abs(d)) // 200  # rounding of a program that wrote it
    return a * d != b * c and max(abs(a), abs(d)) > small and max(abs(b), abs(c)) > small


def of_matrix(matrix: Sequence[int] | npt.NDArray[np.int32]) -> Orientation:
    """Return what a display matrix, nine numbers row by row, asks for: to the nearest quarter turn.

    A matrix that maps all pixels onto a line or a point, as some files have, asks for nothing.
    (x, y) as stored is shown at (a x + c y, b x + d y).
    """
    a, b, _, c, d = (int(number) for number in matrix[:5])
    if a * d == b * c:
        return UPRIGHT
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
