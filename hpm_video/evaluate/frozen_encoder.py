"""A frozen encoder, without masks: what probes and features look at.

Notation as in `hpm_video.models.tokens`.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.config import ClipConfig, DataConfig
from hpm_video.config.values import Precision
from hpm_video.models.precision import autocast
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import Block, Encoder
from hpm_video.weights.checkpoint import load_checkpoint
from hpm_video.weights.load import encoder_of, pooling_norm_of


@dataclass(frozen=True)
class Backbone:
    """An encoder to be asked for features; gradients, dropout and stochastic depth are off.

    encoder: of all N tokens of a clip. norm: what follows the mean over tokens, see
    `pooling_norm_of`, so that a pooled feature is just what the head of a classifier sees.
    precision: of the forward pass.
    """

    encoder: Encoder
    norm: nn.Module
    precision: Precision

    @property
    def grid(self) -> TokenGrid:
        return self.encoder.grid

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def device(self) -> torch.device:
        return self.encoder.mean.device

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
    def pooled(self, tokens: Tensor, cells: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        """Tokens (B, N, D) -> one feature of each clip (B, C * D).

        The grid is cut into C cells, so many along (time, height, width), none above the grid's. A
        feature is the mean over the tokens of each, one after the other, width running fastest.
        """
        grid = self.grid
        volume = tokens.unflatten(1, (grid.time, grid.height, grid.width)).movedim(-1, 1)
        means = F.adaptive_avg_pool3d(volume, cells).flatten(2).mT
        return self.norm(means).flatten(1)

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
    kind: str
    step: int


def load_backbone(
    checkpoint: str | Path,
    *,
    precision: Precision,
    device: torch.device | str = "cpu",
    clip: ClipConfig | None = None,
) -> LoadedBackbone:
    """The encoder of a checkpoint of pre-training (the student's) or of fine-tuning.

    ``clip``: clips and tokens if not as in training; the weights are interpolated to fit them.
    Raises FileNotFoundError, or ValueError when it is no checkpoint of ours.
    """
    state = load_checkpoint(checkpoint)
    encoder, data = encoder_of(state, source=checkpoint, clip=clip)
    norm = pooling_norm_of(state, encoder.width, source=checkpoint)
    for module in (encoder, norm):
        module.requires_grad_(False).eval().to(device)
    kind, step = str(state["kind"]), int(state["step"])
    return LoadedBackbone(Backbone(encoder, norm, precision), data, kind, step)
