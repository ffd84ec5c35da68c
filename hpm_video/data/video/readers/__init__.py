"""The decoders, behind one shape; nothing else imports decord, torchcodec or av to read a video.

PyAV reads everything that FFmpeg reads, and exactly. The other two are right for the files that
`containers.why_not` lets pass.
"""

from collections.abc import Sequence
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
