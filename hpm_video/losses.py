"""What is minimised: reconstruction error per token, and two objectives for predicting it.

Everything is computed in float32, also under bfloat16 autocast: callers pass what the model gave.
Notation: B clips, M masked tokens (or mining units), P pixel values per token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Rows of the M x M comparison handled at once: bounds memory at B * CHUNK * M instead of B * M * M.
_CHUNK = 64


def reconstruction_loss(reconstruction: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each token: (B, M, P), (B, M, P) -> (B, M) float32."""
    return (reconstruction.float() - targets.float()).square().mean(dim=-1)


def ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """How badly predictions (B, M) order the measured losses (B, M) -> scalar.

    Per clip -sum over ordered pairs with L_i > L_j of log sigmoid(p_i - p_j), divided by the number
    of such pairs, then the mean over clips (HPM, arXiv 2304.05919, eq. 6). Ties count in neither
    direction; a clip of ties only adds 0. ``measured`` gets no gradient.
    """
    return _RankingLoss.apply(predicted.float(), measured.detach().float())


def absolute_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """Mean squared error against losses standardised per clip: (B, M), (B, M) -> scalar."""
    target = measured.detach().float()
    variance, mean = torch.var_mean(target, dim=1, keepdim=True, unbiased=False)
    return F.mse_loss(predicted.float(), (target - mean) / (variance + 1e-6).sqrt())


@torch.no_grad()
def rank_accuracy(predicted: Tensor, measured: Tensor) -> Tensor:
    """Share of a clip's pairs with different measured losses that are predicted in the right order:
    (B, M), (B, M) -> scalar. A tied prediction counts half, so that 0.5 is chance."""
    right = predicted.new_zeros((), dtype=torch.float64)
    pairs = right.clone()
    for rows in _row_chunks(predicted.shape[1]):
        harder = _harder(measured, rows)
        margin = predicted[:, rows, None] - predicted[:, None, :]
        right += (harder * (margin.sign() + 1) / 2).sum(dtype=torch.float64)
        pairs += harder.sum()
    return right / pairs.clamp(min=1)


class _RankingLoss(torch.autograd.Function):
    """`ranking_loss` in row chunks; the gradient is gathered on the way, nothing M x M is kept."""

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, measured: Tensor) -> Tensor:
        total = torch.zeros_like(predicted[:, 0])
        pairs = torch.zeros_like(total)
        gradient = torch.zeros_like(predicted)
        for rows in _row_chunks(predicted.shape[1]):
            harder = _harder(measured, rows)  # (B, chunk, M)
            margin = predicted[:, rows, None] - predicted[:, None, :]
            total -= (F.logsigmoid(margin) * harder).sum(dim=(1, 2))
            pairs += harder.sum(dim=(1, 2))
            push = torch.sigmoid(-margin) * harder  # -d log sigmoid(p_i - p_j) / d p_j
            gradient[:, rows] -= push.sum(dim=2)
            gradient += push.sum(dim=1)
        scale = 1 / (pairs.clamp(min=1) * len(predicted))  # (B,)
        ctx.save_for_backward(gradient * scale[:, None])
        return (total * scale).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None


def _row_chunks(num_rows: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, num_rows, _CHUNK)]


def _harder(measured: Tensor, rows: slice) -> Tensor:
    """Where token i of the chunk lost more than token j: (B, M) -> (B, chunk, M) bool."""
    return measured[:, rows, None] > measured[:, None, :]
