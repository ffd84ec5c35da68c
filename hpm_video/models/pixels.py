"""Pixel input of models: bytes or floats, standardised per colour channel."""

import torch
from torch import Tensor

from hpm_video.models.tokens import gather_tokens
from hpm_video.runtime import gpu_kernels


def gather_patches(patches: Tensor, index: Tensor) -> Tensor:
    """Pick patches (B, N, P), floats or bytes, at index (B, K) -> (B, K, P) of the same type."""
    if patches.dtype != torch.uint8 or patches.shape[-1] % 4:
        return gather_tokens(patches, index)
    # Gathers move one number at a time, so move four bytes as one
    return gather_tokens(patches.view(torch.int32), index).view(torch.uint8)


def as_floats(patches: Tensor) -> Tensor:
    """Convert bytes to floats in [0, 1]; floats stay as they are."""
    return patches.float().div_(255) if patches.dtype == torch.uint8 else patches


def standardize(patches: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x - mean) / std of patches (..., P), bytes or floats in [0, 1]; mean and std (3,)."""
    kind = patches.device.type
    if (
        patches.dtype == torch.uint8
        and gpu_kernels.runs_triton(patches.device)
        and torch.is_autocast_enabled(kind)
    ):  # directly in the precision of the matrix product that follows
        dtype = torch.get_autocast_dtype(kind)
        standard: Tensor = torch.ops.hpm_video.standardize(patches, mean, std, dtype)
        return standard
    return ((as_floats(patches).unflatten(-1, (-1, 3)) - mean) / std).flatten(-2)


torch.library.define(
    "hpm_video::standardize",
    "(Tensor patches, Tensor mean, Tensor std, ScalarType dtype) -> Tensor",
)


@torch.library.impl("hpm_video::standardize", ("cpu", "cuda"))
def _standardize(patches: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    from hpm_video.models import pixels_triton  # noqa: PLC0415  # Triton is optional

    result = _like_standardize(patches, mean, std, dtype)
    with torch.cuda.device_of(patches):  # where Triton launches
        pixels_triton.standardize(patches.contiguous(), mean, std, result)
    return result


def _like_standardize(patches: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(patches, dtype=dtype, memory_format=torch.contiguous_format)


torch.library.register_fake("hpm_video::standardize", _like_standardize)
