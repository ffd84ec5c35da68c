"""Casts all weights of a block to the compute precision at once, on a GPU.

Autocast casts each weight when it is used, and each gradient on its way back: 16 small kernels per
block. One operator over all weights of a block needs one kernel each way.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hpm_video.runtime import gpu_kernels


def cast_together(weights: Sequence[Tensor]) -> Sequence[Tensor]:
    """Cast weights as autocast would, all at once; their gradients are cast back together as well.

    Without autocast, on CPUs and in compiled models they are returned unchanged.
    """
    device = weights[0].device
    if not (gpu_kernels.is_eager_gpu(device) and torch.is_autocast_enabled(device.type)):
        return weights
    dtype = torch.get_autocast_dtype(device.type)
    if any(weight.dtype != torch.float32 for weight in weights):
        return weights
    cast: tuple[Tensor, ...] = _Cast.apply(dtype, *weights)
    return cast


class _Cast(torch.autograd.Function):
    """Copies tensors to another precision."""

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
