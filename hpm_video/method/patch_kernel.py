"""The reconstruction loss of masked patches, some clips at a time and with its own gradient."""

from typing import Any

import torch
from torch import Tensor

from hpm_video.models.tokens import gather_pixels, normalize_targets

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
            targets = gather_pixels(patches[clips], index[clips])
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
