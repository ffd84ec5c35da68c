"""Probe heads on frozen features: k-nearest neighbours, a linear layer, attention.

Pure functions of features and labels, on the device of the features. K training videos, V judged
videos, feature width D, C classes. Labels are classes (K,) int64 or, for multi-label lists, (K, C)
float32 of 0 and 1; then each class is scored on its own. The global random state is not touched.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

# For the linear probe, about a factor of 3 apart
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0, 3.0)
HELD_OUT = 5  # every fifth video of a class selects the learning rate
_LINEAR_BATCH = 256
_ATTENTIVE_BATCH = 32
_QUERIES_AT_ONCE = 1024


@dataclass(frozen=True)
class LinearResult:
    """Result of the linear probe: scores (V, C), learning rate, whether held-out videos selected
    it, and the layer for unnormalised features: weight (C, D), bias (C,)."""

    scores: Tensor
    lr: float
    lr_was_chosen: bool
    weight: Tensor
    bias: Tensor


def normalize(train: Tensor, *others: Tensor) -> list[Tensor]:
    """Normalise features (..., D) to mean 0 and deviation 1 in each of the D dimensions.

    The statistics are those of ``train`` for all of them.
    """
    mean, scale = _statistics(train)
    return [(features - mean) * scale for features in (train, *others)]


def _statistics(train: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and scale of each of the D dimensions for `normalize`."""
    flat = train.flatten(0, -2)
    mean, std = flat.mean(dim=0), flat.std(dim=0, correction=0)
    # A dimension that is constant over videos carries no information: make it 0, not noise
    return mean, torch.where(std > 1e-6, 1 / std, torch.zeros_like(std))


