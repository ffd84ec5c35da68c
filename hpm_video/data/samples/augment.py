"""Augmentation of a clip: RandAugment and random erasing on uint8, equal for all frames.

Operations and magnitudes are those of timm's "rand-m7-n4-mstd0.5-inc1", which VideoMAE's
fine-tuning uses; timm itself draws per image and from global generators. Image statistics that an
operation needs (range, mean or histogram) are computed over the whole clip here, so that equal
pixels stay equal in all frames.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional

from hpm_video.config import AugmentConfig

_GREY = (128, 128, 128)  # fill colour for pixels that move into the image
_BICUBIC: dict[str, Any] = {"resample": Image.Resampling.BICUBIC, "fillcolor": _GREY}
# ImageNet's mean and standard deviation in bytes: after normalization this is standard normal noise
_NOISE_MEAN, _NOISE_STD = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)

# (clip (T, H, W, 3), level in [0, 1], sign -1 or 1) -> clip
Operation = Callable[[torch.Tensor, float, int], torch.Tensor]
_OfPictures = Callable[[torch.Tensor], torch.Tensor]


def augment(
    clip: torch.Tensor, settings: AugmentConfig, *, rng: np.random.Generator
) -> torch.Tensor:
    """Return a clip (T, H, W, 3) uint8 after RandAugment and random erasing; same shape and type.

    `rng` is the only source of randomness.
    """
    operations = OPERATIONS
    if settings.interpolation == "bilinear":
        operations = OPERATIONS | _BILINEAR
    for _ in range(settings.num_operations):
        operation = tuple(operations.values())[rng.integers(len(operations))]
        level = rng.normal(settings.magnitude, settings.magnitude_spread)
        is_applied, sign = rng.random(2) < 0.5
        if is_applied:
            clip = operation(clip, min(max(level, 0.0), 10.0) / 10, 1 if sign else -1)
    if settings.erasing > 0 and rng.random() < settings.erasing:
        clip = erase(clip, rng=rng)
    return clip


def erase(
    clip: torch.Tensor,
    *,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.02, 1 / 3),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> torch.Tensor:
    """Return a clip (T, H, W, 3) uint8 with a rectangle of noise, equal in all frames.

    `rng` draws the rectangle's share of the frame's area, and its height / width on a logarithmic
    scale.
    """
    height, width = clip.shape[1:3]
    for _ in range(10):
        pixels = height * width * rng.uniform(*area)
        shape = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        box = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < box[0] < height and 0 < box[1] < width:
            top, left = rng.integers(height - box[0] + 1), rng.integers(width - box[1] + 1)
            noise = rng.normal(_NOISE_MEAN, _NOISE_STD, (*box, 3)).clip(0, 255).astype(np.uint8)
            clip = clip.clone()
            clip[:, top : top + box[0], left : left + box[1]] = torch.from_numpy(noise)
            break
    return clip


def _as_pictures(clip: torch.Tensor, operation: _OfPictures) -> torch.Tensor:
    """Apply an operation to the clip (T, H, W, 3) as images (T, 3, H, W), one per frame."""
    return operation(clip.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _as_one_picture(clip: torch.Tensor, operation: _OfPictures) -> torch.Tensor:
    """Apply an operation to the clip (T, H, W, 3) as one tall image (3, T * H, W)."""
    tall = operation(clip.flatten(0, 1).permute(2, 0, 1))
    return tall.permute(1, 2, 0).unflatten(0, clip.shape[:2])


def _frame_by_frame(
    clip: torch.Tensor, operation: Callable[[Image.Image], Image.Image]
) -> torch.Tensor:
    """Apply Pillow's operation to each frame: torchvision has no bicubic affine for tensors."""
    frames = [np.asarray(operation(Image.fromarray(frame))) for frame in clip.numpy()]
    return torch.from_numpy(np.stack(frames))


