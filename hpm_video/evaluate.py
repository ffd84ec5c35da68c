"""Evaluation of a classifier: several views per video, decoded once, one verdict per video."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpm_video.checkpoint import load_checkpoint, load_weights
from hpm_video.config import DataConfig, EvaluateConfig, EvaluationConfig, FinetuneConfig
from hpm_video.data.bad_videos import UnreadableDataError
from hpm_video.data.loader import to_clips, view_loader
from hpm_video.data.manifest import Manifest, read_manifest
from hpm_video.data.views import ViewDataset
from hpm_video.distributed import World, gather_objects, join_world
from hpm_video.loop import autocast
from hpm_video.models import build_classifier, token_grid
from hpm_video.models.classifier import Classifier
from hpm_video.settings import config_from_dict
from hpm_video.tokens import TokenGrid


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over a manifest.

    scores (videos, classes): mean softmax over a video's views; zero rows for unreadable videos.
    labels (videos,), paths: of the videos.
    bad: (manifest index, reason) of unreadable videos; they count as wrong.
    """

    scores: np.ndarray
    labels: np.ndarray
    paths: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]

    def top(self, k: int) -> float:
        """Share of all videos whose label is among the k highest scores."""
        k = min(k, self.scores.shape[1])
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        right = (best == self.labels[:, None]).any(axis=1)
        right[[index for index, _ in self.bad]] = False
        return float(right.mean())


@torch.no_grad()
def evaluate_classifier(
    model: Classifier,
    manifest: Manifest,
    *,
    data: DataConfig,
    evaluation: EvaluationConfig,
    precision: str,
    num_workers: int,
    decode_timeout_s: float | None,
    world: World,
) -> Evaluation:
    """Score every video of a manifest; the result does not depend on the number of processes."""
    num_classes = model.head.out_features
    check_labels(manifest, num_classes)
    dataset = ViewDataset(
        manifest,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        sampling=data.sampling,
        crop_size=data.crop_size,
        num_clips=evaluation.num_clips,
        num_crops=evaluation.num_crops,
        decoder=data.decoder,
    )
    loader = view_loader(
        dataset,
        batch_size=evaluation.batch_size,
        num_workers=num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=decode_timeout_s or None,
    )
    was_training = model.training
    model.eval()
    mine: list[tuple[int, np.ndarray, str | None]] = []
    for batch in loader:
        views = batch.views.flatten(0, 1)  # (B * views, T, S, S, 3)
        with autocast(world.device, precision):
            logits = model(to_clips(views, world.device))
        probability = logits.float().softmax(dim=-1).unflatten(0, batch.views.shape[:2])
        for index, row, error in zip(
            batch.indices.tolist(), probability.mean(dim=1).cpu().numpy(), batch.errors, strict=True
        ):
            mine.append((index, row, error))
    model.train(was_training)

    scores = np.zeros((len(manifest), num_classes), dtype=np.float32)
    bad: list[tuple[int, str]] = []
    for part in gather_objects(mine, world):
        for index, row, error in part:
            if error is None:
                scores[index] = row
            else:
                bad.append((index, error))
    paths = tuple(manifest.path(index) for index in range(len(manifest)))
    return Evaluation(scores, np.asarray(manifest.labels), paths, tuple(sorted(bad)))


def check_labels(manifest: Manifest, num_classes: int) -> None:
    """Raise ValueError, naming the first, when a label is not in [0, num_classes)."""
    labels = np.asarray(manifest.labels)
    for index in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
        raise ValueError(
            f"label ({labels[index]}) of {manifest.path(int(index))} must be in "
            f"[0, {num_classes - 1}]: the model has {num_classes} classes"
        )


def load_classifier(checkpoint: str | Path) -> tuple[Classifier, FinetuneConfig, list[str] | None]:
    """The model of a fine-tuning checkpoint, its settings, and its class names if known."""
    state = load_checkpoint(checkpoint, kind="finetune")
    config = config_from_dict(FinetuneConfig, state["config"])
    grid = token_grid(
        config.model, num_frames=config.data.num_frames, crop_size=config.data.crop_size
    )
    model = build_classifier(
        config.model,
        grid,
        num_classes=state["num_classes"],
        trained_grid=TokenGrid(*state["trained_grid"]),
    )
    load_weights(model, state["model"], source=checkpoint)
    return model, config, state["classes"]


def evaluate(
    checkpoint: str | Path, manifests: Sequence[str], config: EvaluateConfig
) -> Evaluation:
    """Evaluate a fine-tuning checkpoint on lists of videos, with the views of ``config``."""
    model, trained, classes = load_classifier(checkpoint)
    manifest = read_manifest(list(manifests), root=config.root, classes=classes)
    with join_world(config.device, setting="device") as world:
        result = evaluate_classifier(
            model.to(world.device),
            manifest,
            data=trained.data,
            evaluation=config.evaluation,
            precision=config.precision,
            num_workers=config.num_workers,
            decode_timeout_s=config.decode_timeout_s,
            world=world,
        )
    if len(result.bad) == len(result.labels):
        index, reason = result.bad[0]
        raise UnreadableDataError(
            f"none of {len(result.bad)} videos can be read, e.g. {result.paths[index]}: {reason}"
        )
    return result
