"""Losses of classifiers: cross-entropy, optionally weighted by class, and binary cross-entropy for
videos with several labels."""

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
    """Mean cross-entropy of logits (B, classes), optionally weighted by class.

    ``targets``: class indices (B,) int64, or shares (B, classes) float, whose weights are averaged
    by share. ``class_weights`` (classes,): see `balancing_weights`. The sum is divided by B, not by
    the batch's weights, so accumulated micro-batches equal one large batch.
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

    ``targets``: (B, classes) float, 1 for each class of a clip, or shares of mixed clips. Smoothing
    moves targets towards 1/2, so a score of 1/2 stays the decision boundary.
    """
    smoothed = targets * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits.float(), smoothed)


def balancing_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Class weights (classes,) under which all classes of labels (videos,) count equally.

    Their mean over videos is 1; classes without videos have weight 0.
    """
    counts = torch.bincount(labels, minlength=num_classes).float()
    weights = counts.sum() / (counts.count_nonzero() * counts)
    return weights.where(counts > 0, 0)
