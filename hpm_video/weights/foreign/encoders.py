"""Frozen encoders of any origin, which give features of whole clips on our token grid.

They handle what a model itself expects: resolution, normalisation of pixels, frames per token,
class tokens and registers. Nothing is downloaded, and no code from model folders is run.

Notation as in `hpm_video.models.tokens`; S is the model's input size in pixels, L the number of
layers.
"""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.models.pixels import as_floats
from hpm_video.models.precision import no_autocast
from hpm_video.models.tokens import TokenGrid
from hpm_video.weights.foreign.encoder_sources import (
    OF_HUGGING_FACE,
    OF_TIMM,
    Asked,
    HuggingFaceModel,
    OurEncoder,
    Source,
    TimmModel,
    model_type,
    told_as,
)
from hpm_video.weights.hub import local_model
from hpm_video.weights.misfits import is_finite


def frozen_encoder(
    model: str,
    grid: TokenGrid,
    *,
    num_frames: int,
    layers: Sequence[int] = (-1,),
    weights: str | None = None,
    name: str = "encoder",
) -> "FrozenEncoder":
    """Read an encoder onto the CPU.

    ``model``: one of our checkpoints or run folders, a file that `import_weights` reads, a Hugging
    Face folder, or timm:NAME with the file ``weights``. ``grid``: token grid of the features.
    ``num_frames``: frames per clip. ``layers``: layers that give features, 0 for the first block,
    -1 for the last. ``name``: name of the setting in messages.

    Raises FileNotFoundError, or ValueError, one line, if the model is unknown, has no weights, or
    does not fit such clips.
    """
    asked = Asked(num_frames, layers, weights, name=name)
    return FrozenEncoder(source_of_others(model, asked) or OurEncoder(model, asked), grid)


def source_of_others(model: str, asked: Asked) -> Source | None:
    """The model of another library if ``model`` names one; None for our models and for weights that
    we import. Raises like `frozen_encoder`."""
    if asked.weights is not None and not model.startswith(OF_TIMM):
        raise ValueError(
            f"{asked.weights_name} ({asked.weights}) must be left out for {asked.name} ({model}): "
            "that model has its own weights"
        )
    kind = library_model(model, name=asked.name)
    if kind is None:
        return None
    source: Source
    if kind == OF_TIMM:
        source = TimmModel(model.removeprefix(OF_TIMM), asked)
    else:
        source = HuggingFaceModel(local_model(model), kind, asked)
    for name, tensor in source.state_dict().items():
        if not is_finite(tensor):
            raise ValueError(
                f"{asked.name} ({model}) must hold finite numbers, but {name} has NaN or infinity; "
                "download the weights again"
            )
    return source


def library_model(model: str, *, name: str) -> str | None:
    """The kind of another library's model: ``timm:`` or a model_type of Hugging Face.

    None for our models and for weights that we import. Raises FileNotFoundError, or ValueError for
    an unknown model_type.
    """
    if model.startswith(OF_TIMM):
        return OF_TIMM
    folder = local_model(model)
    if not folder.exists():
        raise FileNotFoundError(f"{name} ({model}) does not exist")
    with told_as(name):
        kind = model_type(folder)
    if kind in (None, "videomae"):
        return None
    if kind not in OF_HUGGING_FACE:
        known = ", ".join(("videomae", *OF_HUGGING_FACE))
        raise ValueError(f"{name} ({model}) has model_type {kind}: must be one of {known}")
    return str(kind)


class FrozenEncoder(nn.Module):
    """Features of whole clips, without gradients, resampled to our token grid.

    Clips (B, 3, T, H, W), floats in [0, 1] or bytes -> (B, N, L * D) float32, layers concatenated.
    Pixels are resized to the model's input size, bilinear and antialiased. Along each axis, a finer
    grid of features is averaged over the area of our tokens, a coarser one is interpolated. An
    image model sees every frame, and a token gets the mean over its frames.

    width: features per token and layer, D.
    """

    def __init__(self, source: Source, grid: TokenGrid) -> None:
        super().__init__()
        self.source, self.width = source, source.width
        old, new = source.grid, grid
        axes = (old.time, new.time), (old.height, new.height), (old.width, new.width)
        for axis, sizes in enumerate(axes):
            self.register_buffer(f"to_grid_{axis}", resizing(*sizes), persistent=False)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, clips: Tensor) -> Tensor:
        side = self.source.side
        if clips.shape[-2:] != (side, side):
            frames = as_floats(clips).transpose(1, 2)  # (B, T, 3, H, W)
            resized = F.interpolate(
                frames.flatten(0, 1), (side, side), mode="bilinear", antialias=True
            )
            clips = resized.unflatten(0, frames.shape[:2]).transpose(1, 2)
        return torch.cat([self._on_grid(layer) for layer in self.source(clips)], dim=-1)

    def describe(self) -> str:
        """Input and output sizes, for the log."""
        source = self.source
        return (
            f"{self.width} features per token and layer, clips of {source.side} x "
            f"{source.side} pixels, {source.grid}"
        )

    def digest(self) -> str:
        """SHA-256 of the weights."""
        found = hashlib.sha256()
        for name, value in sorted(self.source.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    def _on_grid(self, features: Tensor) -> Tensor:
        """(B, t, h, w, D) on the model's grid -> (B, N, D) on ours."""
        features = features.float()
        with no_autocast(features):
            for axis in range(3):
                weights = self.get_buffer(f"to_grid_{axis}")
                if weights.shape[0] != weights.shape[1]:
                    moved = features.movedim(1 + axis, -2)  # (…, old, D)
                    features = (weights @ moved).movedim(-2, 1 + axis)
        return features.flatten(1, 3)


def resizing(old: int, new: int) -> Tensor:
    """The matrix (new, old) that resamples an axis from ``old`` equal cells to ``new`` ones.

    With fewer new cells, each is the mean over the area it covers; otherwise linear interpolation.
    """
    if new >= old:
        cells = torch.eye(old)[None]
        return F.interpolate(cells, size=new, mode="linear", align_corners=False)[0].T.contiguous()
    edges = torch.arange(new + 1, dtype=torch.float64) * old / new
    place = torch.arange(old, dtype=torch.float64)
    ends = torch.minimum(edges[1:, None], place + 1)
    starts = torch.maximum(edges[:-1, None], place)
    return ((ends - starts).clamp(min=0) * new / old).float()
