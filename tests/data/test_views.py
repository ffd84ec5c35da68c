"""The standard test views against a slow loop written from the recipes, down to the pixels."""

import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from hpm_video.config import DataConfig
from hpm_video.config.values import Sampling
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader, view_indices


def _write(path: Path, num_frames: int, height: int, width: int) -> list[np.ndarray]:
    """Write a video of waves that move, and return its frames as decoded one after the other."""
    y, x = np.mgrid[:height, :width]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(num_frames):
            waves = [np.sin((a * x + b * y) / 9 + number / 3) for a, b in ((1, 0), (0, 1), (1, 1))]
            pixels = (127.5 + 120 * np.stack(waves, axis=-1)).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == num_frames
    return frames


def _clips(num_frames: int, sampling: Sampling, num_clips: int, stride: int) -> list[list[int]]:
    """The frames of the clips of 16, as the recipes say it."""
    if sampling == "uniform":
        assert num_clips == 2
        segment = num_frames / 16
        middles = [int(segment * k + segment / 2) for k in range(16)]
        return [middles, [int(segment * k) for k in range(16)]]
    strided = list(range(0, num_frames, stride))
    clips = []
    for clip in range(num_clips):
        free = max(len(strided) - 16, 0)
        start = int(free * clip / (num_clips - 1)) if num_clips > 1 else free // 2
        window = strided[start : start + 16]
        while len(window) < 16:  # past the end the last frame repeats
            window.append(min(window[-1] + stride, num_frames - 1))
        clips.append(window)
    return clips


def _weights(length: int, size: int, antialias: bool) -> np.ndarray:
    """(size, length): each output pixel as a mean of inputs under a triangle."""
    scale = length / size
    reach = max(scale, 1.0) if antialias else 1.0
    table = np.zeros((size, length))
    for i in range(size):
        for j in range(length):
            table[i, j] = max(0.0, 1 - abs((j + 0.5) - (i + 0.5) * scale) / reach)
    return table / table.sum(axis=1, keepdims=True)


def _slow_views(
    frames: list[np.ndarray], clips: list[list[int]], num_crops: int, size: int, antialias: bool
) -> list[np.ndarray]:
    """Short side `size`; crops along the longer side: left or top, centre, right or bottom."""
    height, width = frames[0].shape[:2]
    short = min(height, width)
    rounded = round if antialias else math.floor
    new_height, new_width = rounded(height * size / short), rounded(width * size / short)
    down = _weights(height, new_height, antialias)
    across = _weights(width, new_width, antialias)
    views = []
    for window in clips:
        for crop in range(num_crops):
            share = crop / (num_crops - 1) if num_crops > 1 else 0.5
            top, left = int((new_height - size) * share), int((new_width - size) * share)
            view = []
            for index in window:
                pixels = frames[index].astype(float)
                if short != size:
                    pixels = np.einsum("ih,hwc,jw->ijc", down, pixels, across, optimize=True)
                view.append(pixels[top : top + size, left : left + size])
            views.append(np.stack(view))
    return views


@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize(
    ("sampling", "num_clips", "num_crops"),
    [("dense", 5, 3), ("uniform", 2, 3), ("dense", 1, 1)],
)
@pytest.mark.parametrize(
    ("num_frames", "height", "width"), [(83, 32, 50), (83, 66, 32), (83, 48, 84), (21, 70, 44)]
)
def test_views_against_the_recipe(
    tmp_path: Path,
    sampling: Sampling,
    num_clips: int,
    num_crops: int,
    num_frames: int,
    height: int,
    width: int,
    antialias: bool,
) -> None:
    size, stride = 32, 4
    path = tmp_path / "video.mp4"
    frames = _write(path, num_frames, height, width)
    how = {"frame_stride": stride, "crop_size": size, "decoder": "pyav", "antialias": antialias}
    data = DataConfig(sampling=sampling, **how)  # type: ignore[arg-type]
    reader = ViewReader(data, num_clips, num_crops)
    clips = _clips(num_frames, sampling, num_clips, stride)
    assert view_indices(num_frames, data, num_clips=num_clips).tolist() == clips
    out = torch.empty(reader.shape, dtype=torch.uint8)
    reader.read(Request(0, str(path), 0), out)
    expected = _slow_views(frames, clips, num_crops, size, antialias)
    assert len(out) == len(expected) == num_clips * num_crops
    # Without scaling to the bit; with it, rounded twice
    tolerance = 0 if min(height, width) == size else 1.01
    for found, wanted in zip(out.numpy(), expected, strict=True):
        assert np.abs(found - wanted).max() <= tolerance
    if num_crops == 3:  # a crop in another place would be seen
        assert np.abs(expected[0] - expected[1]).max() > 20
