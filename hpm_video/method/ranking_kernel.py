"""The ranking loss in blocks of pairs, and by two kernels on GPUs: nothing of the size of tokens x
tokens is kept."""

from typing import Any

import torch
from torch import Tensor

# The M x M comparison of a clip is made in chunks of so many rows, for several clips at once as
# long as a block has no more elements than the second number: five float32 blocks are alive at a
# time, 84 MB at most. Larger blocks mean fewer kernels to launch, smaller ones less memory.
_CHUNK = 64
_BLOCK = 2**22
_CLIP = 1e-6  # HPM's code adds it to the sigmoid


class RankingLoss(torch.autograd.Function):
    """`hpm_video.method.losses.ranking_loss`; the gradient is gathered on the way.

    With the tokens sorted, hardest first, only later ones can have lost less: half of the pairs
    need no look. What is left of each pair (i, j) is its cost, a function of x = p_j - p_i,
    positive where the prediction is wrong, and the derivative of that.
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, measured: Tensor, clipped: bool) -> Tensor:
        add_costs = _add_clipped if clipped else _add_exact
        measured, order = measured.sort(dim=1, descending=True)
        predicted = predicted.gather(1, order)
        batch, num_tokens = predicted.shape
        total = torch.zeros_like(predicted[:, 0])
        pairs = torch.zeros_like(total)
        gradient = torch.zeros_like(predicted)
        for clips in _clip_chunks(batch, num_tokens):
            for rows in row_chunks(num_tokens):
                harder, easier = (clips, rows, None), (clips, None, slice(rows.start, None))
                # 1 where L_i > L_j, 0 at ties, and within the chunk where j comes before i.
                counts = (measured[harder] - measured[easier]).sign_().clamp_(min=0)
                wrong = predicted[easier] - predicted[harder]  # x: (clips, chunk, tokens from it)
                push = add_costs(total[clips], wrong, counts)
                gradient[clips, rows] -= push.sum(dim=2)
                gradient[clips, rows.start :] += push.sum(dim=1)
                pairs[clips] += counts.sum(dim=(1, 2))
        scale = 1 / (pairs.clamp(min=1) * batch)  # (B,)
        gradient *= scale[:, None]
        ctx.save_for_backward(torch.empty_like(gradient).scatter_(1, order, gradient))
        return (total * scale).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None, None


def _add_exact(total: Tensor, wrong: Tensor, counts: Tensor) -> Tensor:
    """Add softplus(x) = -log sigmoid(-x) of the pairs that count to total (clips,); returns its
    derivative sigmoid(x) (clips, chunk, tokens). Overwrites ``wrong``, which is x."""
    push = wrong.sigmoid().mul_(counts)
    # softplus(x) = max(x, 0) - log max(sigmoid(x), 1 - sigmoid(x)), whose last factor is in
    # [1/2, 1]: a chunk's product is above 2^-64 and needs one logarithm, by far the slowest of
    # these functions on a CPU.
    total += wrong.relu_().mul_(counts).sum(dim=(1, 2))
    total -= torch.maximum(push, 1 - push).prod(dim=1).log_().sum(dim=1)
    return push


def _add_clipped(total: Tensor, wrong: Tensor, counts: Tensor) -> Tensor:
    """As `_add_exact`, of -log(sigmoid(-x) + 1e-6)."""
    right = wrong.neg_().sigmoid_()
    clipped = right + _CLIP
    push = (1 - right).mul_(right).div_(clipped).mul_(counts)
    total -= clipped.log_().mul_(counts).sum(dim=(1, 2))
    return push


class FusedRankingLoss(torch.autograd.Function):
    """The same by Triton kernels: one for the pairs of all clips, one for their mean."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, measured: Tensor) -> Tensor:
        gradient, totals, pairs = torch.ops.hpm_video.ranking_pairs(predicted, measured)
        loss, scales = torch.ops.hpm_video.ranking_mean(totals, pairs)
        ctx.save_for_backward(gradient, scales)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        gradient, scales = ctx.saved_tensors
        return gradient * (scales * grad_outputs[0])[:, None], None


def fused_rank_accuracy(predicted: Tensor, measured: Tensor) -> Tensor:
    """`hpm_video.method.losses.rank_accuracy` by a Triton kernel."""
    right, pairs = torch.ops.hpm_video.right_order(predicted, measured)
    return right.sum().double() / 2 / pairs.sum()


_ROWS = 32  # of a program

torch.library.define(
    "hpm_video::ranking_pairs", "(Tensor predicted, Tensor measured) -> (Tensor, Tensor, Tensor)"
)
torch.library.define("hpm_video::ranking_mean", "(Tensor totals, Tensor pairs) -> (Tensor, Tensor)")
torch.library.define(
    "hpm_video::right_order", "(Tensor predicted, Tensor measured) -> (Tensor, Tensor)"
)


@torch.library.impl("hpm_video::ranking_pairs", ("cpu", "cuda"))
def _pairs(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    from hpm_video.method import ranking_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_pairs(predicted, measured)
    with torch.cuda.device_of(predicted):  # where Triton launches
        ranking_triton.ranking(predicted.contiguous(), measured.contiguous(), *outputs, rows=_ROWS)
    return outputs


@torch.library.impl("hpm_video::ranking_mean", ("cpu", "cuda"))
def _mean(totals: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    from hpm_video.method import ranking_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_mean(totals, pairs)
    with torch.cuda.device_of(totals):  # where Triton launches
        ranking_triton.mean(totals, pairs, *outputs)
    return outputs


@torch.library.impl("hpm_video::right_order", ("cpu", "cuda"))
def _right_order(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    from hpm_video.method import ranking_triton  # noqa: PLC0415  # Triton is optional

    outputs = _like_right_order(predicted, measured)
    with torch.cuda.device_of(predicted):  # where Triton launches
        ranking_triton.right_order(
            predicted.contiguous(), measured.contiguous(), *outputs, rows=_ROWS
        )
    return outputs


def _like_pairs(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    totals = predicted.new_empty(len(predicted), -(-predicted.shape[1] // _ROWS))
    gradient = torch.empty_like(predicted, memory_format=torch.contiguous_format)
    return gradient, totals, torch.empty_like(totals, dtype=torch.int32)


def _like_mean(totals: Tensor, pairs: Tensor) -> tuple[Tensor, Tensor]:
    return totals.new_empty(()), totals.new_empty(len(totals))


def _like_right_order(predicted: Tensor, measured: Tensor) -> tuple[Tensor, Tensor]:
    shape = len(predicted), -(-predicted.shape[1] // _ROWS)
    right = predicted.new_empty(shape, dtype=torch.int32)
    return right, torch.empty_like(right)


def _clip_chunks(batch: int, num_tokens: int) -> list[slice]:
    clips = max(1, _BLOCK // (_CHUNK * num_tokens))
    return [slice(first, first + clips) for first in range(0, batch, clips)]


def row_chunks(num_rows: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, num_rows, _CHUNK)]


torch.library.register_fake("hpm_video::ranking_pairs", _like_pairs)
torch.library.register_fake("hpm_video::ranking_mean", _like_mean)
torch.library.register_fake("hpm_video::right_order", _like_right_order)
