"""What a file holds by the ffmpeg command line, which decodes it whole and in order.

Without ffmpeg on the machine PyAV does the same. Neither uses anything of this project.
"""

import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

Frames = npt.NDArray[np.uint8]
_CELLS = 8
# Older versions refuse a file whose metadata is not UTF-8, unless told otherwise
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def track(path: Path) -> int | None:
    """The stream that FFmpeg takes for the video; None where there is none but cover pictures."""
    try:
        container = av.open(str(path), **_LENIENT)
    except av.FFmpegError:
        return None
    with container:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        best = container.streams.best("video")
        return best.index if best in streams else (streams[0].index if streams else None)


def _is_cover(stream: av.VideoStream) -> bool:
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def in_order(path: Path, *, other_sizes: bool = False) -> list[Frames]:
    """All frames (H, W, 3), upright, that come out when a file is decoded from its start.

    With `other_sizes`, those of another size than the first one's are scaled into it, with black
    bars; ffmpeg by itself squashes them.
    """
    index = track(path)
    if index is None:
        return []
    if not shutil.which("ffmpeg"):
        frames = by_pyav(path, index)[0]
        return [fitted(frame, frames[0].shape[:2]) for frame in frames]
    frames = _by_ffmpeg(path, index)
    if other_sizes:
        size = f"{frames[0].shape[1]}:{frames[0].shape[0]}"
        scale = f"scale={size}:force_original_aspect_ratio=decrease,pad={size}:-1:-1"
        frames = _by_ffmpeg(path, index, "-vf", scale)
    return frames


def _by_ffmpeg(path: Path, index: int, *options: str) -> list[Frames]:
    command = [
        "ffmpeg", "-v", "quiet", "-nostdin", "-threads", "1", "-i", f"file:{path}",
        "-map", f"0:{index}", "-fps_mode", "passthrough", *options,
        "-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-",
    ]  # fmt: skip
    data = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=120).stdout
    frames, place = [], 0
    while place < len(data):
        # "P6\n<width> <height>\n255\n", then the pixels
        magic, size, most, _ = data[place : place + 40].split(b"\n", 3)
        assert (magic, most) == (b"P6", b"255")
        place += len(magic) + len(size) + len(most) + 3
        width, height = map(int, size.split())
        pixels = np.frombuffer(data, np.uint8, 3 * width * height, place)
        frames.append(pixels.reshape(height, width, 3))
        place += 3 * width * height
    return frames


def by_pyav(path: Path, index: int) -> tuple[list[Frames], list[bool]]:
    """Frames as they are stored, turned by nothing, and which of them the decoder calls damaged."""
    frames, damaged = [], []
    with av.open(str(path), **_LENIENT) as container:
        stream = container.streams[index]
        if stream.codec_context is None:  # the damage names a codec that there is not
            return [], []
        stream.codec_context.thread_count = 1
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    break
                decoded = packet.decode()
            except av.FFmpegError:
                if packet is None:
                    break
                continue
            for frame in decoded:
                frames.append(frame.to_ndarray(format="rgb24"))
                damaged.append(bool(frame.is_corrupt))
    return frames, damaged


def fitted(frame: Frames, size: tuple[int, int]) -> Frames:
    """A frame scaled into (height, width) with its own aspect, amid black bars."""
    if frame.shape[:2] == size:
        return frame
    scale = min(size[0] / frame.shape[0], size[1] / frame.shape[1])
    height, width = (round(side * scale) for side in frame.shape[:2])
    planes = torch.from_numpy(frame.copy()).permute(2, 0, 1)
    scaled = functional.resize(planes, [height, width], antialias=True).permute(1, 2, 0).numpy()
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    out = np.zeros((*size, 3), np.uint8)
    out[top : top + height, left : left + width] = scaled
    return out


def difference(frame: Frames, other: Frames) -> float:
    """How much two pictures differ, 0 to 255: the largest difference of means of 8 x 8 cells.

    Rounding, and how colour is spread over pixels, hardly count; another picture does.
    """
    if frame.shape != other.shape:
        return 255.0
    return float(np.abs(cells(frame) - cells(other)).max())


def cells(frame: Frames) -> npt.NDArray[np.float64]:
    """Means (8, 8, 3) of a grid of cells."""
    rows = np.stack([p.mean(axis=0) for p in np.array_split(frame, _CELLS)])  # (8, W, 3)
    columns = [p.mean(axis=1) for p in np.array_split(rows, _CELLS, axis=1)]
    return np.stack(columns, axis=1)
