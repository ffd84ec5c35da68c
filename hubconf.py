"""Entry points of ``torch.hub``: ``torch.hub.load(FOLDER, ENTRY, source="local", …)``.

The models of `hpm_video.weights.export.timm_models`, randomly initialised or loaded with
``checkpoint=``. `encoder` and `classifier` load a checkpoint with its own settings.
"""

from __future__ import annotations

from typing import Any as _Any

dependencies = ["torch", "timm", "omegaconf", "safetensors"]

# torch.hub takes public names as entry points, hence the underscores.
from torch import nn as _nn  # noqa: E402 (torch.hub reads the line above first)

from hpm_video.config import ClipConfig as _ClipConfig  # noqa: E402
from hpm_video.weights.checkpoint import load_checkpoint as _load  # noqa: E402
from hpm_video.weights.export.program import ClipEncoder as _ClipEncoder  # noqa: E402
from hpm_video.weights.export.timm_models import (  # noqa: E402, F401
    hpm_vit_base_patch16_224,
    hpm_vit_giant_patch14_224,
    hpm_vit_huge_patch16_224,
    hpm_vit_large_patch16_224,
    hpm_vit_small_patch16_224,
    hpm_vit_tiny_patch16_224,
)
from hpm_video.weights.load import encoder_of as _encoder_of  # noqa: E402
from hpm_video.weights.load import load_classifier as _load_classifier  # noqa: E402


def encoder(checkpoint: str, **clip: _Any) -> _nn.Module:
    """Encoder of a checkpoint: clips (B, 3, T, H, W) in [0, 1] -> tokens (B, N, D).

    ``clip``: num_frames, crop_size, tubelet_size, patch_size, if not as in training.
    """
    found, _ = _encoder_of(_load(checkpoint), source=checkpoint, clip=_ClipConfig(**clip))
    return _ClipEncoder(found).eval()


def classifier(checkpoint: str, **clip: _Any) -> _nn.Module:
    """Classifier of a checkpoint: clips (B, 3, T, H, W) in [0, 1] -> logits (B, classes).

    ``clip``: see `encoder`.
    """
    return _load_classifier(checkpoint, _ClipConfig(**clip))[0].eval()
