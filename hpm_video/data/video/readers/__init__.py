"""The decoders, behind one shape; nothing else imports decord, torchcodec or av to read a video.

PyAV reads everything that FFmpeg reads, and exactly. The other two are right for the files that
`frames.why_not` lets pass.
"""

from collections.abc import Sequence
from importlib import metadata
from typing import Protocol

import numpy as np
import numpy.typing as npt


class UnreadableError(Exception):
    """A reader's own error: its text is the reason in one line of plain words, without the path."""


class Reader(Protocol):
    """An open file."""

    num_frames: int  # how many frames the file holds, at least 1
    fps: float  # frames per second on average, 0 where the file does not say

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3), RGB, upright, at rising indices without repeats.

        Raises UnreadableError: one of them cannot be decoded.
        """
        ...


def why_no_decord() -> str | None:
    """Why the module decord is not used: other packages than decord2 alone provide it."""
    versions = {}
    for package in ("decord2", "decord"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    match list(versions):
        case ["decord2"]:
            return None
        case ["decord"]:  # reads no AV1, and our rules for which files it reads right are decord2's
            was = f"decord {versions['decord']} is installed in place of decord2"
        case []:
            return "decord2 is not installed"
        case _:  # one folder, whose files are of whichever came last
            was = "decord and decord2 are both installed and overwrite each other"
    return f"{was}: pip uninstall -y decord decord2 && pip install decord2"
