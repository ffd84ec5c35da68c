"""Triton kernels of `hpm_video.method.losses.ranking_loss` and `rank_accuracy`.

A program compares ROWS tokens of a clip with all M of it, COLUMNS at a time: nothing of the size of
M x M is stored. No token is added to by two programs, so that results are the same every time.
"""

import triton
import triton.language as tl
from torch import Tensor

_COLUMNS = 64
_CLIPS = 32


@triton.jit
def _compare(
    predicted_ptr,
    measured_ptr,
    gradient_ptr,
    totals_ptr,
    pairs_ptr,
    num_tokens,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    clip, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    predicted_ptr += clip * num_tokens
    measured_ptr += clip * num_tokens
    row = block * ROWS + tl.arange(0, ROWS)
    is_row = row < num_tokens
    mine = tl.load(predicted_ptr + row, mask=is_row, other=0.0)[:, None]
    my_loss = tl.load(measured_ptr + row, mask=is_row, other=0.0)[:, None]
    gradient = tl.zeros([ROWS], dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    pairs = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, num_tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < num_tokens
        other = tl.load(predicted_ptr + column, mask=is_column, other=0.0)[None, :]
        their_loss = tl.load(measured_ptr + column, mask=is_column, other=0.0)[None, :]
        both = is_row[:, None] & is_column[None, :]
        is_harder = both & (my_loss > their_loss)
        is_easier = both & (my_loss < their_loss)
        # Where mine is harder, x > 0 is the wrong order: softplus(x) = -log sigmoid(-x)
        x = other - mine
        small = tl.exp(-tl.abs(x))
        near, far = 1 / (1 + small), small / (1 + small)  # sigmoid of |x| and of -|x|
        total += tl.sum(tl.where(is_harder, tl.maximum(x, 0.0) + tl.log(1 + small), 0.0), axis=1)
        push = tl.where(x >= 0, near, far)
        pull = tl.where(x >= 0, far, near)
        change = tl.where(is_easier, pull, 0.0) - tl.where(is_harder, push, 0.0)
        gradient += tl.sum(change, axis=1)
        pairs += tl.sum(is_harder.to(tl.int32), axis=1)
    tl.store(gradient_ptr + clip * num_tokens + row, gradient, mask=is_row)
    place = clip * tl.num_programs(0) + block
    tl.store(totals_ptr + place, tl.sum(total))
    tl.store(pairs_ptr + place, tl.sum(pairs))


@triton.jit
def _mean(
    totals_ptr,
    pairs_ptr,
    loss_ptr,
    scales_ptr,
    num_clips,
    num_blocks,
    CLIPS: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    block = tl.arange(0, BLOCKS)
    loss = tl.zeros([CLIPS], dtype=tl.float32)
    for first in range(0, num_clips, CLIPS):
        clip = first + tl.arange(0, CLIPS)
        place = clip[:, None] * num_blocks + block[None, :]
        inside = (clip < num_clips)[:, None] & (block < num_blocks)[None, :]
        total = tl.sum(tl.load(totals_ptr + place, mask=inside, other=0.0), axis=1)
        pairs = tl.sum(tl.load(pairs_ptr + place, mask=inside, other=0), axis=1)
        scale = 1 / (tl.maximum(pairs, 1).to(tl.float32) * num_clips)
        tl.store(scales_ptr + clip, scale, mask=clip < num_clips)
        loss += total * scale
    tl.store(loss_ptr, tl.sum(loss))


@triton.jit
def _right_order(
    predicted_ptr,
    measured_ptr,
    right_ptr,
    pairs_ptr,
    num_tokens,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    clip, block = tl.program_id(1).to(tl.int64), tl.program_id(0)
    predicted_ptr += clip * num_tokens
    measured_ptr += clip * num_tokens
    row = block * ROWS + tl.arange(0, ROWS)
    is_row = row < num_tokens
    mine = tl.load(predicted_ptr + row, mask=is_row, other=0.0)[:, None]
    my_loss = tl.load(measured_ptr + row, mask=is_row, other=0.0)[:, None]
    right = tl.zeros([ROWS], dtype=tl.int32)
    pairs = tl.zeros([ROWS], dtype=tl.int32)
    for first in range(0, num_tokens, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        is_column = column < num_tokens
        other = tl.load(predicted_ptr + column, mask=is_column, other=0.0)[None, :]
        their_loss = tl.load(measured_ptr + column, mask=is_column, other=0.0)[None, :]
        is_harder = is_row[:, None] & is_column[None, :] & (my_loss > their_loss)
        halves = (mine >= other).to(tl.int32) + (mine > other).to(tl.int32)
        right += tl.sum(tl.where(is_harder, halves, 0), axis=1)
        pairs += tl.sum(is_harder.to(tl.int32), axis=1)
    place = clip * tl.num_programs(0) + block
    tl.store(right_ptr + place, tl.sum(right))
    tl.store(pairs_ptr + place, tl.sum(pairs))


def ranking(
    predicted: Tensor,
    measured: Tensor,
    gradient: Tensor,
    totals: Tensor,
    pairs: Tensor,
    *,
    rows: int,
) -> None:
    """Fill the sum over a clip's ordered pairs (totals) and their number (pairs), (B, blocks) each,
    and the gradient (B, M) of that sum, from predictions and measured losses (B, M) float32. A
    block is of so many ``rows``, a power of two."""
    num_clips, num_blocks = totals.shape
    tensors = predicted, measured, gradient, totals, pairs
    tile = {"ROWS": rows, "COLUMNS": _COLUMNS}
    _compare[num_blocks, num_clips](*tensors, predicted.shape[1], **tile)


def mean(totals: Tensor, pairs: Tensor, loss: Tensor, scales: Tensor) -> None:
    """Fill the scalar loss and what each clip's sum counts in it, scales (B,)."""
    num_clips, num_blocks = totals.shape
    tile = {"CLIPS": _CLIPS, "BLOCKS": triton.next_power_of_2(num_blocks)}
    _mean[(1,)](totals, pairs, loss, scales, num_clips, num_blocks, **tile)


def right_order(
    predicted: Tensor, measured: Tensor, right: Tensor, pairs: Tensor, *, rows: int
) -> None:
    """Fill the number of ordered pairs, and twice that of those in the right order, (B, blocks)."""
    num_clips, num_blocks = right.shape
    tile = {"ROWS": rows, "COLUMNS": _COLUMNS}
    _right_order[num_blocks, num_clips](
        predicted, measured, right, pairs, predicted.shape[1], **tile
    )
