"""A video at another rate: which of its frames are on show at each moment."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frame_table import FRAMES, FrameTable
from hpm_video.data.video.motion import Speeds
from hpm_video.data.video.readers.frame_folder import untimed

_MOST_FRAMES = 2**24  # at this rate: a file may claim to last for ever
_MOST = 2**62


class Frames(Protocol):
    """Frames that can be asked for by number, see `hpm_video.data.video.frames.Video`."""

    @property
    def num_frames(self) -> int: ...

    @property
    def fps(self) -> float: ...

    @property
    def note(self) -> str | None: ...

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]: ...

    def read_motion(
        self, indices: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.uint8], Speeds]: ...


@dataclass(frozen=True)
class Selection:
    """Frames of a video, by their numbers (N,), as if they were all of it: ``fps`` a second."""

    video: Frames
    chosen: Indices
    fps: float

    @property
    def num_frames(self) -> int:
        return len(self.chosen)

    @property
    def note(self) -> str | None:
        return self.video.note

    def read(self, indices: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        return self.video.read(self.chosen[indices])

    def read_motion(self, indices: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], Speeds]:
        return self.video.read_motion(self.chosen[indices])


def frames_at(table: FrameTable, fps: float, *, num_frames: int | None = None) -> Indices:
    """Which frame is on show in each of ``fps`` moments a second: (N,) rising, N at least 1.

    As ffmpeg's filter fps has it: a frame comes at the moment nearest to its own time, a tie goes
    to the later one, and stays until the next frame comes; of several that come at once the last is
    on show. The first moment is that of the first frame, the last one before that at which the
    last frame goes. ``num_frames``: of the first so many frames alone.

    Raises ValueError for a file that does not say when its frames are shown.
    """
    unit, times = _times(table)
    rate = Fraction(repr(float(fps))) * unit  # moments per unit of time
    moments = _nearest(times, rate)
    if num_frames is not None:
        moments = moments[: num_frames + 1]
    first, last = int(moments[0]), int(moments[-1])
    if last - first > _MOST_FRAMES:
        raise ValueError(f"would have {last - first} frames at {fps:g} per second: too many")
    there = np.arange(first, max(last, first + 1))
    return np.searchsorted(moments[:-1], there, side="right") - 1


def _times(table: FrameTable) -> tuple[Fraction, Indices]:
    """When frames appear and the last one goes, (num_frames + 1,) from the start of the file, and
    the unit in seconds."""
    if not table.is_timed:
        if not table.fps:
            said = untimed(is_folder=table.container == FRAMES)
            raise ValueError(f"{said}: data.fps needs that")
        unit = 1 / Fraction(table.fps).limit_denominator(1_000_000)
        return unit, np.arange(table.num_frames + 1)
    unit = Fraction(*table.time_base)
    # Players count from the start of the file, which is told in microseconds
    start = round(Fraction(table.start_time or 0, 1_000_000) / unit)
    usual = 1 / (unit * Fraction(table.fps).limit_denominator(1_000_000)) if table.fps else 1
    end = int(table.times[-1]) + (table.last_lasts or round(usual))
    return unit, np.append(table.times, end) - start


def _nearest(times: Indices, rate: Fraction) -> Indices:
    """times * rate to the nearest whole number, exactly; a half goes away from 0."""
    above, below = rate.numerator, rate.denominator
    exact: npt.NDArray[Any] = np.abs(times)
    if int(exact.max()) * 2 * above + below >= _MOST or 2 * below >= _MOST:  # too large for int64
        exact = exact.astype(object)
    rounded = (2 * exact * above + below) // (2 * below)
    return np.sign(times) * rounded.astype(np.int64)
