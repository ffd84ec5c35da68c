"""Videos whose pixels say which frame they are, to be written and read back by tests.

Every frame is one plain colour, whose three channels are the digits of its number in base 8. So the
number survives lossy codecs, and any crop, flip or resize as well.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

MAX_FRAMES = 8**3
_STEP = 255 / 7


def write_indexed_video(
    path: Path,
    num_frames: int,
    size: tuple[int, int] = (48, 64),
    fps: int = 10,
    codec: str = "libx264",
    *,
    first: int = 0,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video of frames number `first` and on, of `size` (height, width, both even).

    `options` are those of the encoder, which takes the numbers "g" (frames from one keyframe to the
    next) and "bf" (B-frames in a row) too.
    """
    assert 0 < num_frames <= MAX_FRAMES - first
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for number in range(first, first + num_frames):
            pixels = indexed_picture(number, size)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_timed_video(
    path: Path, times: Sequence[int], unit: Fraction, size: tuple[int, int], *, gop: int = 250
) -> Path:
    """Write a frame at each time, in units of so many seconds, numbered from 0; with B-frames, and
    `gop` frames from one keyframe to the next."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"bf": "2", "g": str(gop)})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = stream.time_base = unit
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(indexed_picture(number, size), format="rgb24")
            frame.pts, frame.time_base = time, unit
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def indexed_picture(number: int, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Frame `number`, (H, W, 3)."""
    digits = np.array([number // 64, number // 8 % 8, number % 8])
    return np.full((*size, 3), np.round(digits * _STEP), dtype=np.uint8)


def frame_numbers(frames: npt.NDArray[np.uint8] | torch.Tensor) -> list[int]:
    """Return the numbers of frames (T, H, W, 3), uint8 or on that scale, whole or cropped."""
    means = np.asarray(frames, dtype=np.float64).mean(axis=(1, 2))
    digits = np.round(means / _STEP)
    assert np.abs(means - digits * _STEP).max() < _STEP / 3, "not frames of an indexed video"
    return [int(number) for number in digits @ (64, 8, 1)]


def turn(path: Path, degrees: int) -> None:
    """Have players turn an mp4 counter-clockwise by 0, 90, 180 or 270 degrees.

    That is the matrix in the header of the track; PyAV writes none before version 18.
    """
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    set_display_matrix(path, (cos, -sin, sin, cos))


def set_display_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) into the header of an mp4's first track.

    Players show a stored point (x, y) at (a x + c y, b x + d y), y pointing down.
    """
    data = bytearray(path.read_bytes())
    name = data.index(b"tkhd")
    end = name - 4 + int.from_bytes(data[name - 4 : name], "big")
    a, b, c, d = (value << 16 for value in matrix)
    struct.pack_into(">9i", data, end - 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
