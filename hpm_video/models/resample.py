"""Weights on other clips than they were trained with: more tokens, or tokens of another shape.

More or fewer tokens: what belongs to places of the grid, such as positions, is interpolated. Tokens
of more or fewer frames or pixels: the embedding is resampled, so that it gives of a resized token
what it gave of the original. Notation as in `hpm_video.models.tokens`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.models.tokens import TokenGrid

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class TokenShape:
    """How much of a clip one token is: frames x pixels x pixels, e.g. (2, 16)."""

    tubelet_size: int
    patch_size: int

    @property
    def num_values(self) -> int:
        """Pixel values of a token, P."""
        return self.tubelet_size * self.patch_size**2 * 3

    def grid(self, *, num_frames: int, crop_size: int) -> TokenGrid:
        """The grid of such tokens in a square clip; ValueError where it does not divide evenly."""
        if num_frames % self.tubelet_size:
            raise ValueError(
                f"data.num_frames ({num_frames}) must be a multiple of "
                f"model.tubelet_size ({self.tubelet_size})"
            )
        if crop_size % self.patch_size:
            raise ValueError(
                f"data.crop_size ({crop_size}) must be a multiple of "
                f"model.patch_size ({self.patch_size})"
            )
        side = crop_size // self.patch_size
        return TokenGrid(num_frames // self.tubelet_size, side, side)

    def __str__(self) -> str:
        return f"{self.tubelet_size} x {self.patch_size} x {self.patch_size} pixels"


def interpolate_tokens(values: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """Values (N, D) at the tokens of one grid -> values (N', D) at those of another one.

    Both grids span the same clip, their tokens in the middle of equal cells. Linear along time,
    rows and columns, and held beyond the outermost tokens; the same grid gives the same values,
    bit for bit. With cells h wide, a function is met along each axis within h^2/8 of its second
    derivative, and where it is held within h/2 of its first.
    """
    if len(values) != old.num_tokens:
        raise ValueError(f"values ({len(values)}) must be one for each of {old}")
    if old == new:
        return values
    volume = values.T.reshape(1, -1, old.time, old.height, old.width)
    size = (new.time, new.height, new.width)
    volume = F.interpolate(volume, size=size, mode="trilinear", align_corners=False)
    return volume.reshape(-1, new.num_tokens).T


def resample_embedding(weight: Tensor, old: TokenShape, new: TokenShape) -> Tensor:
    """The weight (D, P) of a patch embedding -> (D, P') for tokens of another shape.

    Of a token and of the same token resized (linear, with antialiasing) the two give the same
    where it grows, and where it shrinks the nearest to that, in the mean over white noise
    (FlexiViT, arXiv 2212.08013, here along time too). Frames or pixels interpolated like an image
    would instead multiply what the embedding gives by the change of P.
    """
    if weight.shape[1] != old.num_values:
        raise ValueError(f"weight {tuple(weight.shape)} is none of an embedding of {old}")
    if old == new:
        return weight
    # Of weights the pseudo-inverse of what resizes pixels
    time = torch.linalg.pinv(_resizing(old.tubelet_size, new.tubelet_size))
    side = torch.linalg.pinv(_resizing(old.patch_size, new.patch_size))
    kernel = weight.double().unflatten(1, (old.tubelet_size, old.patch_size, old.patch_size, 3))
    # The resizing is a product of one matrix along each axis, and so is its pseudo-inverse
    kernel = torch.einsum("dtyxc,at,by,ex->dabec", kernel, time, side, side)
    return kernel.flatten(1).to(weight.dtype)


def resample_head(values: Tensor, old: TokenShape, new: TokenShape) -> Tensor:
    """The weight (P, D) or bias (P,) of a head that says pixels -> (P', D) or (P',): what it then
    says is what it said of tokens of the old shape, resized (linear, with antialiasing)."""
    if len(values) != old.num_values:
        raise ValueError(f"values {tuple(values.shape)} are none of a head for {old}")
    if old == new:
        return values
    time = _resizing(old.tubelet_size, new.tubelet_size)
    side = _resizing(old.patch_size, new.patch_size)
    pixels = values.double().unflatten(0, (old.tubelet_size, old.patch_size, old.patch_size, 3))
    pixels = torch.einsum("tyxc...,ta,yb,xe->abec...", pixels, time, side, side)
    return pixels.flatten(0, 3).to(values.dtype)


@dataclass(frozen=True)
class Tokens:
    """The tokens of clips: how many there are, and how much of a clip each of them is."""

    grid: TokenGrid
    shape: TokenShape


def fit_tokens(weights: Mapping[str, Tensor], prefix: str, old: Tokens, new: Tokens) -> Weights:
    """Weights of an encoder, whose names begin with ``prefix``, for other tokens than before.

    The patch embedding is resampled, a table of positions interpolated, where they are there and
    differ. What is not as ``old`` says is left as it is, for a strict loading to refuse.
    """
    fitting = dict(weights)
    embedding, positions = weights.get(f"{prefix}embed.weight"), weights.get(f"{prefix}positions")
    if embedding is not None and embedding.shape[1:] == (old.shape.num_values,):
        fitting[f"{prefix}embed.weight"] = resample_embedding(embedding, old.shape, new.shape)
    if positions is not None and len(positions) == old.grid.num_tokens:
        fitting[f"{prefix}positions"] = interpolate_tokens(positions, old.grid, new.grid)
    return fitting


def describe_fit(old: Tokens, new: Tokens, *, resampled: str = "patch embedding") -> list[str]:
    """What `fit_tokens` changes, in words for a log; or `resample_head`, of which it calls what is
    ``resampled``."""
    lines = []
    if old.grid != new.grid:
        lines.append(f"positions of {old.grid} interpolated to {new.grid}")
    if old.shape != new.shape:
        lines.append(f"{resampled} of {old.shape} resampled to {new.shape}")
    return lines


def _resizing(old: int, new: int) -> Tensor:
    """The matrix (old, new) that resizes ``old`` pixels in a row: pixels @ it are ``new`` ones."""
    # A row for each pixel. (As columns of images one pixel wide PyTorch 2.15 resizes them wrongly.)
    pixels = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(pixels, size=(old, new), mode="bilinear", antialias=True)[0, 0]
