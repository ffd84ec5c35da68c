"""A Triton kernel that ends sums over tokens, of which other kernels have made parts."""

import triton
import triton.language as tl
from torch import Tensor

_TILE = {"ROWS": 32, "BLOCK": 32}


@triton.jit
def _add_up(parts_ptr, total_ptr, num_parts, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(0, num_parts, ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < num_parts)[:, None] & (column < width)[None, :]
        place = row[:, None] * width + column[None, :]
        total += tl.sum(tl.load(parts_ptr + place, mask=inside, other=0.0), axis=0)
    tl.store(total_ptr + column, total.to(total_ptr.dtype.element_ty), mask=column < width)


def add_up(parts: Tensor, total: Tensor) -> None:
    """Fill total (K,) with the sum of parts (any number, K) float32."""
    width = total.numel()
    _add_up[(triton.cdiv(width, _TILE["BLOCK"]),)](parts, total, len(parts), width, **_TILE)
