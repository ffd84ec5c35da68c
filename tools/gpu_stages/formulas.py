"""The losses as their formulas stand, for autograd, with everything in memory at once."""

import torch.nn.functional as F
from torch import Tensor

from hpm_video.method.losses import reconstruction_loss
from hpm_video.models.pixels import as_floats, gather_patches
from hpm_video.models.tokens import normalize_targets


def plain_ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """`ranking_loss` (HPM, arXiv 2304.05919), of all pairs of a clip's tokens."""
    harder = (measured[:, :, None] > measured[:, None, :]).to(predicted.dtype)
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()


def plain_patch_loss(
    reconstruction: Tensor, patches: Tensor, index: Tensor, *, normalize: bool
) -> Tensor:
    """`patch_loss` of tokens (B, M, P) against patches (B, N, P) at index (B, M) -> (B, M)."""
    targets = as_floats(gather_patches(patches, index))
    return reconstruction_loss(reconstruction, normalize_targets(targets) if normalize else targets)
