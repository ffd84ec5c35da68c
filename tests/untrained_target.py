"""A frozen target that needs no file: an encoder of the student's size that has learnt nothing."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hpm_video.config import PretrainConfig
from hpm_video.models.build import build
from hpm_video.models.tokens import patchify


def untrained_target(config: PretrainConfig) -> tuple[PretrainConfig, Callable[[Tensor], Tensor]]:
    """A config of loss.target=frozen that has the width of such a model, and the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        pixels = replace(config.loss, target="pixels", target_model=None)
        encoder = build(replace(config, loss=pixels)).encoder.requires_grad_(False).eval()
    loss = replace(config.loss, target_width=encoder.width)
    return replace(config, loss=loss), lambda clips: encoder(patchify(clips, encoder.grid))
