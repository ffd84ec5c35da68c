"""How fast what a frame shows moves, by the motion vectors in the file; known once it is decoded.

    vectors of blocks -> velocity of each cell -> minus that of the camera -> speed

A codec says from where in another frame each block of a frame is copied. Coarse, and chosen to save
bits and not to be true, but it costs no more than to look.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.orientation import Orientation

Floats = npt.NDArray[np.float32]
CELL = 8  # pixels: blocks begin at multiples of it
NO_VECTORS = "no motion vectors"  # begins the note on a video that has none, see `Video.note`


@dataclass(frozen=True)
class Speeds:
    """Speeds of T frames, (T, R, C) in pixels a frame; NaN all over a frame without vectors.

    rows (R + 1,), columns (C + 1,): the pixels at which cells begin and, at last, end.
    """

    cells: Floats
    rows: Floats
    columns: Floats

    @property
    def are_known(self) -> bool:
        """Whether any of the frames has vectors."""
        return not bool(np.isnan(self.cells).all())

    def at(self, places: npt.NDArray[np.integer]) -> "Speeds":
        """Those of some of the frames, in this order."""
        return replace(self, cells=self.cells[places])

    def turned(self, orientation: Orientation) -> "Speeds":
        """Those of the frames as they are shown."""
        rows, columns = self.rows, self.columns
        if orientation.transposed:
            rows, columns = columns, rows
        if orientation.left_right:
            columns = columns[-1] - columns[::-1]
        if orientation.up_down:
            rows = rows[-1] - rows[::-1]
        return Speeds(orientation.apply(self.cells[..., None])[..., 0], rows, columns)

    def in_blocks(
        self, box: Sequence[float], *, height: float, width: float, blocks: int, flip: bool
    ) -> Floats:
        """Mean speeds (T, blocks, blocks) in equal parts of a box, top, left, height and width, of
        frames of such a height and width, mirrored or not; 0 where no frame has vectors.

        A frame without vectors, such as a keyframe, gets those between its neighbours'.
        """
        if not self.are_known:
            return np.zeros((len(self.cells), blocks, blocks), np.float32)
        top, left, box_height, box_width = box
        down = _shares(self.rows * (height / self.rows[-1]), top, box_height, blocks)
        right = _shares(self.columns * (width / self.columns[-1]), left, box_width, blocks)
        found = down @ _filled(self.cells) @ (right[::-1] if flip else right).T
        return found.astype(np.float32)


def edges(length: int) -> Floats:
    """Where the cells of so many pixels begin and, at last, end."""
    starts = np.arange(0, length + CELL, CELL, dtype=np.float32)
    return np.minimum(starts[: -(-length // CELL) + 1], length)


def speeds_of(vectors: np.ndarray, height: int, width: int, *, before: int, after: int) -> Floats:
    """Speeds (R, C) of a frame of such a height and width by its vectors, as FFmpeg exports them.

    ``before``, ``after``: how many frames away are those from which its blocks are copied. A cell
    moves with the mean of its vectors. The median of all cells is the camera's and is taken off.
    Cells without a vector, which the codec could not copy, get the frame's mean.
    """
    rows, columns = -(-height // CELL), -(-width // CELL)
    is_past = vectors["source"] < 0
    # From there to here: towards the past and the future in opposite directions
    per_frame = np.where(is_past, 1 / before, -1 / after) / np.maximum(vectors["motion_scale"], 1)
    size = vectors["h"].astype(np.int64), vectors["w"].astype(np.int64)
    first = [
        (vectors[name].astype(np.int64) - length // 2) // CELL
        for name, length in zip(("dst_y", "dst_x"), size, strict=True)
    ]
    sums = np.zeros((3, rows * columns))
    for down in (0, 1):  # blocks have at most two cells each way
        for right in (0, 1):
            row, column = first[0] + down, first[1] + right
            covers = (size[0] > down * CELL) & (size[1] > right * CELL)
            covers &= (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            place, share = (row * columns + column)[covers], per_frame[covers]
            for k, name in enumerate(("motion_y", "motion_x")):
                sums[k] += np.bincount(place, vectors[name][covers] * share, rows * columns)
            sums[2] += np.bincount(place, minlength=rows * columns)
    has = sums[2] > 0
    speeds = np.full(rows * columns, np.nan, np.float32)
    if has.any():
        velocity = sums[:2, has] / sums[2, has]
        velocity -= np.median(velocity, axis=1, keepdims=True)
        speeds[has] = np.hypot(*velocity)
        speeds[~has] = speeds[has].mean()
    return speeds.reshape(rows, columns)


def _filled(cells: Floats) -> npt.NDArray[np.float64]:
    """Speeds with those of frames without vectors put in: between the nearest ones that have them,
    in the order of the clip."""
    lacks = np.isnan(cells).reshape(len(cells), -1).all(axis=1)
    known = np.flatnonzero(~lacks)
    places = np.arange(len(cells))
    after = known[np.searchsorted(known, places).clip(max=len(known) - 1)]
    before = known[(np.searchsorted(known, places, side="right") - 1).clip(min=0)]
    share = ((places - before) / np.maximum(after - before, 1)).clip(0, 1)[:, None, None]
    return (1 - share) * cells[before] + share * cells[after]


def _shares(starts: Floats, first: float, length: float, blocks: int) -> npt.NDArray[np.float64]:
    """(blocks, cells): how much of each of equal parts of a line lies in each cell; sums to 1."""
    ends = first + length * np.arange(blocks + 1) / blocks
    left = np.maximum(starts[:-1], ends[:-1, None])
    overlap = (np.minimum(starts[1:], ends[1:, None]) - left).clip(min=0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float64)