def num_neighbours(num_train: int, num_classes: int, *, most: int) -> int:
    """Number of neighbours that vote: ``most``, limited to the mean number of videos per class."""
    return max(1, min(most, num_train // num_classes))


def knn_scores(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    neighbours: int,
    temperature: float,
) -> Tensor:
    """Votes of the nearest neighbours: train (K, D), labels (K,), queries (V, D) -> (V, C).

    Similarity is the cosine of normalised features. Each of the nearest ``neighbours`` votes for
    its class with weight exp((cosine - highest cosine) / temperature). Rows sum to 1.
    """
    train, queries = normalize(train, queries)
    train, queries = F.normalize(train, dim=1), F.normalize(queries, dim=1)
    scores = []
    for part in queries.split(_QUERIES_AT_ONCE):
        cosine, nearest = (part @ train.T).topk(neighbours, dim=1)  # (V, neighbours)
        weights = (cosine / temperature).softmax(dim=1)
        # (V, neighbours, 1) * (V, neighbours, C): scatter-adding has no fixed order
        votes = weights[..., None] * F.one_hot(labels[nearest], num_classes)
        scores.append(votes.sum(dim=1))
    return torch.cat(scores)


def linear_scores(
    train: Tensor, labels: Tensor, queries: Tensor, *, num_classes: int, epochs: int
) -> LinearResult:
    """Linear classifier of normalised features: train (K, D), labels (K,), queries (V, D).

    Every fifth training video of each class is held out to select the learning rate; the final
    layer is then trained on all. ``queries`` take no part in the selection.
    """
    mean, scale = _statistics(train)
    train, queries = normalize(train, queries)
    held_out = held_out_videos(labels)
    learn = partial(train_linear, num_classes=num_classes, epochs=epochs)
    if held_out.any():
        layers = learn(train[~held_out], labels[~held_out], rates=LEARNING_RATES)
        logits = _linear(train[held_out], *layers)  # (rates, held out, C)
        loss = _losses(logits, labels[held_out])
        if labels.is_floating_point():
            quality = -loss.double()
        else:
            right = (logits.argmax(dim=2) == labels[held_out]).sum(dim=1)
            # On small sets many reach 100 %: take the most confident one
            quality = right.double() - torch.sigmoid(loss.double())
        best = int(torch.nan_to_num(quality, nan=-math.inf).argmax())  # NaN: diverged
    else:
        best = len(LEARNING_RATES) // 2
    lr = LEARNING_RATES[best]
    weights, biases = learn(train, labels, rates=(lr,))
    scores = _scores(_linear(queries, weights, biases)[0], labels)
    weight = scale[:, None] * weights[0]  # (D, C)
    return LinearResult(scores, lr, bool(held_out.any()), weight.T, biases[0] - mean @ weight)


def held_out_videos(labels: Tensor) -> Tensor:
    """Videos (K,) bool that select the learning rate: every fifth of each class, in order.

    A class of 2 to 4 videos gives its last one, a single video none. For multi-label lists it is
    every fifth of all videos.
    """
    held_out = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    if labels.is_floating_point():
        held_out[HELD_OUT - 1 :: HELD_OUT] = True
        return held_out
    for label in labels.unique():
        places = torch.nonzero(labels == label)[:, 0]
        chosen = places[HELD_OUT - 1 :: HELD_OUT]
        held_out[chosen if len(chosen) or len(places) < 2 else places[-1:]] = True
    return held_out


def train_linear(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    rates: tuple[float, ...],
    epochs: int,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Train a linear layer for each of R learning rates, all together.

    Features (K, D), labels (K,) -> weights (R, D, C), biases (R, C). SGD with momentum from zero
    weights, batches of 256 in an order given by the seed, cosine schedule to 0.
    """
    count, width = features.shape
    weights = features.new_zeros(len(rates), width, num_classes).requires_grad_()
    biases = features.new_zeros(len(rates), num_classes).requires_grad_()
    # Layers share no parameters, and the gradient of lr * loss is lr times that of the loss. So one
    # optimizer with rate 1 equals SGD at each layer's own rate
    optimizer = torch.optim.SGD([weights, biases], lr=1.0, momentum=0.9)
    lr = torch.tensor(rates, device=features.device)
    with torch.enable_grad():
        for batch in batches(optimizer, count, _LINEAR_BATCH, epochs=epochs, seed=seed):
            rows = batch.to(features.device)
            logits = _linear(features[rows], weights, biases)  # (R, B, C)
            (_losses(logits, labels[rows]) * lr).sum().backward()
    return weights.detach(), biases.detach()


def attentive_scores(
    train: Tensor,
    labels: Tensor,
    queries: Tensor,
    *,
    num_classes: int,
    heads: int,
    epochs: int,
    lr: float,
    device: torch.device,
    seed: int = 0,
) -> Tensor:
    """One cross-attention block with a learnt query over tokens, and a linear layer.

    Train (K, M, D) and queries (V, M, D): M tokens per video in any precision, on the CPU because
    they are large; labels (K,) -> (V, C). AdamW with a cosine schedule at the given rate; nothing
    is selected. The block is timm's `AttentionPoolLatent`.
    """
    # Statistics over all tokens, video by video: a float32 copy of all would not fit into memory
    means = torch.stack([video.float().mean(dim=0) for video in train])
    squares = torch.stack([video.float().square().mean(dim=0) for video in train])
    mean = means.mean(dim=0)
    scale = (squares.mean(dim=0) - mean.square()).clamp(min=1e-12).rsqrt()
    mean, scale = mean.to(device), scale.to(device)

    def ready(tokens: Tensor) -> Tensor:
        return (tokens.to(device).float() - mean) * scale

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        pool = AttentionPoolLatent(train.shape[-1], num_heads=heads, norm_layer=nn.LayerNorm)
        model = nn.Sequential(pool, nn.LayerNorm(train.shape[-1]))
        model.append(nn.Linear(train.shape[-1], num_classes)).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05)
    with torch.enable_grad():
        for rows in batches(optimizer, len(train), _ATTENTIVE_BATCH, epochs=epochs, seed=seed):
            _losses(model(ready(train[rows]))[None], labels[rows].to(device)).sum().backward()
    with torch.no_grad():
        parts = [_scores(model(ready(part)), labels) for part in queries.split(_ATTENTIVE_BATCH)]
    return torch.cat(parts)


def _scores(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (V, C) -> scores, for a head trained on such labels."""
    return logits.sigmoid() if labels.is_floating_point() else logits.softmax(dim=1)


def _linear(features: Tensor, weights: Tensor, biases: Tensor) -> Tensor:
    """Apply R layers to features (B, D) -> (R, B, C)."""
    return torch.einsum("bd,rdc->rbc", features, weights) + biases[:, None]


def _losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of each of R layers: logits (R, B, C), labels -> (R,). For multi-label
    lists: binary cross-entropy summed over classes."""
    if labels.is_floating_point():
        each = F.binary_cross_entropy_with_logits(
            logits, labels.expand_as(logits), reduction="none"
        )
        return each.sum(dim=2).mean(dim=1)
    target = labels.repeat(len(logits))
    losses = F.cross_entropy(logits.flatten(0, 1), target, reduction="none")
    return losses.unflatten(0, logits.shape[:2]).mean(dim=1)


def batches(
    optimizer: torch.optim.Optimizer, count: int, size: int, *, epochs: int, seed: int
) -> Iterator[Tensor]:
    """Yield the rows of each batch, drawn on the CPU for the same order on every device.

    After each batch the optimizer steps on the accumulated gradients, on a cosine schedule to 0.
    """
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * -(-count // size))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(count, generator=generator).split(size):
            optimizer.zero_grad()
            yield rows
            optimizer.step()
            schedule.step()
