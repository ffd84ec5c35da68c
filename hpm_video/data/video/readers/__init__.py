"""The decoders, behind one interface.

Nothing else imports decord, torchcodec or av to read a video. PyAV reads everything that FFmpeg
reads, and exactly. The other two are correct for the files that `frames.why_not` accepts.
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.limits import MOST_CLIP_BYTES, MOST_PIXELS

_LONGEST_REASON = 500  # characters


class UnreadableError(Exception):
    """A reader's own error: its text is the reason in one plain line, without the path."""


def why(error: Exception) -> str:
    """Why a file is unreadable, in one line, from any error raised while reading it.

    An error that readers do not expect keeps its type, so that bugs stay visible.
    """
    if isinstance(error, UnreadableError):
        return str(error)
    text = str(error)
    if isinstance(error, MemoryError):
        text = f"reading it takes more memory than a reader may use ({text or 'no details'})"
    return " ".join(f"{type(error).__name__}: {text}".split())[:_LONGEST_REASON]


def check_picture(height: int, width: int) -> None:
    """Raise UnreadableError for pictures that are too large to decode."""
    if height * width > MOST_PIXELS:
        raise UnreadableError(
            f"{width} x {height} pixels must be at most {MOST_PIXELS:,}: scale the frames down"
        )


def check_clip(num_frames: int, height: int, width: int) -> None:
    """Raise UnreadableError if this many frames exceed the memory limit of a clip."""
    check_picture(height, width)
    size = num_frames * height * width * 3
    if size > MOST_CLIP_BYTES:
        raise UnreadableError(
            f"{num_frames} frames of {width} x {height} pixels ({size / 2**30:.1f} GiB) must take "
            f"at most {MOST_CLIP_BYTES / 2**30:g} GiB: read fewer, or shrink them with "
            "hpm-video data transcode"
        )


class Reader(Protocol):
    """An open file. Any error it raises is attributed to the file."""

    num_frames: int  # at least 1
    fps: float  # on average, 0 if unknown

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3), RGB, upright, at ascending indices without repeats.

        Raises UnreadableError if one of them cannot be decoded.
        """
        ...


def why_no_decord() -> str | None:
    """Why the module decord is not used: it must come from the package decord2 alone."""
    versions = {}
    for package in ("decord2", "decord"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    match list(versions):
        case ["decord2"]:
            return None
        case ["decord"]:  # lacks AV1; our rules for which files it reads are decord2's
            was = f"decord {versions['decord']} is installed instead of decord2"
        case []:
            return "decord2 is not installed"
        case _:  # both install one folder, with the files of the later one
            was = "decord and decord2 are both installed and overwrite each other"
    return f"{was}: pip uninstall -y decord decord2 && pip install decord2"
