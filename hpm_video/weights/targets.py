"""The frozen model whose features pre-training reconstructs (loss.target=frozen)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hpm_video.config import LossConfig, PretrainConfig
from hpm_video.models.build import token_grid
from hpm_video.weights.foreign.encoders import FrozenEncoder, frozen_encoder


def load_target(
    config: PretrainConfig, device: torch.device | str = "cpu"
) -> tuple[PretrainConfig, FrozenEncoder | None]:
    """Load the model of loss.target=frozen, and set its width in the config.

    Other targets give the unchanged config and None. Raises FileNotFoundError, or ValueError if
    the model does not match the settings.
    """
    loss, data = config.loss, config.data
    if loss.target != "frozen":
        return config, None
    assert loss.target_model is not None
    encoder = frozen_encoder(
        loss.target_model,
        token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size),
        num_frames=data.num_frames,
        layers=loss.target_layers,
        weights=loss.target_weights,
        name="loss.target_model",
    )
    if loss.target_width not in (None, encoder.width):
        raise ValueError(
            f"loss.target_width ({loss.target_width}) must be {encoder.width}, the width of "
            f"loss.target_model ({loss.target_model}); leave loss.target_width out"
        )
    config = replace(config, loss=replace(loss, target_width=encoder.width))
    return config, encoder.to(device)


def check_digest(
    loss: LossConfig, digest: str | None, state: Mapping[str, Any], *, source: str | Path | None
) -> None:
    """Raise ValueError if the target's weights differ from those that ``state``, the checkpoint
    ``source``, was trained with."""
    before = state.get("target_digest")
    if digest is not None and before is not None and digest != before:
        raise ValueError(
            f"loss.target_model ({loss.target_model}) has changed since checkpoint ({source}) was "
            "written; restore its weights, or start a new run"
        )
