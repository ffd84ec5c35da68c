"""Tokens: the grid, patches, gathering by index, and target normalisation.

Shape legend, used in every docstring of the package:

    B batch          T frames        H W pixels       C colour channels
    N tokens         V visible tokens                 M masked tokens (V + M = N)
    U mining units (tubes of ``tube_length`` grid steps)
    P pixel values per token (tubelet_size * patch_size * patch_size * 3)
    D width

Tokens are in raster order (time, row, column) everywhere. In a mask, True means masked.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hpm_video.models.grid import TokenGrid

__all__ = [
    "TokenGrid", "as_patches", "gather_tokens", "normalize_targets", "patchify", "scatter_tokens",
    "split_mask", "unpatchify",
]  # fmt: skip


def patchify(clips: Tensor, grid: TokenGrid) -> Tensor:
    """Cut clips (B, C, T, H, W) of any type into tokens (B, N, P), P in (t, y, x, c) order."""
    batch, channels, frames, height, width = clips.shape
    if frames % grid.time or height % grid.height or width % grid.width:
        raise ValueError(
            f"clips of {frames} frames, {height}x{width} pixels do not divide into "
            f"a grid of {grid.time}x{grid.height}x{grid.width} tokens"
        )
    t, y, x = frames // grid.time, height // grid.height, width // grid.width
    # (B, C, time, t, rows, y, columns, x) -> (B, time, rows, columns, t, y, x, C)
    patches = clips.reshape(batch, channels, grid.time, t, grid.height, y, grid.width, x)
    patches = patches.permute(0, 2, 4, 6, 3, 5, 7, 1)
    return patches.reshape(batch, grid.num_tokens, t * y * x * channels)


def as_patches(clips: Tensor, grid: TokenGrid) -> Tensor:
    """Clips (B, C, T, H, W), or patches, which are returned as they are -> patches (B, N, P)."""
    return clips if clips.dim() == 3 else patchify(clips, grid)


def unpatchify(patches: Tensor, grid: TokenGrid, *, tubelet_size: int, channels: int = 3) -> Tensor:
    """Reassemble tokens (B, N, P) into clips (B, C, T, H, W); the inverse of `patchify`.

    Patches are square; their side follows from P and ``tubelet_size``.
    """
    batch, num_tokens, values = patches.shape
    side = round((values / (tubelet_size * channels)) ** 0.5)
    if num_tokens != grid.num_tokens or tubelet_size * side * side * channels != values:
        raise ValueError(
            f"patches of shape {tuple(patches.shape)} do not fit a grid of {grid.num_tokens} "
            f"tokens, tubelet_size {tubelet_size} and {channels} channels"
        )
    clips = patches.reshape(
        batch, grid.time, grid.height, grid.width, tubelet_size, side, side, channels
    )
    # (B, time, rows, columns, t, y, x, C) -> (B, C, time, t, rows, y, columns, x)
    clips = clips.permute(0, 7, 1, 4, 2, 5, 3, 6)
    return clips.reshape(
        batch, channels, grid.time * tubelet_size, grid.height * side, grid.width * side
    )


def split_mask(mask: Tensor, num_visible: int | None = None) -> tuple[Tensor, Tensor]:
    """Ascending indices of the visible (B, V) and masked (B, M) tokens of a mask (B, N).

    Every row must mask the same number of tokens. Pass ``num_visible`` if it is known: counting
    synchronises with the device. Raises ValueError if rows differ.
    """
    if num_visible is None:
        counts = (~mask).sum(dim=1)
        num_visible = int(counts[0])
        if not bool((counts == num_visible).all()):
            raise ValueError(f"mask rows leave {counts.tolist()} tokens visible: must be equal")
    # A stable sort keeps raster order within both groups. Unlike boolean indexing it has a static
    # output shape: no synchronisation, no graph break.
    order = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return order[:, :num_visible], order[:, num_visible:]


def gather_tokens(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick tokens (B, N, D) at index (B, K) -> (B, K, D)."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def scatter_tokens(canvas: Tensor, index: Tensor, tokens: Tensor) -> Tensor:
    """A copy of canvas (B, N, D) with tokens (B, K, D) written at index (B, K)."""
    return canvas.scatter(1, index.unsqueeze(-1).expand_as(tokens), tokens)


def normalize_targets(patches: Tensor, channels: int = 3, eps: float = 1e-6) -> Tensor:
    """Standardise each token's pixels per colour channel, in float32: (..., P) -> (..., P).

    (x - mean) / (sqrt(var) + eps) with the unbiased variance over the channel's pixels. VideoMAE
    adds eps to the standard deviation; the image MAE pools channels and adds it to the variance.
    """
    count = patches.shape[-1] // channels
    # Sums over a dimension of three do not vectorise, so sum groups of pixels first
    group = math.gcd(count, 16)
    pixels = patches.float().unflatten(-1, (-1, group * channels))  # (..., groups, group * C)

    def sum_per_channel(values: Tensor) -> Tensor:
        """(..., groups, group * C) -> (..., 1, C)."""
        return values.sum(dim=-2).unflatten(-1, (group, channels)).sum(dim=-2, keepdim=True)

    def spread(statistic: Tensor) -> Tensor:
        """(..., 1, C) -> (..., 1, group * C)."""
        return statistic.expand(*statistic.shape[:-2], group, channels).flatten(-2).unsqueeze(-2)

    centred = pixels - spread(sum_per_channel(pixels) / count)
    deviation = (sum_per_channel(centred.square()) / (count - 1)).sqrt()
    return (centred * spread(1 / (deviation + eps))).flatten(-2)
