"""Windows that slide over a video of any length: which frames, when, and their pixels.

Frames are read once, in order, by PyAV, which knows when each of them is shown; only those of the
windows in work are kept.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hpm_video.data.video import crops
from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.data.video.readers import UnreadableError


class LongVideo:
    """An open video, to be read from one end to the other.

    Attributes:
        path: the file.
        num_frames: how many frames it holds, at least 1.
        fps: frames per second on average, 0 where the file does not say.
        times: (num_frames + 1,) when each frame appears and, at the end, when the last one goes,
            in seconds from the start of the file; NaN where the file has neither times nor fps.

    Raises:
        VideoReadError: the file does not exist, is no video, or holds no frames.
    """

    def __init__(self, path: str | Path) -> None:
        from hpm_video.data.video.readers.pyav import PyavReader  # noqa: PLC0415 - as in `video`

        self.path = str(path)
        check_is_file(self.path)
        try:
            self._reader = PyavReader(self.path)
        except UnreadableError as error:
            raise VideoReadError(self.path, str(error)) from error
        self.num_frames, self.fps = self._reader.num_frames, self._reader.fps
        self.times = self._reader.times

    def frames(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield frames (H, W, 3), uint8 RGB, at rising indices, one by one.

        Raises:
            VideoReadError: one of them cannot be decoded.
        """
        try:
            yield from self._reader.stream(indices)
        except UnreadableError as error:
            raise VideoReadError(self.path, str(error)) from error


def window_indices(num_frames: int, *, clip_frames: int, frame_stride: int, stride: int) -> Indices:
    """Return the (W, clip_frames) frames of windows that begin at 0, stride, 2 * stride, ...

    A window holds every `frame_stride`-th frame. The last one is the first to reach the end of the
    video; past that the last frame repeats. None begins past the end.
    """
    assert num_frames > 0 and min(clip_frames, frame_stride, stride) > 0
    span = (clip_frames - 1) * frame_stride + 1
    count = 1 + max(0, -((span - num_frames) // stride))  # rounded up
    starts = stride * np.arange(min(count, (num_frames - 1) // stride + 1))
    indices = starts[:, None] + frame_stride * np.arange(clip_frames)
    return np.minimum(indices, num_frames - 1)


def read_windows(
    video: LongVideo,
    indices: Indices,
    *,
    crop_size: int,
    num_crops: int,
    batch_size: int,
    part: int,
) -> Iterator[torch.Tensor]:
    """Yield windows (B, num_crops, T, S, S, 3) uint8 in order, up to `batch_size` at a time.

    A batch never crosses a multiple of `part`: so what shares a batch does not depend on where a
    job that was interrupted goes on.

    Every frame is decoded and resized once, whichever windows share it. A crop is the whole short
    side; one is the centre, more are spread along the longer side.

    Args:
        video: an open one.
        indices: (W, T), rising along T, and along W.
        crop_size: side S in pixels.
        num_crops: crops of each window.
        batch_size: windows at a time.
        part: windows after which a new batch begins.

    Raises:
        VideoReadError: a frame cannot be decoded.
    """
    needed = np.unique(indices).tolist()
    kept: dict[int, torch.Tensor] = {}  # index -> (num_crops, S, S, 3)
    batch: list[torch.Tensor] = []
    window = 0
    for index, frame in zip(needed, video.frames(needed), strict=True):
        boxes = crops.view_crops(*frame.shape[:2], num_crops=num_crops)
        kept[index] = torch.cat([crops.resize_crop(frame[None], box, crop_size) for box in boxes])
        while window < len(indices) and indices[window, -1] <= index:
            # T x (num_crops, S, S, 3) -> (num_crops, T, S, S, 3)
            batch.append(torch.stack([kept[i] for i in indices[window].tolist()], dim=1))
            window += 1
            first = indices[window, 0] if window < len(indices) else len(video.times)
            for old in [i for i in kept if i < first]:
                del kept[old]
            if len(batch) == batch_size or window % part == 0 or window == len(indices):
                yield torch.stack(batch)
                batch = []
