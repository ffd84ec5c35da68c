"""Clips of a video, in full frames and as the model sees them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

from hpm_video.config import DataConfig
from hpm_video.config.limits import at_least
from hpm_video.data.loading.batches import read_guarded
from hpm_video.data.remote.urls import is_url
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.samples.views import view_indices
from hpm_video.data.video import crops, frame_indices
from hpm_video.data.video.frames import VideoReadError, open_frames
from hpm_video.data.video.part import file_of
from hpm_video.data.video.readers.frame_folder import is_pictures
from hpm_video.data.video.source import exists
from hpm_video.runtime.files import printable
from hpm_video.runtime.pages import Frames
from hpm_video.runtime.replies import answer
from hpm_video.visualize.geometry import Place


@dataclass(frozen=True)
class View:
    """The part of a video to show.

    num_crops: squares of the short side, spread along the longer side; one is the centre square.
    whole_frame: the full frame resized to a square instead, which distorts it.
    whole_video: windows side by side from first to last frame, instead of the middle clip; at most
        ``max_windows``, evenly spaced.
    """

    num_crops: int = 1
    whole_frame: bool = False
    whole_video: bool = False
    max_windows: int = 64

    def __post_init__(self) -> None:
        at_least("num_crops", self.num_crops, 1)
        at_least("max_windows", self.max_windows, 1)
        if self.whole_frame and self.num_crops != 1:
            raise ValueError(f"num_crops ({self.num_crops}) must be 1 with whole_frame")


@answer
@dataclass(frozen=True)
class Window:
    """Full frames of a clip, and what a model sees of them.

    frames: (T, H, W, 3), at the video's own size or, if asked for, scaled down.
    crops: (K, T, S, S, 3), of ``places``.
    indices: (T,), frame numbers in the video.
    codec: (K, N) float32, codec scores of each crop; None without motion vectors.
    """

    frames: Frames
    crops: Frames
    places: tuple[Place, ...]
    indices: frame_indices.Indices
    codec: npt.NDArray[np.float32] | None = None


@answer
class Facts(NamedTuple):
    """Number of frames of a video, and frames per second (0 if unknown)."""

    num_frames: int
    fps: float


def check_videos(videos: Sequence[str | Path]) -> None:
    """Raise ValueError for an empty list, and FileNotFoundError for a missing video."""
    if not videos:
        raise ValueError("videos (none) must name at least one file")
    for video in videos:
        if not (is_url(video) or exists(file_of(video))):
            raise FileNotFoundError(f"video ({printable(str(video))}) does not exist")


def read_facts(path: str | Path, data: DataConfig) -> Facts:
    """Read a video's facts. Raises VideoReadError, also if it has too few frames for a clip."""
    timeout_s = data.decode_timeout_s or None
    ask = partial(_facts, data=data)
    facts = read_guarded(ask, str(path), num_workers=data.num_workers, timeout_s=timeout_s)
    # A single picture repeats for any number of frames
    is_still = facts.num_frames == 1 and is_pictures(file_of(path))
    if facts.num_frames < data.num_frames and not is_still:
        raise VideoReadError(
            str(path), f"too short: has {facts.num_frames} frames, a clip needs {data.num_frames}"
        )
    return facts


def window_indices(num_frames: int, data: DataConfig, view: View) -> frame_indices.Indices:
    """Frame numbers (W, T) of the windows of a video with ``num_frames`` frames.

    Without ``view.whole_video``: the middle clip, as pre-training would sample it. With it: windows
    side by side, of frames ``data.frame_stride`` apart; the last one ends at the end.
    """
    length, stride = data.num_frames, data.frame_stride
    if not view.whole_video:
        return view_indices(num_frames, data, num_clips=1)
    last = max(0, num_frames - ((length - 1) * stride + 1))  # start of the last window
    starts = [*range(0, last, length * stride), last]
    if len(starts) > view.max_windows:
        picked = np.linspace(0, len(starts) - 1, view.max_windows).round().astype(int)
        starts = [starts[i] for i in picked]
    indices = partial(frame_indices.dense_indices, num_frames, clip_frames=length, stride=stride)
    return np.stack([indices(start=start) for start in starts])


def read_window(
    path: str | Path,
    indices: frame_indices.Indices,
    data: DataConfig,
    view: View,
    *,
    most_short_side: int | None = None,
    tubelet: Tubelet | None = None,
) -> Window:
    """Read frames (T,) of a video, scaled to a short side of at most ``most_short_side`` pixels.

    ``tubelet``: size of a token; if given, crops get codec scores. Raises VideoReadError.
    """
    read = partial(
        _window, indices=indices, data=data, view=view, most=most_short_side, tubelet=tubelet
    )
    timeout_s = data.decode_timeout_s or None
    return read_guarded(read, str(path), num_workers=data.num_workers, timeout_s=timeout_s)


def _facts(path: str, *, data: DataConfig) -> Facts:
    video = open_frames(path, fps=data.fps)
    return Facts(video.num_frames, video.fps)


def _window(
    path: str,
    *,
    indices: frame_indices.Indices,
    data: DataConfig,
    view: View,
    most: int | None,
    tubelet: Tubelet | None,
) -> Window:
    speeds = None
    if tubelet is None or is_pictures(file_of(path)):
        frames = open_frames(path, fps=data.fps).read(indices)
    else:
        video = open_frames(path, "pyav", fps=data.fps, motion=True)
        frames, speeds = video.read_motion(indices)
    height, width = frames.shape[1:3]
    if view.whole_frame:
        boxes = [crops.Box(0, 0, height, width)]
    else:  # crops of a square frame would be identical
        num_crops = 1 if height == width else view.num_crops
        boxes = crops.view_crops(height, width, num_crops=num_crops)
    cut = partial(crops.resize_crop, frames, size=data.crop_size, antialias=data.antialias)
    squares = np.stack([cut(box).numpy() for box in boxes])
    places = tuple(Place.of_box(box, height, width) for box in boxes)
    codec = None
    if tubelet is not None and speeds is not None and speeds.are_known:
        size = height, width
        score = partial(tubelet.scores, speeds, crop_size=data.crop_size, size=size, flip=False)
        codec = np.stack([score(box) for box in boxes])
    return Window(shrunk(frames, most), squares, places, indices, codec)


def shrunk(frames: Frames, most_short_side: int | None) -> Frames:
    """Scale frames (T, H, W, 3) down if their short side is longer than this."""
    height, width = frames.shape[1:3]
    scale = (most_short_side or min(height, width)) / min(height, width)
    if scale >= 1:
        return frames
    return resized(frames, max(1, round(height * scale)), max(1, round(width * scale)))


def resized(frames: Frames, height: int, width: int) -> Frames:
    """Resize frames (T, H, W, 3)."""
    planes = torch.from_numpy(frames).permute(0, 3, 1, 2)
    scaled = functional.resize(planes, [height, width], antialias=True)
    return scaled.permute(0, 2, 3, 1).contiguous().numpy()