def _turned(clip: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate counterclockwise about the centre."""
    return _frame_by_frame(clip, lambda picture: picture.rotate(degrees, **_BICUBIC))


def _moved(
    clip: torch.Tensor,
    *,
    move: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Shift and shear: each pixel is read from an offset (x, y).

    ``move``: offsets as shares of the sides. ``shear``: pixels per pixel of distance from the upper
    left corner along the other side.
    """
    height, width = clip.shape[1:3]
    # (x, y) -> (a x + b y + c, d x + e y + f)
    places = (1, shear[0], move[0] * width, shear[1], 1, move[1] * height)
    affine = Image.Transform.AFFINE
    return _frame_by_frame(
        clip, lambda picture: picture.transform((width, height), affine, places, **_BICUBIC)
    )


def _moved_bilinearly(
    clip: torch.Tensor,
    *,
    angle: float = 0.0,
    move: tuple[float, float] = (0.0, 0.0),
    shear: tuple[float, float] = (0.0, 0.0),
) -> torch.Tensor:
    """Rotate by degrees, shift by shares of the sides (x, y), or shear by shares of a pixel."""
    move_all = partial(
        functional.affine,
        angle=angle,
        translate=[move[0] * clip.shape[2], move[1] * clip.shape[1]],
        scale=1.0,
        shear=[math.degrees(math.atan(share)) for share in shear],
        interpolation=InterpolationMode.BILINEAR,
        fill=list(map(float, _GREY)),
        center=None if angle else [0.0, 0.0],  # shears keep the upper left corner
    )
    return _as_pictures(clip, move_all)


def _adjusted(
    apply: Callable[[torch.Tensor, _OfPictures], torch.Tensor],
    adjust: Callable[[torch.Tensor, float], torch.Tensor],
) -> Operation:
    """Scale the colour, contrast, brightness or sharpness; 1 keeps the clip as it is."""
    return lambda clip, level, sign: apply(
        clip, lambda pictures: adjust(pictures, max(0.1, 1 + sign * 0.9 * level))
    )


def _solarize(clip: torch.Tensor, level: float, sign: int) -> torch.Tensor:
    threshold = 256 - int(256 * level)
    return clip if threshold > 255 else functional.solarize(clip, threshold)


def _solarize_add(clip: torch.Tensor, level: float, sign: int) -> torch.Tensor:
    return torch.where(clip < 128, clip + int(110 * level), clip)


OPERATIONS: dict[str, Operation] = {
    "auto_contrast": lambda clip, level, sign: _as_one_picture(clip, functional.autocontrast),
    "equalize": lambda clip, level, sign: _as_one_picture(clip, functional.equalize),
    "invert": lambda clip, level, sign: 255 - clip,
    "rotate": lambda clip, level, sign: _turned(clip, sign * 30 * level),
    "posterize": lambda clip, level, sign: functional.posterize(clip, max(1, 4 - int(4 * level))),
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "colour": _adjusted(_as_pictures, functional.adjust_saturation),
    "contrast": _adjusted(_as_one_picture, functional.adjust_contrast),
    "brightness": _adjusted(_as_pictures, functional.adjust_brightness),
    "sharpness": _adjusted(_as_pictures, functional.adjust_sharpness),
    "shear_x": lambda clip, level, sign: _moved(clip, shear=(sign * 0.3 * level, 0)),
    "shear_y": lambda clip, level, sign: _moved(clip, shear=(0, sign * 0.3 * level)),
    "move_x": lambda clip, level, sign: _moved(clip, move=(sign * 0.45 * level, 0)),
    "move_y": lambda clip, level, sign: _moved(clip, move=(0, sign * 0.45 * level)),
}
# Replacements for the geometric operations above
_BILINEAR: dict[str, Operation] = {
    "rotate": lambda clip, level, sign: _moved_bilinearly(clip, angle=-sign * 30 * level),
    "shear_x": lambda clip, level, sign: _moved_bilinearly(clip, shear=(sign * 0.3 * level, 0)),
    "shear_y": lambda clip, level, sign: _moved_bilinearly(clip, shear=(0, sign * 0.3 * level)),
    "move_x": lambda clip, level, sign: _moved_bilinearly(clip, move=(-sign * 0.45 * level, 0)),
    "move_y": lambda clip, level, sign: _moved_bilinearly(clip, move=(0, -sign * 0.45 * level)),
}
