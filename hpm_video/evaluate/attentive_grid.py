"""The published frozen evaluation (V-JEPA, arXiv 2404.08471; V-JEPA 2, arXiv 2506.09985): attention
blocks on all tokens of a video, trained once for each pair of learning rate and weight decay.

All pairs train side by side, so each batch of tokens is read once. Notation: K training videos, V
judged videos, S crops, M tokens per crop (all clips in time, all layers) of width D, C classes, G
pairs. The global random state is not touched.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from hpm_video.config import GridConfig
from hpm_video.config.values import Precision
from hpm_video.evaluate.probe_heads import batches, held_out_videos
from hpm_video.models.precision import autocast

_MOST_HEADS = 16  # of the published probes, for any encoder
_MLP_RATIO = 4


@dataclass(frozen=True)
class GridPoint:
    """A pair of hyperparameters, with its top-1 and mean cross-entropy on the selection videos."""

    lr: float
    weight_decay: float
    top1: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class GridResult:
    """Scores (V, C) of the best point, all points, and how the best one was chosen, in words."""

    scores: Tensor
    best: GridPoint
    points: tuple[GridPoint, ...]
    how: str


class CrossAttention(nn.Module):
    """Cross-attention of a learnt query to all tokens: (B, M, D) -> (B, D).

    As published, the query has no norm, and no projection follows the attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        query = self.query.expand(len(tokens), -1, -1)
        given = self.q(query), *self.kv(self.norm1(tokens)).chunk(2, dim=-1)
        # (B, M, D) -> (B, heads, M, D / heads)
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, 2) for each in given)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled = (query + attended)[:, 0]
        result: Tensor = pooled + self.fc2(F.gelu(self.fc1(self.norm2(pooled))))
        return result


class AttentiveBlocks(nn.Module):
    """Self-attention blocks, cross-attention, a linear layer: tokens (B, M, D) -> logits (B, C)."""

    def __init__(self, width: int, *, heads: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(width, heads, mlp_ratio=_MLP_RATIO, qkv_bias=True, norm_layer=nn.LayerNorm)
            for _ in range(blocks - 1)
        )
        self.pool = CrossAttention(width, heads)
        self.head = nn.Linear(width, num_classes)  # PyTorch's initialisation, as published
        self._first_weights()

    def forward(self, tokens: Tensor) -> Tensor:
        for block in self.blocks:
            tokens = block(tokens)
        logits: Tensor = self.head(self.pool(tokens))
        return logits

    def _first_weights(self) -> None:
        for part in (*self.blocks.modules(), *self.pool.modules()):
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                nn.init.zeros_(part.bias)
        nn.init.trunc_normal_(self.pool.query, std=0.02)
        with torch.no_grad():
            for depth, block in enumerate(self.blocks, start=1):
                assert isinstance(block, Block) and isinstance(block.mlp.fc2, nn.Linear)
                block.attn.proj.weight /= math.sqrt(2 * depth)
                block.mlp.fc2.weight /= math.sqrt(2 * depth)
            self.pool.fc2.weight /= math.sqrt(2 * max(len(self.blocks), 1))


@dataclass(frozen=True)
class Views:
    """Tokens (K, clips * S * N, D) of videos, clip by clip and crop by crop, on the CPU in any
    precision. Batches are taken from them by `crop`."""

    tokens: Tensor
    num_clips: int
    num_crops: int

    def crop(self, rows: Tensor, crops: Tensor, device: torch.device) -> Tensor:
        """Tokens of one crop (B,) per row (B,), all clips in a row -> (B, M, D) float32."""
        found = [
            self.tokens[row].unflatten(0, (self.num_clips, self.num_crops, -1))[:, crop]
            for row, crop in zip(rows.tolist(), crops.tolist(), strict=True)
        ]
        return torch.stack(found).flatten(1, 2).to(device).float()


def grid_scores(
    train: Views,
    labels: Tensor,
    judged: Views,
    judged_labels: Tensor,
    *,
    num_classes: int,
    settings: GridConfig,
    precision: Precision,
    device: torch.device,
    seed: int = 0,
) -> GridResult:
    """Train all points, select the best, and return its scores of the judged videos.

    Scores are softmax, averaged over crops. Training draws one crop per video and epoch. labels
    (K,) and judged_labels (V,) are on the CPU; judged_labels take part in the selection only if the
    settings say so.
    """
    points = [GridPoint(*pair) for pair in product(settings.lrs, settings.weight_decays)]
    # float16 would need loss scaling
    precision = "bfloat16" if precision == "bfloat16" else "float32"
    learner = _Learner(num_classes, settings, precision, device, seed)
    everything = torch.arange(len(labels))
    judged_rows = torch.arange(len(judged_labels))
    if settings.chosen_on == "judged":
        models = learner.train(train, labels, everything, points)
        scores = [learner.scores(model, judged, judged_rows) for model in models]
        points = [_judged(p, s, judged_labels) for p, s in zip(points, scores, strict=True)]
        best = _best(points)
        how = "chosen on the validation list itself, so the result is optimistic"
        return GridResult(scores[best], points[best], tuple(points), how)
    held_out = held_out_videos(labels)
    if held_out.any():
        models = learner.train(train, labels, everything[~held_out], points)
        rows = everything[held_out]
        points = [
            _judged(point, learner.scores(model, train, rows), labels[rows])
            for point, model in zip(points, models, strict=True)
        ]
        best, how = _best(points), "chosen on a fifth of the training videos"
        del models
    else:
        best, how = len(points) // 2, "the middle one, as no class has videos to hold out"
    (model,) = learner.train(train, labels, everything, [points[best]])
    scores = [learner.scores(model, judged, judged_rows)]
    return GridResult(scores[0], points[best], tuple(points), how)


