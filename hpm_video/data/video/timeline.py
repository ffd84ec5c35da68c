"""Which frames of a video make up a part of it, or the video at another frame rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frame_table import FRAMES, FrameTable
from hpm_video.data.video.motion import Speeds
from hpm_video.data.video.part import Part
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.readers.frame_folder import untimed

_MOST_FRAMES = 2**24  # at the new rate: a file may claim to last for ever
_MOST = 2**62


class Frames(Protocol):
    """Frames that can be read by number, see `hpm_video.data.video.frames.Video`."""

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
    """Frames of a video, by number (N,), as if they were a whole video at ``fps``."""

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


def frames_of(table: FrameTable, part: Part | None, *, num_frames: int | None = None) -> range:
    """The frames in a part, at least one; without a part the first ``num_frames``, or all.

    A frame belongs to a part if it appears at ``part.start`` or later, and before ``part.end``. A
    part may end after its video. Raises UnreadableError if no frame belongs to it, or the file has
    no frame times.
    """
    count = min(table.num_frames, num_frames or table.num_frames)
    if part is None:
        return range(count)
    if part.in_frames:
        found = range(int(part.start), min(int(part.end), count))
    else:
        unit, times = _times(table)
        # Exact decimals, not the nearest floats: adjacent parts share no frame
        bounds = (Fraction(repr(float(time))) / unit for time in (part.start, part.end))
        whole = [min(math.ceil(bound), _MOST) for bound in bounds]
        found = range(*np.searchsorted(times[:count] - times[0], whole).tolist())
    if not found:
        begin, end = table.seconds()[[0, count]]
        raise UnreadableError(
            f"has no frame in this part: the video has {count} frames and lasts {end - begin:.3f} s"
        )
    return found


def frames_at(table: FrameTable, fps: float, *, within: range | None = None) -> Indices:
    """The frame displayed at each tick of a clock of ``fps``: (N,) ascending, N at least 1.

    Works like ffmpeg's filter fps. A frame appears at the tick nearest to its time (ties go to the
    later tick) and stays until the next frame appears; if several share a tick, the last one is
    shown. The first tick is that of the first frame; the last one precedes the end of the last
    frame. ``within``: only these frames, at the ticks they have in the whole video.

    Raises UnreadableError for a file without frame times.
    """
    unit, times = _times(table)
    rate = Fraction(repr(float(fps))) * unit  # ticks per unit of time
    begin = 0
    if within is not None:
        begin, times = within.start, times[within.start : within.stop + 1]
    moments = _nearest(times, rate)
    first, last = int(moments[0]), int(moments[-1])
    if last - first > _MOST_FRAMES:
        raise UnreadableError(f"would have {last - first} frames at {fps:g} per second: too many")
    there = np.arange(first, max(last, first + 1))
    return begin + np.searchsorted(moments[:-1], there, side="right") - 1


def _times(table: FrameTable) -> tuple[Fraction, Indices]:
    """When frames appear and the last one disappears, and the time unit in seconds.

    Times (num_frames + 1,) count from the start of the file.
    """
    if not table.is_timed:
        if not table.fps:
            said = untimed(is_folder=table.container == FRAMES)
            raise UnreadableError(f"{said}: data.fps and parts in seconds need them")
        unit = 1 / Fraction(table.fps).limit_denominator(1_000_000)
        return unit, np.arange(table.num_frames + 1)
    unit = Fraction(*table.time_base)
    # Players count from the start of the file, which is stored in microseconds
    start = round(Fraction(table.start_time or 0, 1_000_000) / unit)
    usual = 1 / (unit * Fraction(table.fps).limit_denominator(1_000_000)) if table.fps else 1
    end = int(table.times[-1]) + (table.last_lasts or round(usual))
    return unit, np.append(table.times, end) - start


def _nearest(times: Indices, rate: Fraction) -> Indices:
    """times * rate rounded to the nearest integer, exactly; halves away from 0."""
    above, below = rate.numerator, rate.denominator
    exact: npt.NDArray[Any] = np.abs(times)
    if int(exact.max()) * 2 * above + below >= _MOST or 2 * below >= _MOST:  # would overflow int64
        exact = exact.astype(object)
    rounded = (2 * exact * above + below) // (2 * below)
    return np.sign(times) * rounded.astype(np.int64)
