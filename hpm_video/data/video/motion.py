"""How fast the content of a frame moves, from the motion vectors that decoding yields.

    vectors of blocks -> velocity of each cell -> minus camera motion -> speed

A codec stores for each block of a frame from where in another frame it is copied. These vectors are
coarse and chosen to save bits, not to be true, but they cost almost nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.orientation import Orientation

Floats = npt.NDArray[np.float32]
CELL = 8  # pixels: blocks start at multiples
NO_VECTORS = "no motion vectors"  # prefix of the note on such videos, see `Video.note`


@dataclass(frozen=True)
class Speeds:
    """Speeds of T frames, (T, R, C) in pixels per frame; all NaN for a frame without vectors.

    rows (R + 1,), columns (C + 1,): the boundaries of cells, in pixels.
    """

    cells: Floats
    rows: Floats
    columns: Floats

    @property
    def are_known(self) -> bool:
        """Whether any of the frames has vectors."""
        return not bool(np.isnan(self.cells).all())

    def at(self, places: npt.NDArray[np.integer]) -> "Speeds":
        """The speeds of the frames at these positions, in this order."""
        return replace(self, cells=self.cells[places])

    def turned(self, orientation: Orientation) -> "Speeds":
        """The speeds of the frames as displayed."""
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
        """Mean speeds (T, blocks, blocks) in equal parts of a box (top, left, height, width).

        ``height`` and ``width`` are those of the frames that the box refers to; ``flip`` mirrors
        it. A frame without vectors, such as a keyframe, is interpolated from its neighbours; 0 if
        no frame has vectors.
        """
        if not self.are_known:
            return np.zeros((len(self.cells), blocks, blocks), np.float32)
        top, left, box_height, box_width = box
        down = _shares(self.rows * (height / self.rows[-1]), top, box_height, blocks)
        right = _shares(self.columns * (width / self.columns[-1]), left, box_width, blocks)
        found = down @ _filled(self.cells) @ (right[::-1] if flip else right).T
        return found.astype(np.float32)


def edges(length: int) -> Floats:
    """The boundaries of cells along so many pixels."""
    starts = np.arange(0, length + CELL, CELL, dtype=np.float32)
    return np.minimum(starts[: -(-length // CELL) + 1], length)


@dataclass(frozen=True)
class FrameVectors:
    """The vectors of a frame, and the distances in frames to its past and future references."""

    vectors: bytes  # records, as FFmpeg exports them
    before: int
    after: int


def speeds_of(
    frames: Sequence[FrameVectors], record: np.dtype[np.void], height: int, width: int
) -> Floats:
    """Speeds (T, R, C) of frames of this height and width, from vectors of this record type.

    A cell moves with the mean of its vectors. The median over a frame's cells is the camera motion
    and is subtracted. Cells without a vector, which the codec could not copy, get the frame's mean.
    """
    rows, columns = -(-height // CELL), -(-width // CELL)
    cells, shape = rows * columns, (len(frames), rows * columns)
    lengths = [len(frame.vectors) // record.itemsize for frame in frames]
    vectors = np.frombuffer(b"".join(frame.vectors for frame in frames), record)
    of_frame = np.repeat(np.arange(len(frames)), lengths)

    def field(name: str) -> npt.NDArray[np.int64]:
        return vectors[name].astype(np.int64)

    # Motion towards this frame: references in the past and the future have opposite signs
    before = np.repeat([frame.before for frame in frames], lengths)
    after = np.repeat([frame.after for frame in frames], lengths)
    away = np.where(field("source") < 0, before, -after) * np.maximum(field("motion_scale"), 1)
    down, right = (field(name) / away for name in ("motion_y", "motion_x"))
    high, wide = field("h"), field("w")
    first_row = (field("dst_y") - high // 2) // CELL
    first_column = (field("dst_x") - wide // 2) // CELL
    sums = np.zeros((3, len(frames) * cells))
    for rows_on, columns_on in product((0, 1), repeat=2):  # blocks span at most two cells per axis
        row, column = first_row + rows_on, first_column + columns_on
        covers = (high > rows_on * CELL) & (wide > columns_on * CELL)
        covers &= (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
        place = (of_frame * cells + row * columns + column)[covers]
        sums[0] += np.bincount(place, down[covers], len(frames) * cells)
        sums[1] += np.bincount(place, right[covers], len(frames) * cells)
        sums[2] += np.bincount(place, minlength=len(frames) * cells)
    with np.errstate(invalid="ignore"):
        velocity = (sums[:2] / sums[2]).reshape(2, *shape)  # NaN without a vector
    speeds = np.hypot(*(velocity - _medians(velocity)))
    return _mean_where_unknown(speeds).reshape(len(frames), rows, columns).astype(np.float32)


def _medians(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Medians (..., 1) of values (..., K), ignoring NaN; NaN if all are."""
    ordered = np.sort(values, axis=-1)  # NaN sorts last
    count = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    middle = [np.maximum(count - 1, 0) // 2, np.minimum(count // 2, values.shape[-1] - 1)]
    first, second = (np.take_along_axis(ordered, place, -1) for place in middle)
    return np.where(count > 0, (first + second) / 2, np.nan)


def _mean_where_unknown(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Values (..., K) with NaN replaced by the mean of the others, if there are others."""
    lacks = np.isnan(values)
    count = (~lacks).sum(axis=-1, keepdims=True)
    total = np.where(lacks, 0, values).sum(axis=-1, keepdims=True)
    return np.where(lacks & (count > 0), total / np.maximum(count, 1), values)


def _filled(cells: Floats) -> npt.NDArray[np.float64]:
    """Speeds in which frames without vectors are interpolated between the nearest others."""
    lacks = np.isnan(cells).reshape(len(cells), -1).all(axis=1)
    known = np.flatnonzero(~lacks)
    places = np.arange(len(cells))
    after = known[np.searchsorted(known, places).clip(max=len(known) - 1)]
    before = known[(np.searchsorted(known, places, side="right") - 1).clip(min=0)]
    share = ((places - before) / np.maximum(after - before, 1)).clip(0, 1)[:, None, None]
    return (1 - share) * cells[before] + share * cells[after]


def _shares(starts: Floats, first: float, length: float, blocks: int) -> npt.NDArray[np.float64]:
    """(blocks, cells): the share of each cell in each of equal parts of a line; rows sum to 1."""
    ends = first + length * np.arange(blocks + 1) / blocks
    left = np.maximum(starts[:-1], ends[:-1, None])
    overlap = (np.minimum(starts[1:], ends[1:, None]) - left).clip(min=0)
    return np.asarray(overlap / overlap.sum(axis=1, keepdims=True), np.float64)
