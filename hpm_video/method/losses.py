"""What is minimised: reconstruction error per token, two objectives for predicting it, and the
loss of a classifier.

Everything is computed in float32, also under bfloat16 autocast: callers pass what the model gave.
Notation: B clips, M masked tokens (or mining units), P pixel values per token.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.models.tokens import gather_tokens, normalize_targets

# The M x M comparison of a clip is made in chunks of so many rows, for several clips at once as
# long as a block has no more elements than the second number: five float32 blocks are alive at a
# time, 84 MB at most. Larger blocks mean fewer kernels to launch, smaller ones less memory.
_CHUNK = 64
_BLOCK = 2**22
# Clips that `patch_loss` compares at a time, by kind of device; elsewhere all at once.
PATCH_LOSS_CLIPS = {"cpu": 1}  # whose cache then holds what the next operation reads


def reconstruction_loss(reconstruction: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each token: (B, M, P), (B, M, P) -> (B, M) float32."""
    return (reconstruction.float() - targets.float()).square().mean(dim=-1)


def patch_loss(
    reconstruction: Tensor, patches: Tensor, index: Tensor, *, normalize: bool
) -> Tensor:
    """`reconstruction_loss` of tokens (B, M, P) against patches (B, N, P) at index (B, M), as they
    are or normalised (see `normalize_targets`) -> (B, M) float32. Only the tokens get a gradient.
    """
    return _PatchLoss.apply(reconstruction, patches, index, normalize)


def ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """How badly predictions (B, M) order the measured losses (B, M) -> scalar.

    Per clip -sum over ordered pairs with L_i > L_j of log sigmoid(p_i - p_j), divided by the number
    of such pairs, then the mean over clips (HPM, arXiv 2304.05919: the relative loss). Ties count
    in neither direction; a clip of ties only adds 0. ``measured`` gets no gradient.
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


class _PatchLoss(torch.autograd.Function):
    """`patch_loss`, some clips at a time."""

    @staticmethod
    def forward(
        ctx: Any, reconstruction: Tensor, patches: Tensor, index: Tensor, normalize: bool
    ) -> Tensor:
        difference = reconstruction.new_empty(reconstruction.shape, dtype=torch.float32)
        at_once = PATCH_LOSS_CLIPS.get(reconstruction.device.type, len(index))
        losses = []
        for first in range(0, len(index), at_once):
            clips = slice(first, first + at_once)
            targets = gather_tokens(patches[clips], index[clips])
            if normalize:
                targets = normalize_targets(targets)
            torch.sub(reconstruction[clips].float(), targets.float(), out=difference[clips])
            losses.append(difference[clips].square().mean(dim=-1))
        ctx.save_for_backward(difference)
        ctx.dtype = reconstruction.dtype
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        (difference,) = ctx.saved_tensors
        scale = grad_outputs[0][..., None] * (2 / difference.shape[-1])
        gradient = torch.empty_like(difference, dtype=ctx.dtype)
        torch.mul(difference, scale, out=gradient)
        return gradient, None, None, None


class _RankingLoss(torch.autograd.Function):
    """`ranking_loss` in blocks; the gradient is gathered on the way, nothing M x M is kept.

    With the tokens sorted, hardest first, only later ones can have lost less: half of the pairs
    need no look. What is left of each pair (i, j) is softplus(x) = -log sigmoid(-x) of
    x = p_j - p_i, positive where the prediction is wrong, and its derivative sigmoid(x).
    """

    @staticmethod
    def forward(ctx: Any, predicted: Tensor, measured: Tensor) -> Tensor:
        measured, order = measured.sort(dim=1, descending=True)
        predicted = predicted.gather(1, order)
        batch, num_tokens = predicted.shape
        total = torch.zeros_like(predicted[:, 0])
        pairs = torch.zeros_like(total)
        gradient = torch.zeros_like(predicted)
        for clips in _clip_chunks(batch, num_tokens):
            for rows in _row_chunks(num_tokens):
                harder, easier = (clips, rows, None), (clips, None, slice(rows.start, None))
                # 1 where L_i > L_j, 0 at ties, and within the chunk where j comes before i.
                counts = (measured[harder] - measured[easier]).sign_().clamp_(min=0)
                wrong = predicted[easier] - predicted[harder]  # x: (clips, chunk, tokens from it)
                push = wrong.sigmoid().mul_(counts)
                gradient[clips, rows] -= push.sum(dim=2)
                gradient[clips, rows.start :] += push.sum(dim=1)
                pairs[clips] += counts.sum(dim=(1, 2))
                # softplus(x) = max(x, 0) - log max(sigmoid(x), 1 - sigmoid(x)), whose last factor
                # is in [1/2, 1]: a chunk's product is above 2^-64 and needs one logarithm, by far
                # the slowest of these functions on a CPU.
                total[clips] += wrong.relu_().mul_(counts).sum(dim=(1, 2))
                total[clips] -= torch.maximum(push, 1 - push).prod(dim=1).log_().sum(dim=1)
        scale = 1 / (pairs.clamp(min=1) * batch)  # (B,)
        gradient *= scale[:, None]
        ctx.save_for_backward(torch.empty_like(gradient).scatter_(1, order, gradient))
        return (total * scale).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad_outputs[0], None


def _clip_chunks(batch: int, num_tokens: int) -> list[slice]:
    clips = max(1, _BLOCK // (_CHUNK * num_tokens))
    return [slice(first, first + clips) for first in range(0, batch, clips)]


def _row_chunks(num_rows: int) -> list[slice]:
    return [slice(first, first + _CHUNK) for first in range(0, num_rows, _CHUNK)]


def _harder(measured: Tensor, rows: slice) -> Tensor:
    """Where token i of the chunk lost more than token j: (B, M) -> (B, chunk, M) bool."""
    return measured[:, rows, None] > measured[:, None, :]
