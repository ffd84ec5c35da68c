"""Triton kernels of `hpm_video.models.residual`: a residual sum and its layer norm in one go.

Rows (R, D) are tokens. A tile holds ROWS of them whole, BLOCK columns wide, a power of two.
"""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hpm_video.models.column_sums_triton import add_up
from hpm_video.runtime.gpu_kernels import PARTS


@triton.jit
def _forward(
    x_ptr,
    branch_ptr,
    weight_ptr,
    bias_ptr,
    total_ptr,
    normed_ptr,
    mean_ptr,
    scale_ptr,
    num_rows,
    eps,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    x = tl.load(x_ptr + place, mask=inside, other=0.0)
    if HAS_BRANCH:
        x += tl.load(branch_ptr + place, mask=inside, other=0.0).to(tl.float32)
        tl.store(total_ptr + place, x, mask=inside)
    mean = tl.sum(x, axis=1) / WIDTH
    centred = tl.where(inside, x - mean[:, None], 0.0)
    scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=1) / WIDTH + eps)
    tl.store(mean_ptr + row, mean, mask=row < num_rows)
    tl.store(scale_ptr + row, scale, mask=row < num_rows)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0)
    bias = tl.load(bias_ptr + column, mask=column < WIDTH, other=0.0)
    normed = centred * scale[:, None] * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + place, normed.to(normed_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _backward(
    gradient_ptr,
    residual_ptr,
    x_ptr,
    weight_ptr,
    mean_ptr,
    scale_ptr,
    of_x_ptr,
    of_branch_ptr,
    parts_ptr,
    num_rows,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BRANCH: tl.constexpr,
):
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    weight = tl.load(weight_ptr + column, mask=column < WIDTH, other=0.0)
    of_weight = tl.zeros([BLOCK], dtype=tl.float32)
    of_bias = tl.zeros([BLOCK], dtype=tl.float32)
    for first in range(program * ROWS, num_rows, num_programs * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < num_rows)[:, None] & (column < WIDTH)[None, :]
        place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        mean = tl.load(mean_ptr + row, mask=row < num_rows, other=0.0)
        scale = tl.load(scale_ptr + row, mask=row < num_rows, other=0.0)
        x = tl.load(x_ptr + place, mask=inside, other=0.0)
        normed = tl.where(inside, (x - mean[:, None]) * scale[:, None], 0.0)
        gradient = tl.load(gradient_ptr + place, mask=inside, other=0.0).to(tl.float32)
        of_weight += tl.sum(gradient * normed, axis=0)
        of_bias += tl.sum(gradient, axis=0)
        weighted = gradient * weight[None, :]
        along = tl.sum(weighted * normed, axis=1) / WIDTH
        common = tl.sum(weighted, axis=1) / WIDTH
        of_x = (weighted - normed * along[:, None] - common[:, None]) * scale[:, None]
        if HAS_RESIDUAL:
            of_x += tl.load(residual_ptr + place, mask=inside, other=0.0)
        tl.store(of_x_ptr + place, of_x, mask=inside)
        if HAS_BRANCH:
            of_branch = of_x.to(of_branch_ptr.dtype.element_ty)
            tl.store(of_branch_ptr + place, of_branch, mask=inside)
    parts = parts_ptr + program * 2 * WIDTH + column
    tl.store(parts, of_weight, mask=column < WIDTH)
    tl.store(parts + WIDTH, of_bias, mask=column < WIDTH)


def _tile(width: int) -> dict[str, Any]:
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "ROWS": max(1, 1024 // block)}


def forward(
    x: Tensor,
    branch: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    outputs: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    """Fill (total, normed, mean, scale) of rows x (R, D) and, if there is one, branch (R, D)."""
    total, normed, mean, scale = outputs
    tile, num_rows = _tile(x.shape[-1]), mean.numel()
    _forward[(triton.cdiv(num_rows, tile["ROWS"]),)](
        *(x, x if branch is None else branch, weight, bias, total, normed, mean, scale),
        *(num_rows, eps),
        **tile,
        HAS_BRANCH=branch is not None,
    )


def backward(
    gradient: Tensor,
    residual: Tensor | None,
    saved: tuple[Tensor, Tensor, Tensor, Tensor],
    outputs: tuple[Tensor, Tensor | None, Tensor],
) -> None:
    """Fill the gradients (of x, of the branch if there is one, of weight and bias (2, D)) from
    those of what `forward` gave; saved: its total, weight, mean, scale."""
    x, weight, mean, scale = saved
    of_x, of_branch, of_affine = outputs
    tile = _tile(x.shape[-1])
    num_parts = min(2 * PARTS, triton.cdiv(mean.numel(), tile["ROWS"]))
    parts = x.new_empty(num_parts, 2 * x.shape[-1])
    _backward[(num_parts,)](
        *(gradient, x if residual is None else residual, x, weight, mean, scale),
        *(of_x, of_x if of_branch is None else of_branch, parts, mean.numel()),
        **tile,
        HAS_RESIDUAL=residual is not None,
        HAS_BRANCH=of_branch is not None,
    )
    add_up(parts, of_affine.view(-1))
