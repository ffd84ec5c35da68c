"""Attention, by the implementation measured as fastest for device, precision and length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.models.blocked_attention import blocked_attention

# Up to here plain attention is fastest for bfloat16 on a CPU, and its N x N weights are small.
_LONGEST_PLAIN = 512
# From here on PyTorch's fused attention is fastest on CPUs with matrix tiles (AMX).
_LONG_FOR_TILES = 1024


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: 3 x (B, heads, N, head width) -> the same shape.

    Uses PyTorch's fused attention, except for bfloat16 on a CPU, where its backward pass is slow.
    Measured there, forward and backward, on AVX-512 cores: plain matrix products take 0.4 to 0.6 of
    the fused time but keep N x N weights per head, which are small up to 512 tokens.
    `blocked_attention` keeps none and takes 0.7 to 0.85 of the fused time beyond. With AMX, plain
    attention is fastest up to 160 tokens and fused attention at 1,568. Plain and blocked attention
    round the scores to bfloat16, as autocast does; fused attention keeps them in float32.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    num_tokens = q.shape[-2]
    if num_tokens <= _LONGEST_PLAIN:
        # Copying q, k and v is cheaper than multiplying strided tensors
        weights = (q.contiguous() * q.shape[-1] ** -0.5) @ k.contiguous().transpose(-2, -1)
        return weights.softmax(dim=-1) @ v.contiguous()
    if num_tokens >= _LONG_FOR_TILES and torch.cpu._is_amx_tile_supported():
        return F.scaled_dot_product_attention(q, k, v)
    result: Tensor = blocked_attention(q, k, v)
    return result
