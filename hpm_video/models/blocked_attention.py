"""Blocked attention for bfloat16 on CPUs, with memory linear in the number of tokens.

Computes ``softmax(q k^T / sqrt(head width)) v``.
"""

from typing import Any

import torch
from torch import Tensor

# Attention weights per block: 8 MB of bfloat16, a whole head up to 2,048 tokens.
_BLOCK = 2**22


# A custom operator, so that torch.compile does not unroll its loops
@torch.library.custom_op("hpm_video::blocked_attention", mutates_args=())
def blocked_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of 3 x (B, heads, N, head width), one block of one head at a time, in cache.

    Attention weights are not kept; the backward pass computes them again.
    """
    scaled, keys, values = _heads(q) * q.shape[-1] ** -0.5, _heads(k), _heads(v)
    result = torch.empty_like(scaled)
    weights = _block(scaled)  # reused
    for query, key, value, out in zip(scaled, keys, values, result, strict=True):
        for rows in _row_blocks(scaled):
            part = weights[: rows.stop - rows.start]
            torch.mm(query[rows], key.T, out=part)
            torch.softmax(part, -1, out=part)
            torch.mm(part, value, out=out[rows])
    return result.view(q.shape)


@torch.library.custom_op("hpm_video::blocked_attention_backward", mutates_args=())
def _blocked_attention_backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v given that of the result, all (B, heads, N, head width)."""
    scale = q.shape[-1] ** -0.5
    scaled, keys, values, outer = _heads(q) * scale, _heads(k), _heads(v), _heads(gradient)
    of_q, of_k, of_v = (torch.empty_like(scaled) for _ in range(3))
    weights, slopes = _block(scaled), _block(scaled)
    # Accumulate over blocks in float32 and round once
    sum_k, sum_v = torch.empty(2, *keys.shape[1:], device=q.device)
    for head, (query, key, value, given) in enumerate(
        zip(scaled, keys, values, outer, strict=True)
    ):
        sum_k.zero_()
        sum_v.zero_()
        for rows in _row_blocks(scaled):
            part, slope = (block[: rows.stop - rows.start] for block in (weights, slopes))
            torch.mm(query[rows], key.T, out=part)
            torch.softmax(part, -1, out=part)
            sum_v += torch.mm(part.T, given[rows])
            torch.mm(given[rows], value.T, out=slope)
            torch._softmax_backward_data(slope, part, -1, part.dtype, grad_input=slope)
            torch.mm(slope, key, out=of_q[head, rows])
            sum_k += torch.mm(slope.T, query[rows])
        of_k[head], of_v[head] = sum_k, sum_v
    of_q *= scale
    return of_q.view(q.shape), of_k.view(k.shape), of_v.view(v.shape)


def _heads(tokens: Tensor) -> Tensor:
    """(B, heads, N, width) -> (B * heads, N, width), contiguous."""
    return tokens.flatten(0, 1).contiguous()


def _row_blocks(tokens: Tensor) -> list[slice]:
    """Slices of equal length over the N rows of tokens (B * heads, N, width)."""
    num_tokens = tokens.shape[1]
    rows = -(-num_tokens // -(-(num_tokens**2) // _BLOCK))
    return [slice(row, min(row + rows, num_tokens)) for row in range(0, num_tokens, rows)]


def _block(tokens: Tensor) -> Tensor:
    """Memory for the attention weights of one slice: (rows, N)."""
    return tokens.new_empty(_row_blocks(tokens)[0].stop, tokens.shape[1])


@blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q.new_empty(q.shape)


@_blocked_attention_backward.register_fake
def _(gradient: Tensor, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    gradients: tuple[Tensor, Tensor, Tensor] = _blocked_attention_backward(
        gradient, *ctx.saved_tensors
    )
    return gradients


blocked_attention.register_autograd(_backward, setup_context=_keep)
