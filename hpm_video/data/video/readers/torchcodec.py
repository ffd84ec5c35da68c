"""Reading with torchcodec, which uses the FFmpeg of the system."""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torchcodec

from hpm_video.data.video.readers import UnreadableError

_NO_FFMPEG = "torchcodec finds no FFmpeg libraries on this system"
try:
    from torchcodec.decoders import VideoDecoder
except RuntimeError as error:  # of older versions
    raise ImportError(_NO_FFMPEG) from error
if getattr(torchcodec, "ffmpeg_major_version", "") is None:  # newer ones go without, up to a call
    raise ImportError(_NO_FFMPEG)

# Whether pictures come as the file says that they are to be turned
TURNS = tuple(map(int, torchcodec.__version__.split(".")[:2])) >= (0, 11)


def would_crash_on_av1() -> bool:
    """Whether an AV1 decoder's functions are global, as decord makes its own if others import it.

    FFmpeg calls those in place of the ones it was built for, of another version.
    """
    return hasattr(ctypes.CDLL(None), "dav1d_open")


class TorchcodecReader:
    """An open file, see `Reader`. UnreadableError: torchcodec does not open it; others may."""

    def __init__(self, path: str) -> None:
        try:
            # "exact" goes through the file once: by the header alone ("approximate") it guesses,
            # and returns other frames where their times vary. One thread: the work is shared out
            # by clips, not by frames
            self._decoder = VideoDecoder(
                path, dimension_order="NHWC", num_ffmpeg_threads=1, device="cpu", seek_mode="exact"
            )
            self.num_frames = len(self._decoder)
            self.fps = float(self._decoder.metadata.average_fps or 0)
        except (RuntimeError, ValueError) as error:
            raise _unreadable(error) from error
        if self.num_frames < 1:
            raise UnreadableError("has no frames")

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3); see `Reader.read`."""
        try:
            frames: npt.NDArray[np.uint8] = self._decoder.get_frames_at(list(indices)).data.numpy()
        except (RuntimeError, IndexError) as error:
            raise _unreadable(error) from error
        return frames


def _unreadable(error: Exception) -> UnreadableError:
    return UnreadableError(" ".join(str(error).splitlines()[0].split()))
