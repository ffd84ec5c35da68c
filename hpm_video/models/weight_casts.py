"""Weights in the precision in which products take them: those of a block at once on a GPU.

Autocast casts each weight when a product needs it, and each gradient on its way back: 16 kernels of
a block that move few bytes. One operator over all of a block's weights takes one each way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpm_video.runtime import gpu_kernels


def cast_together(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """The weights of products as autocast would make them; as they are where it is not on, on CPUs
    and in compiled models, where it does so itself. Their gradients come back together, too."""
    device = weights[0].device
    if not (gpu_kernels.is_eager_gpu(device) and torch.is_autocast_enabled(device.type)):
        return weights
    dtype = torch.get_autocast_dtype(device.type)
    if any(weight.dtype != torch.float32 for weight in weights):
        return weights
    cast: tuple[Tensor, ...] = _Cast.apply(dtype, *weights)
    return cast


class _Cast(torch.autograd.Function):
    """Copies of tensors in another precision."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copies(weights, dtype))

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        pairs = zip(grad_outputs, ctx.needs_input_grad[1:], strict=True)
        wanted = [gradient if is_wanted else None for gradient, is_wanted in pairs]
        copies = iter(_copies([each for each in wanted if each is not None], torch.float32))
        return (None, *(None if each is None else next(copies) for each in wanted))


def _copies(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
