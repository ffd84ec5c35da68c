"""Reconstruction error per token, and the objectives that train a predictor of it.

All losses are computed in float32, also under bfloat16 autocast.
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
    """Mean squared error of tokens (B, M, P) against patches (B, N, P) at index (B, M).

    Patches are floats in [0, 1] or bytes. ``normalize``: standardise each target patch first, see
    `normalize_targets`. Returns (B, M) float32; the patches get no gradient.
    """
    by_kernel = gpu_kernels.runs_triton(reconstruction.device)
    loss = FusedPatchLoss if by_kernel else PatchLoss
    return loss.apply(reconstruction, patches, index, normalize)


def feature_loss(reconstruction: Tensor, features: Tensor, *, num_layers: int) -> Tensor:
    """Squared distance between predicted and target features: (B, M, L * D) each -> (B, M) float32.

    Features of each of the L layers are scaled to length 1, so a distance is in [0, 4]; distances
    are averaged over layers. HPM's image code (arXiv 2304.05919) does so with one layer.
    """
    of_layers = (num_layers, reconstruction.shape[-1] // num_layers)
    ours, theirs = (
        F.normalize(values.float().unflatten(-1, of_layers), dim=-1)
        for values in (reconstruction, features)
    )
    return (ours - theirs).square().sum(dim=-1).mean(dim=-1)


def ranking_loss(predicted: Tensor, measured: Tensor, *, clipped: bool = False) -> Tensor:
    """Pairwise ranking loss of predictions p (B, M) against measured losses L (B, M) -> scalar.

    For each clip: -log sigmoid(p_i - p_j), averaged over all ordered pairs with L_i > L_j; then the
    mean over clips (HPM, arXiv 2304.05919: the relative loss). Tied pairs do not count; a clip with
    ties only contributes 0. ``measured`` gets no gradient.

    ``clipped``: use log(sigmoid(p_i - p_j) + 1e-6), as HPM's code does. A pair then costs at most
    13.8, where its gradient vanishes. This variant has no fused kernel.
    """
    values = predicted.float(), measured.detach().float()
    if gpu_kernels.runs_triton(predicted.device) and not clipped:
        return FusedRankingLoss.apply(*values)
    return RankingLoss.apply(*values, clipped)


def absolute_loss(predicted: Tensor, measured: Tensor, *, unbiased: bool = True) -> Tensor:
    """Mean squared error against losses standardised per clip: (B, M), (B, M) -> scalar.

    ``unbiased``: estimate the variance with M - 1, as HPM's code does, else with M. A single token
    has no variance; its target is 0.
    """
    target = measured.detach().float()
    correction = int(unbiased and target.shape[1] > 1)
    variance, mean = torch.var_mean(target, dim=1, keepdim=True, correction=correction)
    return F.mse_loss(predicted.float(), (target - mean) / (variance + 1e-6).sqrt())


# Keyed by the values of `LossConfig.objective`
OBJECTIVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ranking": ranking_loss,
    "ranking_clipped": partial(ranking_loss, clipped=True),
    "absolute": absolute_loss,
    "absolute_biased": partial(absolute_loss, unbiased=False),
}


@torch.no_grad()
def rank_accuracy(predicted: Tensor, measured: Tensor) -> Tensor:
    """Share of pairs that the predictions put in the right order: (B, M), (B, M) -> scalar.

    Counts pairs within a clip whose measured losses differ; a tied prediction counts half, so
    chance is 0.5. NaN if no losses differ.
    """
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
