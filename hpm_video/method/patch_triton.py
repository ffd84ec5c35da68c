"""Triton kernels of `hpm_video.method.losses.patch_loss`: a masked token each, all in registers."""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _normalized(pixels, inside, VALUES: tl.constexpr, BLOCK: tl.constexpr, CHANNELS: tl.constexpr):
    """`normalize_targets` of one token, pixels (BLOCK,) of which VALUES are inside."""
    count = VALUES // CHANNELS
    channel = tl.arange(0, BLOCK) % CHANNELS
    for c in tl.static_range(CHANNELS):
        own = inside & (channel == c)
        centred = tl.where(own, pixels - tl.sum(tl.where(own, pixels, 0.0)) / count, 0.0)
        deviation = tl.sqrt(tl.sum(centred * centred) / (count - 1))
        pixels = tl.where(own, centred / (deviation + 1e-6), pixels)
    return pixels


@triton.jit
def _difference(
    reconstruction_ptr,
    patches_ptr,
    index_ptr,
    index_stride,
    num_tokens,
    num_masked,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Reconstruction minus target of a program's token: (BLOCK,), 0 outside."""
    place = tl.program_id(0).to(tl.int64)
    clip = place // num_masked
    token = clip * num_tokens + tl.load(index_ptr + clip * index_stride + place % num_masked)
    value = tl.arange(0, BLOCK)
    inside = value < VALUES
    pixels = tl.load(patches_ptr + token * VALUES + value, mask=inside, other=0).to(tl.float32)
    if BYTES:
        pixels = tl.div_rn(pixels, 255.0)  # as PyTorch divides; `/` may be off by one digit
    if NORMALIZE:
        pixels = _normalized(pixels, inside, VALUES, BLOCK, CHANNELS)
    ours = tl.load(reconstruction_ptr + place * VALUES + value, mask=inside, other=0.0)
    return tl.where(inside, ours.to(tl.float32) - pixels, 0.0)


@triton.jit
def _forward(
    reconstruction_ptr,
    patches_ptr,
    index_ptr,
    losses_ptr,
    index_stride,
    num_tokens,
    num_masked,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BYTES: tl.constexpr,
):
    difference = _difference(
        reconstruction_ptr,
        patches_ptr,
        index_ptr,
        index_stride,
        num_tokens,
        num_masked,
        VALUES,
        BLOCK,
        CHANNELS,
        NORMALIZE,
        BYTES,
    )
    tl.store(losses_ptr + tl.program_id(0), tl.sum(difference * difference) / VALUES)


@triton.jit
def _backward(
    reconstruction_ptr,
    patches_ptr,
    index_ptr,
    of_losses_ptr,
    gradient_ptr,
    index_stride,
    clip_stride,
    token_stride,
    num_tokens,
    num_masked,
    VALUES: tl.constexpr,
    BLOCK: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    BYTES: tl.constexpr,
):
    difference = _difference(
        reconstruction_ptr,
        patches_ptr,
        index_ptr,
        index_stride,
        num_tokens,
        num_masked,
        VALUES,
        BLOCK,
        CHANNELS,
        NORMALIZE,
        BYTES,
    )
    place = tl.program_id(0).to(tl.int64)
    clip, token = place // num_masked, place % num_masked
    scale = tl.load(of_losses_ptr + clip * clip_stride + token * token_stride) * (2.0 / VALUES)
    value = tl.arange(0, BLOCK)
    gradient = (difference * scale).to(gradient_ptr.dtype.element_ty)
    tl.store(gradient_ptr + place * VALUES + value, gradient, mask=value < VALUES)


def _settings(patches: Tensor, *, normalize: bool) -> dict[str, Any]:
    values = patches.shape[-1]
    block = triton.next_power_of_2(values)
    return {
        "VALUES": values,
        "BLOCK": block,
        "CHANNELS": 3,
        "NORMALIZE": normalize,
        "BYTES": patches.dtype == torch.uint8,
        "num_warps": 4 if block <= 2048 else 8,
    }


def forward(
    reconstruction: Tensor, patches: Tensor, index: Tensor, losses: Tensor, *, normalize: bool
) -> None:
    """Fill losses (B, M) of tokens (B, M, P) against patches (B, N, P) at index (B, M)."""
    assert index.stride(1) == 1
    sizes = index.stride(0), patches.shape[1], index.shape[1]
    settings = _settings(patches, normalize=normalize)
    _forward[(losses.numel(),)](reconstruction, patches, index, losses, *sizes, **settings)


def backward(
    of_losses: Tensor,
    reconstruction: Tensor,
    patches: Tensor,
    index: Tensor,
    gradient: Tensor,
    *,
    normalize: bool,
) -> None:
    """Fill the gradient of the tokens (B, M, P) from that of their losses (B, M)."""
    sizes = index.stride(0), *of_losses.stride(), patches.shape[1], index.shape[1]
    settings = _settings(patches, normalize=normalize)
    _backward[(index.numel(),)](
        reconstruction, patches, index, of_losses, gradient, *sizes, **settings
    )