def heads_for(width: int, settings: GridConfig) -> int:
    """Attention heads; raises ValueError if probe.grid.heads does not divide the width."""
    usual = next(heads for heads in range(_MOST_HEADS, 0, -1) if width % heads == 0)
    heads = settings.heads or usual
    if width % heads:
        raise ValueError(
            f"probe.grid.heads ({heads}) must divide the feature width ({width}); set "
            f"probe.grid.heads={usual}"
        )
    return heads


@dataclass(frozen=True)
class _Learner:
    num_classes: int
    settings: GridConfig
    precision: Precision
    device: torch.device
    seed: int

    def train(
        self, views: Views, labels: Tensor, rows: Tensor, points: list[GridPoint]
    ) -> list[AttentiveBlocks]:
        """Train one model per point, with equal initial weights and equal batches of ``rows``."""
        settings, width = self.settings, views.tokens.shape[-1]
        models = [self._model(width) for _ in points]
        optimizer = torch.optim.AdamW(
            [
                {"params": model.parameters(), "lr": point.lr, "weight_decay": point.weight_decay}
                for model, point in zip(models, points, strict=True)
            ]
        )
        drawn = torch.Generator().manual_seed(self.seed + 1)
        size, epochs = settings.batch_size, settings.epochs
        with torch.enable_grad():
            for batch in batches(optimizer, len(rows), size, epochs=epochs, seed=self.seed):
                crops = torch.randint(views.num_crops, batch.shape, generator=drawn)
                for part, crop in self._parts(views, rows[batch], crops):
                    tokens = views.crop(part, crop, self.device)
                    target = labels[part].to(self.device)
                    for model in models:
                        with autocast(self.device, self.precision):
                            logits = model(tokens)
                        loss = F.cross_entropy(logits.float(), target, reduction="sum")
                        (loss / len(batch)).backward()
        return models

    @torch.no_grad()
    def scores(self, model: AttentiveBlocks, views: Views, rows: Tensor) -> Tensor:
        """Softmax averaged over crops, (rows, C), on the CPU."""
        found = torch.zeros(len(rows), self.num_classes)
        for crop in range(views.num_crops):
            done = 0
            for part, crops in self._parts(views, rows, torch.full_like(rows, crop)):
                tokens = views.crop(part, crops, self.device)
                with autocast(self.device, self.precision):
                    logits = model(tokens)
                found[done : done + len(part)] += logits.float().softmax(dim=1).cpu()
                done += len(part)
        return found / views.num_crops

    def _model(self, width: int) -> AttentiveBlocks:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed)
            return AttentiveBlocks(
                width,
                heads=heads_for(width, self.settings),
                blocks=self.settings.blocks,
                num_classes=self.num_classes,
            ).to(self.device)

    def _parts(self, views: Views, rows: Tensor, crops: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Split rows and their crops into parts that fit into memory, each of at least one row."""
        num_tokens, width = views.tokens.shape[1] // views.num_crops, views.tokens.shape[2]
        # Values that one token keeps for the backward pass: 17 widths per block, 4 in the last one
        each = 4 * num_tokens * width * (17 * (self.settings.blocks - 1) + 4)
        size = max(1, int(self.settings.memory_gb * 1e9 / each))
        return zip(rows.split(size), crops.split(size), strict=True)


def _judged(point: GridPoint, scores: Tensor, labels: Tensor) -> GridPoint:
    top1 = (scores.argmax(dim=1) == labels).double().mean().item()
    return GridPoint(point.lr, point.weight_decay, top1, F.nll_loss(scores.log(), labels).item())


def _best(points: list[GridPoint]) -> int:
    """Index of the highest top1; ties go to the smallest loss. Diverged points come last."""

    def quality(number: int) -> tuple[float, float]:
        top1, loss = points[number].top1, points[number].loss
        assert top1 is not None and loss is not None
        return (-1.0, 0.0) if math.isnan(loss) else (top1, -loss)

    return max(range(len(points)), key=quality)
