"""Reads with decord2, the maintained fork of decord; its module is also called decord."""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.readers import UnreadableError, why_no_decord

if reason := why_no_decord():
    raise ImportError(reason)


@contextmanager
def _own_library_only() -> Iterator[None]:
    """While decord is imported, load only its own library, and keep its symbols local.

    decord2 3.4 also loads every CUDA library that pip has installed, hundreds of MiB in each
    worker, although its wheels use none. It also makes its codecs' functions global, so that
    torchcodec decodes AV1 with another version of dav1d and crashes.
    """
    load = ctypes.CDLL

    def load_own(name: str, *_: Any, **__: Any) -> ctypes.CDLL:
        if "decord" not in Path(name).name:
            raise OSError(f"{name} is not decord's")
        return load(name)

    ctypes.CDLL = load_own  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        ctypes.CDLL = load  # type: ignore[misc]


with _own_library_only():
    import decord as decord  # noqa: PLC0414  also for the bench

# FFmpeg prints several errors per damaged file, which would drown a run's log
decord.logging.set_level(decord.logging.QUIET)

# A file that is not a video raises RuntimeError, one without frames AssertionError
_ERRORS = (decord.DECORDError, RuntimeError, AssertionError)
_SOURCE_LOCATION = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")


class DecordReader:
    """An open file, see `Reader`. Raises UnreadableError if decord cannot open it."""

    def __init__(self, path: str) -> None:
        try:
            # One thread: parallelism is across clips, not frames
            self._reader = decord.VideoReader(path, ctx=decord.cpu(0), num_threads=1)
            fps = float(self._reader.get_avg_fps())
        except _ERRORS as error:
            raise _unreadable(error) from error
        self.num_frames = len(self._reader)
        if self.num_frames < 1:
            raise UnreadableError("has no frames")
        self.fps = fps if np.isfinite(fps) else 0.0

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3); see `Reader.read`."""
        try:
            frames: npt.NDArray[np.uint8] = self._reader.get_batch(indices).asnumpy()
        except _ERRORS as error:
            raise _unreadable(error) from error
        return frames


def _unreadable(error: Exception) -> UnreadableError:
    # decord's messages start with the time and its source file
    return UnreadableError(" ".join(_SOURCE_LOCATION.sub("", str(error)).split()))
