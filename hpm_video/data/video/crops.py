"""Cropping: geometry and pixel operations, in separate functions.

Boxes are in whole pixels and always lie inside the frame.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

_MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
# The 13 positions as quarters of the free space (down, right). Corners, centre, edge middles and
# quarter points are exactly those whose coordinates are both even or both odd.
_MULTI_POSITIONS = tuple((y, x) for y in range(5) for x in range(5) if y % 2 == x % 2)


class Box(NamedTuple):
    """A rectangle in a frame, in pixels."""

    top: int
    left: int
    height: int
    width: int


def multi_scale_crop(height: int, width: int, *, rng: np.random.Generator) -> Box:
    """Return a box whose sides are the short side times 1, .875, .75 or .66 (VideoMAE, training).

    Height and width differ by at most one step of that list. All such pairs are equally likely, and
    so are 13 positions: the corners, the centre, the edge middles and the quarter points.
    """
    sides = [int(min(height, width) * scale) or 1 for scale in _MULTI_SCALES]
    pairs = [(a, b) for i, a in enumerate(sides) for b in sides[max(i - 1, 0) : i + 2]]
    box_height, box_width = pairs[rng.integers(len(pairs))]
    down, right = _MULTI_POSITIONS[rng.integers(len(_MULTI_POSITIONS))]
    top, left = (height - box_height) * down // 4, (width - box_width) * right // 4
    return Box(top, left, box_height, box_width)


def random_resized_crop(
    height: int,
    width: int,
    *,
    rng: np.random.Generator,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (0.75, 1.33),
) -> Box:
    """Return a box with a random share of the frame's area, aspect ratio and position.

    `scale` is the range of box area / frame area, `ratio` that of box width / height, drawn on a
    logarithmic scale. If ten draws do not fit, returns the largest centred box with a valid aspect
    ratio.
    """
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box_height, box_width = round(math.sqrt(area / shape)), round(math.sqrt(area * shape))
        if 0 < box_height <= height and 0 < box_width <= width:
            top = int(rng.integers(height - box_height + 1))
            left = int(rng.integers(width - box_width + 1))
            return Box(top, left, box_height, box_width)
    shape = min(max(width / height, ratio[0]), ratio[1])
    box_height, box_width = min(height, round(width / shape)), min(width, round(height * shape))
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


def view_crops(height: int, width: int, *, num_crops: int) -> list[Box]:
    """Return squares as large as the short side, spread evenly along the longer side.

    One square is the centre; three are left (or top), centre, right (or bottom).
    """
    side = min(height, width)
    shares = [(k, num_crops - 1) for k in range(num_crops)] if num_crops > 1 else [(1, 2)]
    return [Box((height - side) * k // n, (width - side) * k // n, side, side) for k, n in shares]


def resize_short_side(
    frames: npt.NDArray[np.uint8] | torch.Tensor, size: int, *, antialias: bool = True
) -> torch.Tensor:
    """Scale frames (T, H, W, 3) until the short side is `size`; bilinear, uint8.

    The longer side is rounded to the nearest pixel; without `antialias` it is rounded down, as
    published.
    """
    frames = torch.as_tensor(frames)
    height, width = frames.shape[1:3]
    short = min(height, width)
    if antialias:
        scaled = round(height * size / short), round(width * size / short)
    else:
        scaled = height * size // short, width * size // short
    return _resize(frames, Box(0, 0, height, width), scaled, antialias=antialias)


def resize_crop(
    frames: npt.NDArray[np.uint8] | torch.Tensor,
    box: Box,
    size: int,
    *,
    antialias: bool = True,
    flip: bool = False,
) -> torch.Tensor:
    """Crop `box` from frames (T, H, W, 3) and return it as (T, size, size, 3), contiguous uint8.

    Bilinear; a box of the target size is cropped without interpolation. `flip` mirrors left and
    right.
    """
    crop = _resize(torch.as_tensor(frames), box, (size, size), antialias=antialias)
    return (crop.flip(2) if flip else crop).contiguous()


def _resize(
    frames: torch.Tensor, box: Box, size: tuple[int, int], *, antialias: bool
) -> torch.Tensor:
    """Crop a box from frames (T, H, W, 3) and scale it to (height, width).

    The result need not be contiguous; without scaling it is a view of `frames`.
    """
    top, left, height, width = box
    crop = frames[:, top : top + height, left : left + width]
    assert crop.dtype == torch.uint8 and crop.shape[1:] == (height, width, 3), crop.shape
    if (height, width) == size:
        return crop
    # (T, H, W, 3) -> (T, 3, H, W) as a strided view: torchvision resizes channels-last uint8
    # directly, without conversion to float32
    planes = functional.resize(crop.permute(0, 3, 1, 2), list(size), antialias=antialias)
    return planes.permute(0, 2, 3, 1)
