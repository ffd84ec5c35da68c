"""What a classifier is trained with: cross-entropy, weighted by class where classes are uneven, or
binary cross-entropy of every class where videos have several labels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(
    logits: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of logits (B, classes); each clip counts by the weight of its class.

    ``targets``: classes (B,) int64, or shares of them (B, classes) float, whose weights are
    averaged by their shares. ``class_weights`` (classes,), see `balancing_weights`. The mean is
    over B, whatever the weights of a batch sum to, so that accumulated batches are one large one.
    """
    if class_weights is None:
        return F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    losses = F.cross_entropy(
        logits.float(), targets, label_smoothing=label_smoothing, reduction="none"
    )
    weights = targets @ class_weights if targets.is_floating_point() else class_weights[targets]
    return (losses * weights).mean()


def several_labels_loss(logits: Tensor, targets: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean binary cross-entropy over clips and classes: logits (B, classes).

    ``targets``: (B, classes) float, 1 for each class that a clip has, or shares where clips are
    mixed. Smoothing moves targets towards 1/2, so that a score of 1/2 keeps its meaning.
    """
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), smoothed)


def balancing_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Weights (classes,) under which every class of labels (videos,) counts the same in all.

    Their mean over the videos is 1; of a class without videos the weight is 0.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return weights.where(counts > 0, 0)
