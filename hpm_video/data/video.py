"""Reading frames from a video file: the only module that knows a decoder (decord)."""

import os
import re
import stat
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import decord
import numpy as np
import numpy.typing as npt

# ffmpeg's own complaints, several for every broken file, would drown the log of a run
decord.logging.set_level(decord.logging.QUIET)

# A missing or foreign file is a RuntimeError, one without frames an AssertionError
_DECODER_ERRORS = (decord.DECORDError, RuntimeError, AssertionError)
NO_SUCH_FILE = "no such file"
_SOURCE_LOCATION = re.compile(r"\[[\d:]+\] \S+\.(?:cc|h):\d+: ")


class VideoReadError(RuntimeError):
    """A file that cannot be read as a video.

    Attributes:
        path: the file.
        reason: why, in one line; the same for the same file wherever and whenever it is read.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: what pickling hands to the constructor
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Video:
    """An open video. Decodes nothing before it is asked for frames, and need not be closed."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        # Of such files decord would say so on stderr, past any log level, before it raises
        if reason := _not_a_file(self.path):
            raise VideoReadError(self.path, reason)
        try:
            self._reader = decord.VideoReader(self.path, ctx=decord.cpu(0), num_threads=1)
        except _DECODER_ERRORS as error:
            raise self._read_error(error) from error
        self.num_frames = len(self._reader)
        if self.num_frames < 1:
            raise VideoReadError(self.path, "has no frames")

    @property
    def fps(self) -> float:
        """The average number of frames per second, 0 where the file does not say."""
        fps = float(self._reader.get_avg_fps())
        return fps if np.isfinite(fps) else 0.0

    @property
    def height(self) -> int:
        """Height in pixels as displayed (rotation applied); decodes a frame when first asked."""
        return self._size[0]

    @property
    def width(self) -> int:
        """Width in pixels as displayed (rotation applied); decodes a frame when first asked."""
        return self._size[1]

    @cached_property
    def _size(self) -> tuple[int, int]:
        height, width, _ = self.read([0])[0].shape
        return height, width

    def read(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Return the frames (T, H, W, 3), uint8 RGB, at `indices` in that order.

        Indices may repeat and come in any order; every frame is decoded once, going forward.

        Raises:
            VideoReadError: decoding fails.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        assert wanted.ndim == 1 and len(wanted) > 0, f"indices of shape {wanted.shape}"
        assert wanted.min() >= 0 and wanted.max() < self.num_frames, (
            f"{self.path}: indices {wanted.min()}..{wanted.max()} of {self.num_frames} frames"
        )
        unique, positions = np.unique(wanted, return_inverse=True)
        try:
            frames: npt.NDArray[np.uint8] = self._reader.get_batch(unique).asnumpy()
        except _DECODER_ERRORS as error:
            raise self._read_error(error) from error
        return frames if np.array_equal(unique, wanted) else frames[positions]

    def _read_error(self, error: Exception) -> VideoReadError:
        if not isinstance(error, decord.DECORDError):  # these only repeat the path
            return VideoReadError(self.path, "not a video, or without frames")
        # decord's text starts with the time of day and its own source file
        return VideoReadError(self.path, " ".join(_SOURCE_LOCATION.sub("", str(error)).split()))


def _not_a_file(path: str) -> str | None:
    """Why there is nothing to decode at a path, which is known without a decoder."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return NO_SUCH_FILE
    if stat.S_ISDIR(status.st_mode):
        return "is a folder, not a video"
    return "is empty" if status.st_size == 0 else None


def open_video(path: str | Path) -> Video:
    """Open a video.

    Raises:
        VideoReadError: the file does not exist, is no video, or holds no frames.
    """
    return Video(path)


def read_frames(
    path: str | Path, indices: Sequence[int] | npt.NDArray[np.integer]
) -> npt.NDArray[np.uint8]:
    """Return the frames (T, H, W, 3), uint8 RGB, of a file at `indices`; see `Video.read`."""
    return open_video(path).read(indices)
