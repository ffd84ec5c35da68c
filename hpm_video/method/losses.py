"""What is minimised: reconstruction error per token, and two objectives for predicting it.

Everything is computed in float32, also under bfloat16 autocast: callers pass what the model gave.
Notation: B clips, M masked tokens (or mining units), P pixel values per token.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.method.patch_kernel import FusedPatchLoss, PatchLoss
from hpm_video.method.ranking_kernel import (
    FusedRankingLoss,
    RankingLoss,
    fused_rank_accuracy,
    row_chunks,
)
from hpm_video.runtime import gpu_kernels


def reconstruction_loss(reconstruction: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of each token: (B, M, P), (B, M, P) -> (B, M) float32."""
    return (reconstruction.float() - targets.float()).square().mean(dim=-1)


def patch_loss(
    reconstruction: Tensor, patches: Tensor, index: Tensor, *, normalize: bool
) -> Tensor:
    """`reconstruction_loss` of tokens (B, M, P) against patches (B, N, P) at index (B, M), pixels
    in [0, 1] or normalised (see `normalize_targets`) -> (B, M) float32. Patches are floats in
    [0, 1] or bytes; only the tokens get a gradient.
    """
    by_kernel = gpu_kernels.runs_triton(reconstruction.device)
    loss = FusedPatchLoss if by_kernel else PatchLoss
    return loss.apply(reconstruction, patches, index, normalize)


def feature_loss(reconstruction: Tensor, features: Tensor, *, num_layers: int) -> Tensor:
    """Squared distance of each token's predicted features and its target: (B, M, L * D) twice ->
    (B, M) float32, in [0, 4].

    Both are scaled to length 1 in each of the L layers, whose distances are averaged (HPM's image
    code, arXiv 2304.05919, which has one layer).
    """
    of_layers = (num_layers, reconstruction.shape[-1] // num_layers)
    ours, theirs = (
        F.normalize(values.float().unflatten(-1, of_layers), dim=-1)
        for values in (reconstruction, features)
    )
    return (ours - theirs).square().sum(dim=-1).mean(dim=-1)


def ranking_loss(predicted: Tensor, measured: Tensor, *, clipped: bool = False) -> Tensor:
    """How badly predictions (B, M) order the measured losses (B, M) -> scalar.

    Per clip -sum over ordered pairs with L_i > L_j of log sigmoid(p_i - p_j), divided by the number
    of such pairs, then the mean over clips (HPM, arXiv 2304.05919: the relative loss). Ties count
    in neither direction; a clip of ties only adds 0. ``measured`` gets no gradient.

    ``clipped``: log(sigmoid(p_i - p_j) + 1e-6), as in HPM's code. A pair costs 13.8 at most, and
    where it does it has no gradient. Without a kernel of its own.
    """
    values = predicted.float(), measured.detach().float()
    if gpu_kernels.runs_triton(predicted.device) and not clipped:
        return FusedRankingLoss.apply(*values)
    return RankingLoss.apply(*values, clipped)


def absolute_loss(predicted: Tensor, measured: Tensor, *, unbiased: bool = True) -> Tensor:
    """Mean squared error against losses standardised per clip: (B, M), (B, M) -> scalar.

    ``unbiased``: divide squared differences by M - 1, as HPM's code does, else by M. One token has
    no variance: its loss is compared with 0.
    """
    target = measured.detach().float()
    correction = int(unbiased and target.shape[1] > 1)
    variance, mean = torch.var_mean(target, dim=1, keepdim=True, correction=correction)
    return F.mse_loss(predicted.float(), (target - mean) / (variance + 1e-6).sqrt())


# How the predictor learns, by the words of `LossConfig.objective`
OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ranking": ranking_loss,
    "ranking_clipped": partial(ranking_loss, clipped=True),
    "absolute": absolute_loss,
    "absolute_biased": partial(absolute_loss, unbiased=False),
}


@torch.no_grad()
def rank_accuracy(predicted: Tensor, measured: Tensor) -> Tensor:
    """Share of a clip's pairs with different measured losses that are predicted in the right order:
    (B, M), (B, M) -> scalar. A tied prediction counts half, so that 0.5 is chance. NaN without
    such a pair."""
    if gpu_kernels.runs_triton(predicted.device):
        return fused_rank_accuracy(predicted, measured)
    right = predicted.new_zeros((), dtype=torch.float64)
    pairs = right.clone()
    for rows in row_chunks(predicted.shape[1]):
        harder = measured[:, rows, None] > measured[:, None, :]  # (B, chunk, M)
        margin = predicted[:, rows, None] - predicted[:, None, :]
        right += (harder * (margin.sign() + 1) / 2).sum(dtype=torch.float64)
        pairs += harder.sum()
    return right / pairs
