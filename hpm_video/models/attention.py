"""Attention, in the form that was measured to be the fastest for device, precision and length."""

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.models.blocked_attention import blocked_attention

# Tokens up to which plain attention is the fastest for bfloat16 on a CPU, and what it keeps small.
_LONGEST_PLAIN = 512
# Tokens from which on PyTorch's fused form is the fastest where a CPU has matrix tiles (AMX).
_LONG_FOR_TILES = 1024


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Scaled dot-product attention: 3 x (B, heads, N, head width) -> the same shape.

    PyTorch's fused form, except for bfloat16 on a CPU, where that one is slow, most of all its
    backward pass. Measured there, forward and backward on AVX-512 cores: plain matrix products
    take 0.4 to 0.6 of the fused form's time, and keep N x N weights per head; up to 512 tokens
    these are small. `blocked_attention`, which does not, takes 0.7 to 0.85 from there on. With
    AMX the fused form is the fastest at 1,568 tokens, and the plain one up to 160. Both round the
    scores to bfloat16, as autocast does, which the fused form keeps in float32.
    """
    if q.device.type != "cpu" or q.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(q, k, v)
    num_tokens = q.shape[-2]
    if num_tokens <= _LONGEST_PLAIN:
        # Copies of q, k and v are cheaper than products of what lies scattered
        weights = (q.contiguous() * q.shape[-1] ** -0.5) @ k.contiguous().transpose(-2, -1)
        return weights.softmax(dim=-1) @ v.contiguous()
    if num_tokens >= _LONG_FOR_TILES and torch.cpu._is_amx_tile_supported():
        return F.scaled_dot_product_attention(q, k, v)
    result: Tensor = blocked_attention(q, k, v)
    return result
