"""The loader of the published VideoMAE code, rebuilt: decord, then PIL frame by frame, then floats.

Only for comparison. What it returns is what the official pre-training data set returns for a video:
one clip, cropped, resized and normalised, as float32 of shape (3, T, S, S).
"""

from __future__ import annotations

from collections.abc import Sequence

import decord
import numpy as np
import torch
from PIL import Image

from hpm_video.data.video.crops import Box
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD


def classic_clip(path: str, indices: Sequence[int], box: Box, size: int) -> torch.Tensor:
    """Read frames, crop `box` out of each and make the (3, T, size, size) clip of them."""
    reader = decord.VideoReader(path, num_threads=1)
    frames = reader.get_batch(list(indices)).asnumpy()
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    crops = [
        image.crop(corners).resize((size, size), Image.Resampling.BILINEAR) for image in images
    ]
    # (S, S, T * 3) -> (T * 3, S, S)
    stacked = np.concatenate([np.array(crop) for crop in crops], axis=2)
    planes = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    means, stds = IMAGENET_MEAN * len(crops), IMAGENET_STD * len(crops)
    for plane, mean, std in zip(planes, means, stds, strict=True):
        plane.sub_(mean).div_(std)
    return planes.view(len(crops), 3, size, size).transpose(0, 1)
