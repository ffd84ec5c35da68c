"""Adapts weights to other clip sizes: another number of tokens, or tokens of another shape.

For another number of tokens, positions are interpolated. For tokens of more or fewer frames or
pixels, the patch embedding is resampled so that a resized token has the same embedding as the
original. Notation as in `hpm_video.models.tokens`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.models.grid import TokenGrid, TokenShape

Weights = dict[str, Tensor]


def interpolate_tokens(values: Tensor, old: TokenGrid, new: TokenGrid) -> Tensor:
    """Interpolate values (N, D) at the tokens of one grid to another grid: -> (N', D).

    Both grids span the same clip, with tokens at the centres of equal cells. Interpolation is
    linear along time, rows and columns, and constant beyond the outermost tokens. The same grid
    returns the values bit for bit. With cell width h, the error along each axis is at most
    h^2 / 8 * |f''|, or h / 2 * |f'| beyond the outermost tokens.
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
    """Resample the weight (D, P) of a patch embedding to tokens of another shape: -> (D, P').

    The new embedding of a token resized to the new shape (linear, with antialiasing) equals the old
    embedding of the original if the token grows; if it shrinks, it is the least-squares fit over
    white noise (FlexiViT, arXiv 2212.08013, here along time as well). Interpolating the weights
    like an image would scale embeddings by P' / P instead.
    """
    if weight.shape[1] != old.num_values:
        raise ValueError(f"weight {tuple(weight.shape)} does not fit an embedding of {old}")
    if old == new:
        return weight
    # Weights are multiplied with the pseudo-inverse of the matrix that resizes pixels
    time = torch.linalg.pinv(_resizing(old.tubelet_size, new.tubelet_size))
    side = torch.linalg.pinv(_resizing(old.patch_size, new.patch_size))
    kernel = weight.double().unflatten(1, (old.tubelet_size, old.patch_size, old.patch_size, 3))
    # The resizing is a product of one matrix along each axis, and so is its pseudo-inverse
    kernel = torch.einsum("dtyxc,at,by,ex->dabec", kernel, time, side, side)
    return kernel.flatten(1).to(weight.dtype)


def resample_head(values: Tensor, old: TokenShape, new: TokenShape) -> Tensor:
    """Resample a head that outputs pixels: weight (P, D) or bias (P,) -> (P', D) or (P',).

    The new output equals the old one resized to the new token shape (linear, with antialiasing).
    """
    if len(values) != old.num_values:
        raise ValueError(f"values {tuple(values.shape)} do not fit a head for {old}")
    if old == new:
        return values
    time = _resizing(old.tubelet_size, new.tubelet_size)
    side = _resizing(old.patch_size, new.patch_size)
    pixels = values.double().unflatten(0, (old.tubelet_size, old.patch_size, old.patch_size, 3))
    pixels = torch.einsum("tyxc...,ta,yb,xe->abec...", pixels, time, side, side)
    return pixels.flatten(0, 3).to(values.dtype)


@dataclass(frozen=True)
class Tokens:
    """The tokens of a clip: their grid and the extent of each."""

    grid: TokenGrid
    shape: TokenShape


def fit_tokens(weights: Mapping[str, Tensor], prefix: str, old: Tokens, new: Tokens) -> Weights:
    """Adapt an encoder's weights, whose names start with ``prefix``, to other tokens.

    The patch embedding is resampled and stored positions are interpolated, if present. Tensors that
    do not match ``old`` stay unchanged, so that strict loading refuses them.
    """
    fitting = dict(weights)
    embedding, positions = weights.get(f"{prefix}embed.weight"), weights.get(f"{prefix}positions")
    if embedding is not None and embedding.shape[1:] == (old.shape.num_values,):
        fitting[f"{prefix}embed.weight"] = resample_embedding(embedding, old.shape, new.shape)
    if positions is not None and len(positions) == old.grid.num_tokens:
        fitting[f"{prefix}positions"] = interpolate_tokens(positions, old.grid, new.grid)
    return fitting


def describe_fit(old: Tokens, new: Tokens, *, resampled: str = "patch embedding") -> list[str]:
    """Log lines on the changes that `fit_tokens` (or `resample_head`) makes.

    ``resampled``: name of the resampled part.
    """
    lines = []
    if old.grid != new.grid:
        lines.append(f"positions of {old.grid} interpolated to {new.grid}")
    if old.shape != new.shape:
        lines.append(f"{resampled} of {old.shape} resampled to {new.shape}")
    return lines


def _resizing(old: int, new: int) -> Tensor:
    """The matrix (old, new) that resizes a row of ``old`` pixels to ``new``: pixels @ matrix."""
    # One row per pixel: PyTorch 2.15 resizes columns of images one pixel wide wrongly
    pixels = torch.eye(old, dtype=torch.float64)[None, None]
    return F.interpolate(pixels, size=(old, new), mode="bilinear", antialias=True)[0, 0]
