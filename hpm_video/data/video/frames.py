"""Reading frames from a video file, with whichever decoder reads it right."""

import os
import stat
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from hpm_video.config.values import Decoder
from hpm_video.data.video.readers import Reader, UnreadableError, containers

NO_SUCH_FILE = "no such file"


class VideoReadError(RuntimeError):
    """A file (`path`) that cannot be read as a video.

    `reason` says why, in one line; the same for the same file wherever and whenever it is read.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`: what pickling hands to the constructor
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Video:
    """An open video; made by `open_video`. Decodes nothing before it is asked for frames.

    Attributes:
        path: the file.
        num_frames: how many frames it holds, at least 1.
        decoder: what reads it. "pyav" reads in place of another one that does not read this file,
            or might return other frames than those asked for.
        note: why it does not do what was chosen, in a few words that are the same for all such
            files; None where it does.
    """

    def __init__(self, path: str | Path, decoder: Decoder, most_frames: int | None) -> None:
        self.path = str(path)
        self._most_frames = most_frames
        self.note = _why_not(self.path, decoder)
        self.decoder: Decoder = "pyav" if self.note else decoder
        try:
            self._open()
        except UnreadableError as error:
            self._fall_back(error)

    @property
    def fps(self) -> float:
        """The average number of frames per second, 0 where the file does not say."""
        return self._reader.fps

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
        Pixels are as stored, square or not. VideoReadError: decoding fails.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        assert wanted.ndim == 1 and len(wanted) > 0, f"indices of shape {wanted.shape}"
        assert wanted.min() >= 0 and wanted.max() < self.num_frames, (
            f"{self.path}: indices {wanted.min()}..{wanted.max()} of {self.num_frames} frames"
        )
        unique, positions = np.unique(wanted, return_inverse=True)
        asked = unique.tolist()
        try:
            frames = self._reader.read(asked)
        except UnreadableError as error:
            claimed = self.num_frames
            self._fall_back(error)
            if asked[-1] >= self.num_frames:
                reason = f"holds {self.num_frames} frames and claims {claimed}"
                raise VideoReadError(self.path, reason) from error
            try:
                frames = self._reader.read(asked)
            except UnreadableError as last:
                raise VideoReadError(self.path, str(last)) from last
        return frames if np.array_equal(unique, wanted) else frames[positions]

    def _open(self) -> None:
        self._reader: Reader = _reader_class(self.decoder)(self.path)
        self.num_frames = min(self._reader.num_frames, self._most_frames or self._reader.num_frames)

    def _fall_back(self, error: UnreadableError) -> None:
        """Read with PyAV from now on, if that has not just failed itself."""
        if self.decoder != "pyav":
            self.note = f"{self.decoder} fails to read it"
            self.decoder = "pyav"
            try:
                return self._open()
            except UnreadableError as last:
                error = last
        raise VideoReadError(self.path, str(error)) from error


def open_video(
    path: str | Path, decoder: Decoder = "decord", *, most_frames: int | None = None
) -> Video:
    """Open a video.

    Args:
        path: the file.
        decoder: reads it, where it returns the right frames of such a file; see `Video.decoder`.
        most_frames: how many frames it really has where that is known: no more are ever read.

    Raises VideoReadError: the file does not exist, is no video, or holds no frames.
    """
    return Video(path, decoder, most_frames)


def check_is_file(path: str) -> None:
    """Raise VideoReadError where there is no file, nothing in it, or none that may be read."""
    _head(path)


def read_frames(
    path: str | Path,
    indices: Sequence[int] | npt.NDArray[np.integer],
    decoder: Decoder = "decord",
) -> npt.NDArray[np.uint8]:
    """Return the frames (T, H, W, 3), uint8 RGB, of a file at `indices`; see `Video.read`."""
    return open_video(path, decoder).read(indices)


def check_decoder(decoder: Decoder) -> None:
    """Raise ValueError for a decoder that was asked for and is not here.

    decord is the default and has no wheels for some machines: where it is missing PyAV reads.
    """
    if decoder != "decord" and (reason := missing(decoder)):
        raise ValueError(f"data.decoder ({decoder}) must be one that works here: {reason}")


def _why_not(path: str, decoder: Decoder) -> str | None:
    """Why PyAV has to read a file in place of another decoder; VideoReadError for what is none."""
    head = _head(path)
    if decoder == "pyav":
        return None
    if reason := missing(decoder):
        return reason
    try:
        path.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    turns = True
    if decoder == "torchcodec":
        from hpm_video.data.video.readers import torchcodec  # noqa: PLC0415

        turns = torchcodec.TURNS
    with open(path, "rb") as file:
        return containers.why_not(file, head, turns=turns)


def _head(path: str) -> bytes:
    """The first bytes of a file; VideoReadError for what is known to be no video without them."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise VideoReadError(path, "is a folder, not a video")
        if not stat.S_ISREG(mode):  # reading from a pipe would wait for whoever writes to it
            raise VideoReadError(path, "is not a file")
        with open(path, "rb") as file:
            head = file.read(containers.HEAD_BYTES)
    except PermissionError as error:
        raise VideoReadError(path, "permission denied") from error
    except (OSError, ValueError) as error:
        raise VideoReadError(path, NO_SUCH_FILE) from error
    if not head:
        raise VideoReadError(path, "is empty")
    return head


@cache
def missing(decoder: Decoder) -> str | None:
    """Why a decoder is not here, None where it is."""
    try:
        _reader_class(decoder)
    except (ImportError, OSError) as error:
        # Not found as such, or one of the libraries it needs
        name = getattr(error, "name", None)
        return f"{decoder} is not installed" if name == decoder else str(error).splitlines()[0]
    return None


def _reader_class(decoder: Decoder) -> Callable[[str], Reader]:
    """What opens a file with a decoder. Imported here, as it need not be installed."""
    match decoder:
        case "decord":
            from hpm_video.data.video.readers.decord import DecordReader  # noqa: PLC0415

            return DecordReader
        case "torchcodec":
            from hpm_video.data.video.readers.torchcodec import TorchcodecReader  # noqa: PLC0415

            return TorchcodecReader
        case "pyav":
            from hpm_video.data.video.readers.pyav import PyavReader  # noqa: PLC0415

            return PyavReader
    raise ValueError(f"data.decoder ({decoder}) must be one of {', '.join(get_args(Decoder))}")
