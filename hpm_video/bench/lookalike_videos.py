"""Makes videos that resemble those of two data sets, for `bench loader`."""

from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.video.frames import Video, VideoReadError, open_video

_FRAMES_OF_SOURCE = 150  # at most; played forwards and backwards they fill the longest video


@dataclass(frozen=True)
class Kind:
    """Format of a data set's videos, and how clips are sampled from them."""

    name: str
    suffix: str
    codec: str
    size: tuple[int, int]  # (height, width)
    fps: int
    num_frames: int
    options: dict[str, str]
    stride: int


KINDS = (
    Kind("k400", ".mp4", "libx264", (320, 568), 30, 300, {}, 4),
    Kind("ssv2", ".webm", "libvpx-vp9", (240, 426), 12, 48, {"cpu-used": "4"}, 2),
)


def read_sources(folder: Path, source: str | None, num_videos: int) -> list[npt.NDArray[np.uint8]]:
    """Frames (T, H, W, 3) of source videos, in the order of their names."""
    found: list[npt.NDArray[np.uint8]] = []
    if source is None:
        toy = write_toy_videos(folder / "toy", num_videos=num_videos, size=320, num_frames=100)
        paths = [Path(path) for path in map(read_manifest(toy).path, range(num_videos))]
    elif Path(source).is_dir():
        paths = sorted(path for path in Path(source).rglob("*") if path.is_file())
    else:
        raise ValueError(f"--source ({source}) must be a folder of videos")
    for path in paths:
        with suppress(VideoReadError):
            video = open_video(path, "pyav")
            if video.num_frames >= 48 and min(video.height, video.width) >= 240:
                found.append(_small_frames(video))
        if len(found) == num_videos:
            return found
    raise ValueError(
        f"--source ({source}) must hold at least {num_videos} videos of 240 pixels and 48 frames "
        f"or more; it has {len(found)}"
    )


def _small_frames(video: Video) -> npt.NDArray[np.uint8]:
    """The first frames of a video, resized to the largest size that is needed."""
    count = min(video.num_frames, _FRAMES_OF_SOURCE)
    parts = []
    for start in range(0, count, 25):
        # (T, H, W, 3) -> (T, 3, H, W) and back
        frames = torch.from_numpy(video.read(range(start, min(start + 25, count))))
        small = functional.resize(frames.permute(0, 3, 1, 2), list(KINDS[0].size), antialias=True)
        parts.append(small.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def write_raw(path: Path, kind: Kind, source: npt.NDArray[np.uint8]) -> Path:
    """Write a video in a data set's format from frames (T, H, W, 3)."""
    # Forwards and backwards, so that a short source does not jump when it repeats
    order = [*range(len(source)), *range(len(source) - 2, 0, -1)]
    step = max(round(30 / kind.fps), 1)
    frames = (source[order[k * step % len(order)]] for k in range(kind.num_frames))
    target = path.with_suffix(kind.suffix)
    with av.open(str(target), "w") as container:
        stream = container.add_stream(kind.codec, rate=kind.fps, options=kind.options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = kind.size
        stream.pix_fmt = "yuv420p"
        if kind.codec == "libvpx-vp9":
            stream.bit_rate = 500_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(kind.size[1], kind.size[0], "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = number, Fraction(1, kind.fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return target
