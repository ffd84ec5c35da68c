"""Sliding windows over a video of any length: their frames, times and pixels.

PyAV reads the frames once, in order, as it knows when each one is shown. Only frames of the current
windows are kept. `GuardedWindows` reads in a process that may hang or crash without harm.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpm_video.data.loading.batches import why_given_up
from hpm_video.data.video import crops
from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frame_table import fitting_table
from hpm_video.data.video.frames import VideoReadError, check_is_file, reading
from hpm_video.data.video.limits import READING
from hpm_video.data.video.part import file_of, split_part
from hpm_video.data.video.readers.exact import exact_reader
from hpm_video.data.video.source import locate
from hpm_video.data.video.timeline import frames_at, frames_of
from hpm_video.runtime.workers import ItemTimeout, KillableWorker, WorkerDied

_Answer = tuple[int, float, npt.NDArray[np.float64]] | npt.NDArray[np.uint8]
_SCANNED_BYTES = 100 * 2**20  # opening scans the whole file: so many bytes get one time limit


@dataclass(frozen=True)
class WindowSettings:
    """How windows slide and how they are cropped."""

    clip_frames: int  # frames T per window
    frame_stride: int  # frames from one frame of a window to the next
    stride: int  # frames from one window to the next
    crop_size: int  # side S in pixels; crops cover the short side, scaled to S
    num_crops: int  # per window: the centre, or spread along the longer side
    batch_size: int  # windows per batch
    part: int  # no batch crosses a multiple of so many windows
    antialias: bool = True  # see `DataConfig.antialias`
    stride_s: float | None = None  # seconds from one window to the next, instead of `stride`
    fps: float | None = None  # see `DataConfig.fps`; frames are then counted at this rate


class LongVideo:
    """An open video or part, to be read once from start to end.

    Attributes:
        num_frames: number of frames, at least 1.
        fps: average frames per second, 0 if unknown.
        times: (num_frames + 1,) when each frame appears and, last, when the final one disappears,
            in seconds from the start of the file; NaN if the file has neither times nor fps.

    ``table``: its frame table, from the index of a list. ``rate``: `DataConfig.fps`; the video is
    then resampled to this frame rate.

    Raises VideoReadError if the file does not exist, is not a video, or has no frames.
    """

    def __init__(
        self, path: str | Path, table: bytes | None = None, *, rate: float | None = None
    ) -> None:
        self.path = str(path)
        check_is_file(self.path)
        with reading(self.path):
            file, part = split_part(self.path)
            self._reader = exact_reader(file, fitting_table(table, file))
            within = frames_of(self._reader.table, part)
        self.num_frames, self.fps = len(within), self._reader.fps
        self.times = self._reader.table.seconds()[within.start : within.stop + 1]
        self._chosen: Indices | None = None
        if part is not None:
            self._chosen = np.arange(within.start, within.stop)
        if rate is not None:
            with reading(self.path):
                self._chosen = frames_at(self._reader.table, rate, within=within)
            self.num_frames, self.fps = len(self._chosen), rate
            self.times = self.times[0] + np.arange(self.num_frames + 1) / rate

    def frames(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield frames (H, W, 3), uint8 RGB, at ascending indices, one by one.

        Raises VideoReadError if one of them cannot be decoded.
        """
        with reading(self.path):
            if self._chosen is None:
                yield from self._reader.stream(indices)
                return
            wanted = self._chosen[np.asarray(indices)]
            unique, counts = np.unique(wanted, return_counts=True)  # slow videos repeat frames
            frames = self._reader.stream(unique.tolist())
            for frame, count in zip(frames, counts.tolist(), strict=True):
                yield from [frame] * count


