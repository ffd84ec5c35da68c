"""Videos whose pixels say which frame they are, to be written and read back by tests.

Every frame is one plain colour, whose three channels are the digits of its number in base 8. So the
number survives lossy codecs, and any crop, flip or resize as well.
"""

import struct
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
) -> Path:
    """Write a video of `num_frames` <= 512 frames of `size` (height, width, both even)."""
    assert 0 < num_frames <= MAX_FRAMES
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        for number in range(num_frames):
            digits = np.array([number // 64, number // 8 % 8, number % 8])
            pixels = np.full((*size, 3), np.round(digits * _STEP), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    return path


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
    data = bytearray(path.read_bytes())
    name = data.index(b"tkhd")
    end = name - 4 + int.from_bytes(data[name - 4 : name], "big")
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    turning = (cos << 16, -sin << 16, 0, sin << 16, cos << 16, 0)
    struct.pack_into(">9i", data, end - 44, *turning, 0, 0, 1 << 30)
    path.write_bytes(data)
