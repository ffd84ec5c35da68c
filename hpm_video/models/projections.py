"""Linear layers fused with what follows them in a block: splitting q, k and v, and the GELU.

On a GPU, the kernel that computes the gradient of a layer's output also sums it over tokens for the
bias; a separate sum would take longer than the kernel. Matrix products and the forward pass are
PyTorch's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.runtime import gpu_kernels


def apply_linear(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """x W^T + b with the layer's own weight and bias, or casts of them: (B, N, D) -> (B, N, K).

    A layer that a library has replaced, for example by one with an adapter, is called instead;
    ``bias`` is then added only if that layer has none.
    """
    if type(layer) is nn.Linear:
        return F.linear(x, weight, bias)
    result: Tensor = layer(x)
    return result if layer.bias is not None else result + bias


def gelu_of_linear(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """GELU of `apply_linear`."""
    if _has_kernels(layer, x, weight):
        result: Tensor = _GeluOfLinear.apply(x, weight, bias)
        return result
    return F.gelu(apply_linear(layer, x, weight, bias))


def heads_of_linear(
    layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor, heads: int
) -> tuple[Tensor, ...]:
    """Queries, keys and values from one `apply_linear`: (B, N, D) -> 3 x (B, heads, N, D / heads).

    weight: (3 * D, D), bias: (3 * D,).
    """
    if _has_kernels(layer, x, weight):
        return _HeadsOfLinear.apply(x, weight, bias, heads)
    return _heads(apply_linear(layer, x, weight, bias), heads)


def _has_kernels(layer: nn.Module, x: Tensor, weight: Tensor) -> bool:
    """Whether a gradient is needed and our kernels support the layer and its precision."""
    wanted = torch.is_grad_enabled() and weight.requires_grad and x.dtype == weight.dtype
    return wanted and type(layer) is nn.Linear and gpu_kernels.runs_triton(x.device)


def _heads(qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
    # (B, N, 3 * D) -> 3 x (B, N, heads, D / heads), so that gradients stack in qkv's layout
    parts = qkv.unflatten(-1, (3, heads, -1)).unbind(2)
    return tuple(part.transpose(1, 2) for part in parts)


class _GeluOfLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        inner = F.linear(x, weight, bias)
        ctx.save_for_backward(x, weight, inner)
        return F.gelu(inner)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inner = ctx.saved_tensors
        gradient, of_bias = torch.ops.hpm_video.gelu_backward_sum(grad_outputs[0], inner)
        return *_of_linear(x, weight, gradient), of_bias


class _HeadsOfLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, heads: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight)
        return _heads(F.linear(x, weight, bias), heads)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        # (B, heads, N, D / heads) -> (B, N, D)
        parts = [gradient.transpose(1, 2).flatten(2) for gradient in grad_outputs]
        gradient, of_bias = torch.ops.hpm_video.join_sum(*parts)
        x, weight = ctx.saved_tensors
        return *_of_linear(x, weight, gradient), of_bias, None


def _of_linear(x: Tensor, weight: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x (B, N, D) and weight (K, D) given that of the output (B, N, K)."""
    return gradient @ weight, gradient.flatten(0, -2).T @ x.flatten(0, -2)


torch.library.define(
    "hpm_video::gelu_backward_sum", "(Tensor gradient, Tensor inner) -> (Tensor, Tensor)"
)
torch.library.define("hpm_video::join_sum", "(Tensor q, Tensor k, Tensor v) -> (Tensor, Tensor)")


@torch.library.impl("hpm_video::gelu_backward_sum", ("cpu", "cuda"))
def _gelu_backward(gradient: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    from hpm_video.models import projections_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_gelu_backward(gradient, inner)
    with torch.cuda.device_of(inner):  # where Triton launches
        projections_triton.gelu_backward(gradient.contiguous(), inner.contiguous(), *outputs)
    return outputs


@torch.library.impl("hpm_video::join_sum", ("cpu", "cuda"))
def _join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    from hpm_video.models import projections_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_join(q, k, v)
    # The kernel needs each head contiguous, which attention mostly provides
    three = [each if each.stride(2) == 1 else each.contiguous() for each in (q, k, v)]
    with torch.cuda.device_of(q):  # where Triton launches
        projections_triton.join(three, *outputs)
    return outputs


def _like_gelu_backward(gradient: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
    of_inner = torch.empty_like(inner, memory_format=torch.contiguous_format)
    return of_inner, inner.new_empty(inner.shape[-1])


def _like_join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    width = 3 * q.shape[-1]
    return q.new_empty(*q.shape[:-1], width), q.new_empty(width)


torch.library.register_fake("hpm_video::gelu_backward_sum", _like_gelu_backward)
torch.library.register_fake("hpm_video::join_sum", _like_join)