def window_indices(
    num_frames: int, settings: WindowSettings, times: npt.NDArray[np.float64] | None = None
) -> Indices:
    """Return the (W, clip_frames) frames of windows that begin at 0, stride, 2 * stride, ...

    With ``stride_s`` and the ``times`` of `LongVideo`, a window begins at the first frame in each
    interval of stride_s seconds; without times there are no windows.

    A window holds every `frame_stride`-th frame. The last window is the first to reach the end of
    the video; past the end, the last frame repeats. No window begins past the end.
    """
    length, step, stride = settings.clip_frames, settings.frame_stride, settings.stride
    assert num_frames > 0 and min(length, step, stride) > 0
    span = (length - 1) * step + 1
    count = 1 + max(0, -((span - num_frames) // stride))  # rounded up
    starts = stride * np.arange(min(count, (num_frames - 1) // stride + 1))
    if settings.stride_s is not None and times is not None:
        # Iterate over frames, not intervals: a file may claim to last for ever. Times are rounded
        stretch = np.floor((times[:-1] - times[0]) / settings.stride_s + 1e-6)
        starts = np.flatnonzero(np.diff(stretch, prepend=-1.0) > 0)
        starts = starts[: 1 + int((starts + span < num_frames).sum())]
    return np.minimum(starts[:, None] + step * np.arange(length), num_frames - 1)


def read_windows(
    video: LongVideo, indices: Indices, settings: WindowSettings
) -> Iterator[torch.Tensor]:
    """Yield windows (B, num_crops, T, S, S, 3) uint8 in order, up to `batch_size` at a time.

    A batch never crosses a multiple of `part`, so the batches do not depend on where an interrupted
    job resumes. Every frame is decoded and resized once, even if windows share it. `indices` (W, T)
    ascend along T and along W. Raises VideoReadError if a frame cannot be decoded.
    """
    needed = np.unique(indices).tolist()
    kept: dict[int, torch.Tensor] = {}  # index -> (num_crops, S, S, 3)
    batch: list[torch.Tensor] = []
    window, size = 0, settings.crop_size
    for index, frame in zip(needed, video.frames(needed), strict=True):
        boxes = crops.view_crops(*frame.shape[:2], num_crops=settings.num_crops)
        cut = partial(crops.resize_crop, frame[None], size=size, antialias=settings.antialias)
        kept[index] = torch.cat([cut(box) for box in boxes])
        while window < len(indices) and indices[window, -1] <= index:
            # T x (num_crops, S, S, 3) -> (num_crops, T, S, S, 3)
            batch.append(torch.stack([kept[i] for i in indices[window].tolist()], dim=1))
            window += 1
            first = indices[window, 0] if window < len(indices) else len(video.times)
            for old in [i for i in kept if i < first]:
                del kept[old]
            is_last = window % settings.part == 0 or window == len(indices)
            if is_last or len(batch) == settings.batch_size:
                yield torch.stack(batch)
                batch = []


class WindowReader:
    """Answers requests about one video: its properties, then its windows batch by batch."""

    def __init__(self, path: str, settings: WindowSettings, table: bytes | None = None) -> None:
        self.path, self.settings, self._table = path, settings, table
        self._video: LongVideo | None = None
        self._batches: Iterator[torch.Tensor] = iter(())
        self._next: int | None = None  # first window of the next batch

    def __call__(self, first: int | None) -> _Answer:
        """For None, return (num_frames, fps, times); else the batch that begins with that window.

        The batch (B, num_crops, T, S, S, 3) is read fast if it follows the previous one.
        """
        settings = self.settings
        video = self._video = self._video or LongVideo(self.path, self._table, rate=settings.fps)
        if first is None:
            return video.num_frames, video.fps, video.times
        if self._next != first:
            self._next = first - first % settings.part
            indices = window_indices(video.num_frames, settings, video.times)[self._next :]
            self._batches = read_windows(video, indices, settings)
        for batch in self._batches:
            start, self._next = self._next, self._next + len(batch)
            if start == first:
                return batch.numpy()
        raise AssertionError(f"no batch begins with window {first}")


def _read_alone(reader: WindowReader, first: int | None) -> _Answer:
    """The worker's function: uses one thread, as the waiting process computes too."""
    torch.set_num_threads(1)
    with reading(reader.path):
        return reader(first)


class GuardedWindows(AbstractContextManager["GuardedWindows"]):
    """A long video and its windows, read in a separate process unless `num_workers` is 0.

    Has `num_frames`, `fps` and `times` of `LongVideo`, and `indices` (W, T), the frames of windows.
    ``timeout_s``: seconds per window, and per 100 MB of the file to open it; None: no limit.

    Raises VideoReadError if the video cannot be opened.
    """

    def __init__(self, reader: WindowReader, *, num_workers: int, timeout_s: float | None) -> None:
        check_is_file(reader.path)
        self._reader, self._timeout_s = reader, timeout_s
        self._worker = (
            KillableWorker(partial(_read_alone, reader), limits=READING) if num_workers else None
        )
        self._ask(None)
        self.num_frames, self.fps, self.times = self._answer(None)
        self.indices = window_indices(self.num_frames, reader.settings, self.times)

    def __exit__(self, *error: object) -> None:
        if self._worker is not None:
            self._worker.kill()

    def batches(self, first: int = 0) -> Iterator[torch.Tensor]:
        """Yield windows (B, num_crops, T, S, S, 3), from the start ``first`` of a part to the last.

        The next batch is read while the caller works on this one. Raises VideoReadError if a frame
        cannot be decoded, or reading hangs or crashes.
        """
        if first < len(self.indices):
            self._ask(first)
        while first < len(self.indices):
            batch = self._answer(first)
            first += len(batch)
            if first < len(self.indices):
                self._ask(first)
            yield torch.from_numpy(batch)

    def _ask(self, first: int | None) -> None:
        if self._worker is None:
            return
        factor = self._reader.settings.batch_size
        if first is None and self._timeout_s is not None:
            factor = 1 + locate(file_of(self._reader.path)).size // _SCANNED_BYTES
        self._worker.submit(first, self._timeout_s and self._timeout_s * factor)

    def _answer(self, first: int | None) -> Any:
        if self._worker is None:
            return self._reader(first)
        try:
            try:
                return self._worker.result()
            except WorkerDied:  # try once more: the video may not be the cause
                self._ask(first)
                return self._worker.result()
        except ItemTimeout as error:
            reason = why_given_up(ItemTimeout(self._timeout_s or error.timeout_s))
            raise VideoReadError(self._reader.path, reason) from error
        except WorkerDied as error:
            raise VideoReadError(self._reader.path, why_given_up(error)) from error
