"""The reconstruction loss of masked patches with its own gradient: one clip at a time on CPUs, by
one kernel in each direction on GPUs."""

from typing import Any

import torch
from torch import Tensor

from hpm_video.models.pixels import as_floats, gather_patches
from hpm_video.models.tokens import normalize_targets

# Clips compared at a time, by kind of device; elsewhere all at once.
CLIPS_AT_ONCE = {"cpu": 1}  # whose cache then holds what the next operation reads


class PatchLoss(torch.autograd.Function):
    """`hpm_video.method.losses.patch_loss`; keeps the differences, one float32 each pixel value."""

    @staticmethod
    def forward(
        ctx: Any, reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool
    ) -> Tensor:
        difference = reconstruction.new_empty(reconstruction.shape, dtype=torch.float32)
        at_once = CLIPS_AT_ONCE.get(reconstruction.device.type, len(index))
        losses = []
        for first in range(0, len(index), at_once):
            clips = slice(first, first + at_once)
            targets = as_floats(gather_patches(patches[clips], index[clips]))
            if normalize:
                targets = normalize_targets(targets)
            torch.sub(reconstruction[clips].float(), targets.float(), out=difference[clips])
            losses.append(difference[clips].square().mean(dim=-1))
        ctx.save_for_backward(difference)
        ctx.dtype = reconstruction.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (difference,) = ctx.saved_tensors
        scale = grad_outputs[0][..., None] * (2 / difference.shape[-1])
        gradient = torch.empty_like(difference, dtype=ctx.dtype)
        torch.mul(difference, scale, out=gradient)
        return gradient, None, None, None


class FusedPatchLoss(torch.autograd.Function):
    """The same by Triton kernels; the backward pass makes the differences again, and keeps none."""

    @staticmethod
    def forward(
        ctx: Any, reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool
    ) -> Tensor:
        ctx.save_for_backward(reconstruction, patches, index)
        ctx.normalize = normalize
        losses: Tensor = torch.ops.hpm_video.patch_loss(reconstruction, patches, index, normalize)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        gradient = torch.ops.hpm_video.patch_loss_backward(
            grad_outputs[0], *ctx.saved_tensors, ctx.normalize
        )
        return gradient, None, None, None


torch.library.define(
    "hpm_video::patch_loss",
    "(Tensor reconstruction, Tensor patches, Tensor index, bool normalize) -> Tensor",
)
torch.library.define(
    "hpm_video::patch_loss_backward",
    "(Tensor of_losses, Tensor reconstruction, Tensor patches, Tensor index, bool normalize)"
    " -> Tensor",
)


@torch.library.impl("hpm_video::patch_loss", ("cpu", "cuda"))
def _forward(reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool) -> Tensor:
    from hpm_video.method import patch_triton  # noqa: PLC0415  # Triton is optional

    losses = _like_losses(reconstruction, patches, index, normalize)
    tensors = reconstruction.contiguous(), patches.contiguous(), index, losses
    with torch.cuda.device_of(reconstruction):  # where Triton launches
        patch_triton.forward(*tensors, normalize=normalize)
    return losses


@torch.library.impl("hpm_video::patch_loss_backward", ("cpu", "cuda"))
def _backward(
    of_losses: Tensor, reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool
) -> Tensor:
    from hpm_video.method import patch_triton  # noqa: PLC0415  # Triton is optional

    reconstruction = reconstruction.contiguous()
    gradient = torch.empty_like(reconstruction)
    tensors = of_losses, reconstruction, patches.contiguous(), index, gradient
    with torch.cuda.device_of(reconstruction):  # where Triton launches
        patch_triton.backward(*tensors, normalize=normalize)
    return gradient


def _like_losses(reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool) -> Tensor:
    return reconstruction.new_empty(index.shape, dtype=torch.float32)


def _like_gradient(
    of_losses: Tensor, reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool
) -> Tensor:
    return torch.empty_like(reconstruction)


torch.library.register_fake("hpm_video::patch_loss", _like_losses)
torch.library.register_fake("hpm_video::patch_loss_backward", _like_gradient)
