"""Reads with torchcodec, which uses the system's FFmpeg."""

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torchcodec

from hpm_video.data.video.readers import UnreadableError

_NO_FFMPEG = "torchcodec finds no FFmpeg libraries on this system"
try:
    from torchcodec.decoders import VideoDecoder
except RuntimeError as error:  # from older versions
    raise ImportError(_NO_FFMPEG) from error
if getattr(torchcodec, "ffmpeg_major_version", "") is None:  # newer ones fail only at a call
    raise ImportError(_NO_FFMPEG)

# Whether torchcodec applies the file's rotation
TURNS = tuple(map(int, torchcodec.__version__.split(".")[:2])) >= (0, 11)


def would_crash_on_av1() -> bool:
    """Whether an AV1 decoder's functions are global, as happens if other code imports decord.

    FFmpeg would call those instead of the version it was built for.
    """
    return hasattr(ctypes.CDLL(None), "dav1d_open")


class TorchcodecReader:
    """An open file, see `Reader`. Raises UnreadableError if torchcodec cannot open it."""

    def __init__(self, path: str) -> None:
        try:
            # "exact" scans the file once; "approximate" guesses from the header alone, and returns
            # wrong frames if their times vary. One thread: parallelism is across clips, not frames
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
