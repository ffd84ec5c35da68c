"""Triton kernels of `hpm_video.models.projections`: a gradient, and its sums over tokens.

Rows are tokens. A program has BLOCK columns, and of the rows every so many tiles of ROWS; its sums
are one row of (parts, columns).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hpm_video.models.column_sums_triton import add_up
from hpm_video.runtime.gpu_kernels import PARTS

_TILE = {"ROWS": 8, "BLOCK": 128}


@triton.jit
def _gelu_backward(
    gradient_ptr,
    inner_ptr,
    of_inner_ptr,
    sums_ptr,
    num_rows,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part, num_parts = tl.program_id(0), tl.num_programs(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(part * ROWS, num_rows, num_parts * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < width)[None, :]
        place = row.to(tl.int64)[:, None] * width + column[None, :]
        x = tl.load(inner_ptr + place, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
        # The derivative of x Phi(x) is Phi(x) + x phi(x)
        share = 0.5 * (1 + tl.erf(x * 0.7071067811865476))
        slope = share + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)
        of_inner = (gradient * slope).to(of_inner_ptr.dtype.element_ty)
        tl.store(of_inner_ptr + place, of_inner, mask=inside)
        sums += tl.sum(of_inner.to(tl.float32), axis=0)
    tl.store(sums_ptr + part * width + column, sums, mask=column < width)


@triton.jit
def _join(
    q_ptr,
    k_ptr,
    v_ptr,
    joined_ptr,
    sums_ptr,
    q_clip,
    q_token,
    k_clip,
    k_token,
    v_clip,
    v_token,
    num_rows,
    num_tokens,
    width,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    part, num_parts, which = tl.program_id(0), tl.num_programs(0), tl.program_id(2)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    source_ptr, of_clip, of_token = q_ptr, q_clip, q_token
    if which == 1:
        source_ptr, of_clip, of_token = k_ptr, k_clip, k_token
    if which == 2:
        source_ptr, of_clip, of_token = v_ptr, v_clip, v_token
    sums = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(part * ROWS, num_rows, num_parts * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        inside = (row < num_rows)[:, None] & (column < width)[None, :]
        source = row // num_tokens * of_clip + row % num_tokens * of_token
        value = tl.load(source_ptr + source[:, None] + column[None, :], mask=inside, other=0.0)
        place = (row * 3 + which)[:, None] * width + column[None, :]
        tl.store(joined_ptr + place, value, mask=inside)
        sums += tl.sum(value.to(tl.float32), axis=0)
    place = (part * 3 + which) * width + column
    tl.store(sums_ptr + place, sums, mask=column < width)


def _parts(total: Tensor, num_rows: int) -> Tensor:
    count = min(PARTS, triton.cdiv(num_rows, _TILE["ROWS"]))
    return total.new_empty(count, len(total), dtype=torch.float32)


def gelu_backward(gradient: Tensor, inner: Tensor, of_inner: Tensor, total: Tensor) -> None:
    """Fill the gradient of GELU's input (..., K) from that of its output, and its sum (K,) over all
    but the last dimension."""
    width = len(total)
    num_rows = inner.numel() // width
    parts = _parts(total, num_rows)
    grid = len(parts), triton.cdiv(width, _TILE["BLOCK"])
    _gelu_backward[grid](gradient, inner, of_inner, parts, num_rows, width, **_TILE)
    add_up(parts, total)


def join(three: Sequence[Tensor], joined: Tensor, total: Tensor) -> None:
    """Fill (B, N, 3 * D) with three tensors (B, N, D) side by side, and its sum (3 * D,) over clips
    and tokens."""
    batch, num_tokens, width = three[0].shape
    assert all(each.stride(2) == 1 for each in three)
    strides = [stride for each in three for stride in each.stride()[:2]]
    sizes = batch * num_tokens, num_tokens, width
    parts = _parts(total, batch * num_tokens)
    grid = len(parts), triton.cdiv(width, _TILE["BLOCK"]), 3
    _join[grid](*three, joined, parts, *strides, *sizes, **_TILE)
    add_up(parts, total)
