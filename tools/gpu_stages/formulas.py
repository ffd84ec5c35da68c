"""The ranking loss as its formula stands, for autograd, with all pairs in memory at once."""

import torch.nn.functional as F
from torch import Tensor


def plain_ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """`ranking_loss` (HPM, arXiv 2304.05919), of all pairs of a clip's tokens."""
    harder = (measured[:, :, None] > measured[:, None, :]).to(predicted.dtype)
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()
