"""A frozen encoder, without masks: what probes and features look at.

Notation as in `hpm_video.tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from hpm_video.checkpoint import load_checkpoint, load_encoder
from hpm_video.config import DataConfig, EncoderConfig, PretrainConfig
from hpm_video.evaluate import classifier_of
from hpm_video.loop import autocast
from hpm_video.models import Classifier, build_model, token_grid
from hpm_video.models.vit import Block, Encoder, position_table
from hpm_video.settings import config_from_dict
from hpm_video.tokens import TokenGrid, patchify


@dataclass(frozen=True)
class Backbone:
    """An encoder to be asked for features; gradients, dropout and stochastic depth are off.

    encoder: of all N tokens of a clip. norm: what follows the mean over tokens: nothing in
    pre-training, whose encoder ends with a norm; in a classifier the norm before its head, so that
    a pooled feature is just what the head sees. precision: of the forward pass.
    """

    encoder: Encoder
    norm: nn.Module
    precision: str

    @property
    def grid(self) -> TokenGrid:
        return self.encoder.grid

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def heads(self) -> int:
        """Attention heads of a block."""
        block = self.encoder.blocks[0]
        assert isinstance(block, Block)
        return block.attn.heads

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> tokens (B, N, D) float32, for the methods below."""
        was_training = self.encoder.training
        self.encoder.eval()
        with autocast(clips.device, self.precision):
            tokens: Tensor = self.encoder(patchify(clips, self.grid))
        self.encoder.train(was_training)
        return tokens.float()

    @torch.no_grad()
    def pooled(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> one feature of each clip (B, D)."""
        return self.norm(tokens.mean(dim=1))

    @torch.no_grad()
    def steps(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> a feature of each step of the grid in time (B, time, D)."""
        return self.norm(tokens.unflatten(1, (self.grid.time, -1)).mean(dim=2))

    @torch.no_grad()
    def tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, N, D) -> features of each of them (B, N, D)."""
        return self.norm(tokens)


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone from a checkpoint, how its clips were sampled, and where it is from."""

    backbone: Backbone
    data: DataConfig
    tubelet_size: int
    kind: str
    step: int


def load_backbone(
    checkpoint: str | Path,
    *,
    precision: str,
    device: torch.device | str = "cpu",
    num_frames: int | None = None,
) -> LoadedBackbone:
    """The encoder of a checkpoint of pre-training (the student's) or of fine-tuning.

    ``num_frames``: of its clips, if not as in training; positions are then interpolated in time.
    Raises FileNotFoundError, or ValueError when it is no checkpoint of ours.
    """
    state = load_checkpoint(checkpoint)
    kind, step, trained = str(state["kind"]), int(state["step"]), state.get("trained_grid")
    model_config: EncoderConfig
    norm: nn.Module
    data: DataConfig
    if kind == "pretrain":
        pretrain = config_from_dict(PretrainConfig, state["config"])
        model_config, data, norm = pretrain.model, pretrain.data, nn.Identity()
        grid = token_grid(model_config, num_frames=data.num_frames, crop_size=data.crop_size)
        encoder = build_model(model_config, grid, predict_loss=False).encoder
        load_encoder(encoder, state, source=checkpoint)
    else:
        model, config, _ = classifier_of(state, source=checkpoint)
        if not isinstance(model, Classifier):
            raise ValueError(
                f"checkpoint ({checkpoint}) is of the baseline {config.model.name}: features and "
                "probes need an encoder of VideoMAE's kind"
            )
        encoder, norm, data, model_config = model.encoder, model.norm, config.data, config.model
    if num_frames is not None and num_frames != data.num_frames:
        if num_frames % model_config.tubelet_size:
            raise ValueError(
                f"window ({num_frames}) must be a multiple of the checkpoint's tubelet_size "
                f"({model_config.tubelet_size})"
            )
        data = replace(data, num_frames=num_frames)
        grid = token_grid(model_config, num_frames=num_frames, crop_size=data.crop_size)
        trained_grid = encoder.grid if trained is None else TokenGrid(*trained)
        encoder.positions = position_table(grid, encoder.width, trained_grid=trained_grid)
        encoder.grid = grid
    for module in (encoder, norm):
        module.requires_grad_(False).eval().to(device)
    backbone = Backbone(encoder, norm, precision)
    return LoadedBackbone(backbone, data, model_config.tubelet_size, kind, step)
