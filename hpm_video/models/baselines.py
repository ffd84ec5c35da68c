"""Baseline classifiers from pytorchvideo, trained from scratch by the same loop.

SlowFast (arXiv 1812.03982), X3D (2004.04730) and MViT (2104.11227).
"""

import math

import torch
from pytorchvideo.models import hub
from pytorchvideo.models.x3d import create_x3d
from torch import Tensor

from hpm_video.models.classifier import Scored
from hpm_video.models.sizes import BASELINE_STRIDE, SLOW, check_baseline_clip
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD


class Baseline(Scored):
    """A pytorchvideo network for clips of one size, with the project's input and output."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        *,
        num_frames: int,
        crop_size: int,
        num_classes: int,
        head_dropout: float = 0.0,
        drop_path: float = 0.0,
    ) -> None:
        """``drop_path``: MViT only. Raises ValueError for clips that the network cannot take."""
        super().__init__()
        check_baseline_clip(name, num_frames=num_frames, crop_size=crop_size)
        self.num_classes = num_classes
        self.is_slowfast = name.startswith("slowfast")
        side = math.ceil(crop_size / BASELINE_STRIDE)
        if self.is_slowfast:
            self.network = getattr(hub, name)(
                model_num_class=num_classes,
                dropout_rate=head_dropout,
                head_pool_kernel_sizes=[(t, side, side) for t in (num_frames // SLOW, num_frames)],
            )
        elif name.startswith("x3d"):
            self.network = create_x3d(
                input_clip_length=num_frames,
                input_crop_size=crop_size,
                # XS, S and M differ in the size of their clips alone
                depth_factor=5.0 if name == "x3d_l" else 2.2,
                model_num_class=num_classes,
                dropout_rate=head_dropout,
                head_activation=None,
            )
        elif name.startswith("mvit"):
            self.network = getattr(hub, name)(
                spatial_size=crop_size,
                temporal_size=num_frames,
                head_num_classes=num_classes,
                head_dropout_rate=head_dropout,
                droppath_rate_block=drop_path,
            )
        else:
            raise ValueError(f"model.name ({name}) must be videomae, SlowFast, X3D or MViT")
        # (3, 1, 1, 1): per colour channel
        for part, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(part, torch.tensor(values)[:, None, None, None], persistent=False)

    def forward(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> logits (B, classes)."""
        # Clips may be channels-last in memory, which is slow for some convolutions
        pixels = (clips.contiguous() - self.mean) / self.std
        if self.is_slowfast:
            return self.network([pixels[:, :, ::SLOW], pixels])
        return self.network(pixels)
