"""Windows of a long video, read by a process that may hang or crash without harm."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType

import numpy as np
import numpy.typing as npt
import torch

from hpm_video.data.loading.batches import why_given_up
from hpm_video.data.loading.windows import LongVideo, read_windows, window_indices
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.runtime.workers import ItemTimeout, KillableWorker, WorkerDied

_Answer = tuple[int, float, npt.NDArray[np.float64]] | npt.NDArray[np.uint8]
_SCANNED_BYTES = 100 * 2**20  # a file is gone through to open it: so much of it in the time limit


@dataclass(frozen=True)
class WindowSettings:
    """How windows slide and what is made of them; see `window_indices` and `read_windows`."""

    clip_frames: int
    frame_stride: int
    stride: int
    crop_size: int
    num_crops: int
    batch_size: int
    part: int


class WindowReader:
    """Answers questions about one video: what it is like, and batch by batch its windows."""

    def __init__(self, path: str, settings: WindowSettings) -> None:
        self.path, self.settings = path, settings
        self._video: LongVideo | None = None
        self._batches: Iterator[torch.Tensor] = iter(())
        self._next: int | None = None  # the window that the next batch begins with

    def __call__(self, first: int | None) -> _Answer:
        """None: (num_frames, fps, times). Else the batch (B, num_crops, T, S, S, 3) that begins
        with a window; quick where that is the one after the batch before."""
        settings = self.settings
        if self._video is None:
            self._video = LongVideo(self.path)
        video = self._video
        if first is None:
            return video.num_frames, video.fps, video.times
        if self._next != first:
            self._next = first - first % settings.part
            self._batches = read_windows(
                video,
                window_indices(
                    video.num_frames,
                    clip_frames=settings.clip_frames,
                    frame_stride=settings.frame_stride,
                    stride=settings.stride,
                )[self._next :],
                crop_size=settings.crop_size,
                num_crops=settings.num_crops,
                batch_size=settings.batch_size,
                part=settings.part,
            )
        for batch in self._batches:
            start, self._next = self._next, self._next + len(batch)
            if start == first:
                return batch.numpy()
        raise AssertionError(f"no batch begins with window {first}")


class _OneThread:
    """What a worker runs: there are other workers, and the process that waits for them."""

    def __init__(self, reader: WindowReader) -> None:
        self.reader = reader

    def __call__(self, first: int | None) -> _Answer:
        torch.set_num_threads(1)
        return self.reader(first)


class GuardedWindows(AbstractContextManager["GuardedWindows"]):
    """A long video and its windows, read in a process of its own, unless `num_workers` is 0.

    Attributes:
        num_frames, fps, times: see `LongVideo`.
        indices: (W, T), the frames of its windows.

    Args:
        reader: of the video.
        num_workers: 0 reads here, where nothing can be abandoned.
        timeout_s: seconds for a window, and to open a file of 100 MB; None: no limit.

    Raises:
        VideoReadError: it cannot be opened.
    """

    def __init__(self, reader: WindowReader, *, num_workers: int, timeout_s: float | None) -> None:
        check_is_file(reader.path)
        self._reader, self._timeout_s = reader, timeout_s
        self._worker = KillableWorker(_OneThread(reader)) if num_workers else None
        self._ask(None)
        answer = self._answer(None)
        assert isinstance(answer, tuple)
        self.num_frames, self.fps, self.times = answer
        settings = reader.settings
        self.indices = window_indices(
            self.num_frames,
            clip_frames=settings.clip_frames,
            frame_stride=settings.frame_stride,
            stride=settings.stride,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._worker is not None:
            self._worker.kill()

    def batches(self, first: int = 0) -> Iterator[torch.Tensor]:
        """Yield windows (B, num_crops, T, S, S, 3) from one on, the start of a part, to the last.

        The next batch is read while this one is worked on.

        Raises:
            VideoReadError: a frame cannot be decoded, or reading hung or crashed.
        """
        if first < len(self.indices):
            self._ask(first)
        while first < len(self.indices):
            answer = self._answer(first)
            assert isinstance(answer, np.ndarray)
            first += len(answer)
            if first < len(self.indices):
                self._ask(first)
            yield torch.from_numpy(answer)

    def _ask(self, first: int | None) -> None:
        if self._worker is not None:
            self._worker.submit(first, self._limit_s(first))

    def _answer(self, first: int | None) -> _Answer:
        if self._worker is None:
            return self._reader(first)
        try:
            try:
                answer: _Answer = self._worker.result()
            except WorkerDied:  # which need not have been the video's fault
                self._ask(first)
                answer = self._worker.result()
        except ItemTimeout as error:
            reason = why_given_up(ItemTimeout(self._timeout_s or error.timeout_s))
            raise VideoReadError(self._reader.path, reason) from error
        except WorkerDied as error:
            raise VideoReadError(self._reader.path, why_given_up(error)) from error
        return answer

    def _limit_s(self, first: int | None) -> float | None:
        if self._timeout_s is None:
            return None
        if first is None:
            return self._timeout_s * (1 + os.path.getsize(self._reader.path) // _SCANNED_BYTES)
        return self._timeout_s * self._reader.settings.batch_size
