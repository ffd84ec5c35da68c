"""The reader that returns the correct frames of any path: Pillow for images, PyAV for videos."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.readers import Reader
from hpm_video.data.video.readers.frame_folder import is_pictures


class ExactReader(Reader, Protocol):
    """A reader with a frame table, which can also stream frames."""

    table: FrameTable

    def stream(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) at ascending indices.

        Raises UnreadableError if one of them cannot be decoded, after yielding those before it.
        """
        ...


def exact_reader(
    path: str, table: FrameTable | None = None, *, motion: bool = False
) -> ExactReader:
    """Open a path, see `PyavReader` and `PictureReader`."""
    if is_pictures(path):
        from hpm_video.data.video.readers.pictures import PictureReader  # noqa: PLC0415 - as below

        return PictureReader(path, table, motion=motion)
    from hpm_video.data.video.readers.pyav import PyavReader  # noqa: PLC0415 - takes a while

    return PyavReader(path, table, motion=motion)
