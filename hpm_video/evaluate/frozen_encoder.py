"""A frozen encoder without masks, for probes and features.

Notation as in `hpm_video.models.tokens`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.config import ClipConfig, DataConfig, FrozenEncoderConfig, LabelsConfig
from hpm_video.config.values import Precision
from hpm_video.models.precision import autocast
from hpm_video.models.sizes import check_layers
from hpm_video.models.tokens import TokenGrid, patchify
from hpm_video.models.vit import Block, Encoder
from hpm_video.weights.foreign.account import Imported
from hpm_video.weights.foreign.architecture import Assumptions
from hpm_video.weights.foreign.encoder_sources import OF_TIMM, Asked, Source
from hpm_video.weights.foreign.encoders import library_model, source_of_others
from hpm_video.weights.foreign.formats import IMAGE
from hpm_video.weights.foreign.to_ours import import_weights
from hpm_video.weights.foreign.weight_files import read_weights
from hpm_video.weights.load import StoredLists, encoder_of, lists_in, pooling_norm_of


@dataclass(frozen=True)
class Backbone:
    """A frozen encoder for features: no gradients, dropout or stochastic depth.

    encoder: encodes all N tokens of a clip. norm: follows the mean over tokens (`pooling_norm_of`),
    so that a pooled feature equals the input of a classifier's head. precision: of the forward
    pass. layers: the L blocks to take features from; models of other libraries are built for
    theirs.
    """

    encoder: Encoder | Source
    norm: nn.Module
    precision: Precision
    layers: tuple[int, ...] = (-1,)

    @property
    def grid(self) -> TokenGrid:
        return self.encoder.grid

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def num_tokens(self) -> int:
        """Tokens per clip, over all layers."""
        return len(self.layers) * self.grid.num_tokens

    @property
    def feature_width(self) -> int:
        """Width of the pooled feature of one cell."""
        return len(self.layers) * self.width

    @property
    def device(self) -> torch.device:
        return next(self.encoder.parameters()).device

    @property
    def heads(self) -> int:
        """Attention heads of a block, or the usual number for this width."""
        if isinstance(self.encoder, Source):
            most = max(self.width // 64, 1)
            return next(heads for heads in range(most, 0, -1) if self.width % heads == 0)
        block = self.encoder.blocks[0]
        assert isinstance(block, Block)
        return block.attn.heads

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips (B, 3, T, H, W) in [0, 1] -> tokens (B, L * N, D) float32, layer by layer: the
        input of the methods below."""
        was_training = self.encoder.training
        self.encoder.eval()
        with autocast(clips.device, self.precision):
            if isinstance(self.encoder, Source):
                found = [layer.flatten(1, 3) for layer in self.encoder(clips)]
            elif self.layers == (-1,):
                found = [self.encoder(patchify(clips, self.grid))]
            else:
                found = self.encoder.at_layers(patchify(clips, self.grid), self.layers)
        self.encoder.train(was_training)
        return torch.cat([layer.float() for layer in found], dim=1)

    @torch.no_grad()
    def pooled(self, tokens: Tensor, cells: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        """Tokens (B, L * N, D) -> one feature per clip (B, L * C * D), layer by layer.

        ``cells``: number of cells along (time, height, width), C in all, at most those of the grid.
        The feature concatenates the mean over the tokens of each cell, with width varying fastest.
        """
        grid = self.grid
        layers = tokens.unflatten(1, (-1, grid.num_tokens)).flatten(0, 1)  # (B * L, N, D)
        volume = layers.unflatten(1, (grid.time, grid.height, grid.width)).movedim(-1, 1)
        means = F.adaptive_avg_pool3d(volume, cells).flatten(2).mT
        return self.norm(means).reshape(len(tokens), -1)

    @torch.no_grad()
    def steps(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L * N, D) -> one feature per time step of the grid (B, time, L * D)."""
        means = tokens.unflatten(1, (len(self.layers), self.grid.time, -1)).mean(dim=3)
        return self.norm(means).transpose(1, 2).flatten(2)

    @torch.no_grad()
    def tokens(self, tokens: Tensor) -> Tensor:
        """Tokens (B, L * N, D) -> one feature per token (B, L * N, D)."""
        return self.norm(tokens)


@dataclass(frozen=True)
class LoadedBackbone:
    """A backbone, its clip sampling, and its origin: kind and, for our checkpoints, step.

    notes: assumptions made while loading.
    """

    backbone: Backbone
    data: DataConfig
    kind: str
    step: int | None
    notes: tuple[str, ...] = ()


def load_backbone(
    model: str | Path,
    *,
    precision: Precision,
    device: torch.device | str = "cpu",
    clip: ClipConfig | None = None,
    settings: FrozenEncoderConfig | None = None,
) -> LoadedBackbone:
    """Load an encoder of any origin.

    That is one of our checkpoints (the student of a pre-training, or a fine-tuning), a file that
    `import_weights` knows, or a model of another library (`library_model`). ``clip``: clips and
    tokens, if not as in training; our weights are interpolated to fit. Raises FileNotFoundError, or
    ValueError for an unknown model and for settings that are missing or do not apply.
    """
    clip, settings, model = clip or ClipConfig(), settings or FrozenEncoderConfig(), str(model)
    make = _load_ours if library_model(model, name="model") is None else _load_others
    loaded = make(model, clip, settings, precision)
    for module in (loaded.backbone.encoder, loaded.backbone.norm):
        module.requires_grad_(False).eval().to(device)
    return loaded


def _load_ours(
    model: str, clip: ClipConfig, settings: FrozenEncoderConfig, precision: Precision
) -> LoadedBackbone:
    if settings.weights is not None:
        raise ValueError(
            f"encoder.weights ({settings.weights}) must be left out for model ({model}): that "
            "model has its own weights"
        )
    colours = [None if c is None else (c[0], c[1], c[2]) for c in (settings.mean, settings.std)]
    assumptions = Assumptions(
        sampling=clip.sampling, frame_stride=clip.frame_stride, mean=colours[0], std=colours[1]
    )
    found = import_weights(model, assumptions=assumptions)
    state = found.state
    if found.architecture is not None:
        _check_imported(found, model, clip)
    elif settings.mean is not None:
        raise ValueError(
            f"encoder.mean ({settings.mean}) must be left out for model ({model}): that model has "
            "its own"
        )
    encoder, data = encoder_of(state, source=model, clip=clip)
    check_layers(settings.layers, len(encoder.blocks), setting="encoder.layers")
    norm = pooling_norm_of(state, encoder.width, source=model)
    kind = str(state["kind"]) if found.architecture is None else found.words
    step = None if found.architecture is not None else int(state["step"])
    backbone = Backbone(encoder, norm, precision, tuple(settings.layers))
    return LoadedBackbone(backbone, data, kind, step, found.notes)


def _check_imported(found: Imported, model: str, clip: ClipConfig) -> None:
    """Raise ValueError for an image model, or if the settings do not define the frames it sees."""
    assert found.architecture is not None
    if found.words == IMAGE.words:
        raise ValueError(
            f"model ({model}) is an image model; name its architecture too, such as "
            f"timm:vit_base_patch16_224 encoder.weights={model}"
        )
    if not found.architecture.knows_frames:
        _require_frames(model, clip, has_length=True)


def _load_others(
    model: str, clip: ClipConfig, settings: FrozenEncoderConfig, precision: Precision
) -> LoadedBackbone:
    kind = library_model(model, name="model")
    _require_frames(model, clip, has_length=kind == "vjepa2")
    for name in ("patch_size", "tubelet_size"):
        if (value := getattr(clip, name)) is not None:
            raise ValueError(
                f"clip.{name} ({value}) must be left out for model ({model}): its tokens are fixed"
            )
    asked = Asked(
        clip.num_frames,
        settings.layers,
        settings.weights,
        side=clip.crop_size,
        mean=settings.mean,
        std=settings.std,
        name="model",
        group="encoder.",
        clip="clip.",
    )
    source = source_of_others(model, asked)
    assert source is not None
    given: dict[str, Any] = {n: getattr(clip, n) for n in ("sampling", "frame_stride", "fps")}
    if clip.fps is not None:
        given["frame_stride"] = clip.frame_stride or 1
    data = DataConfig(
        num_frames=source.num_frames,
        crop_size=source.side,
        antialias=clip.antialias is not False,
        **{name: value for name, value in given.items() if value is not None},
    )
    backbone = Backbone(source, nn.Identity(), precision, tuple(settings.layers))
    return LoadedBackbone(
        backbone, data, model if kind == OF_TIMM else f"transformers {kind}", None
    )


def _require_frames(model: str, clip: ClipConfig, *, has_length: bool) -> None:
    """Raise ValueError unless the settings define the frames of a video that a model sees."""
    missing = [] if has_length or clip.num_frames else ["clip.num_frames=16"]
    if not (clip.frame_stride or clip.fps) and clip.sampling not in ("uniform", "videomae_ssv2"):
        missing.append(
            "clip.frame_stride=4 (or clip.fps=8, or clip.sampling=uniform for the whole video)"
        )
    if missing:
        raise ValueError(
            f"model ({model}) does not store which frames of a video it takes; add "
            f"{' '.join(missing)}, or other values"
        )


def stored_lists(model: str) -> StoredLists:
    """Labelled lists in a model's settings; empty for models that are not ours."""
    state = None if library_model(model, name="model") else read_weights(model).state
    return StoredLists([], [], None, LabelsConfig()) if state is None else lists_in(state)
