"""Probes: how good are the features of an encoder? Judged by simple classifiers on top of them.

The encoder is frozen, sees fixed views without masks, and every video is decoded and encoded once
for all kinds of probes (`hpm_video.evaluate.probe_heads`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hpm_video.config import DataConfig, ProbeConfig, ProbeJobConfig, check_probe_kinds
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.evaluate.frozen_encoder import Backbone, load_backbone
from hpm_video.evaluate.probe_heads import (
    attentive_scores,
    knn_scores,
    linear_scores,
    num_neighbours,
)
from hpm_video.evaluate.probe_videos import (
    Encoded,
    ProbeLists,
    check_probe,
    encode_videos,
    read_probe_lists,
)
from hpm_video.runtime.distributed import World, join_world, others_wait


@dataclass(frozen=True)
class ProbeResult:
    """What one kind of probe found.

    top1: share of all videos that are classified right, unreadable ones being wrong.
    balanced_accuracy: mean of that share over classes. how: what it settled on, in words. lr: of
    the linear probe.
    """

    kind: str
    top1: float
    balanced_accuracy: float
    how: str
    lr: float | None = None


@dataclass(frozen=True)
class ProbeReport:
    """Results of all kinds; bad: (path, reason, what comes of it) of unreadable videos. num_shared:
    videos to judge on that were learnt from, so that results say little."""

    results: tuple[ProbeResult, ...]
    num_train: int
    num_val: int
    bad: tuple[tuple[str, str, str], ...]
    num_shared: int

    def record(self) -> dict[str, float]:
        """Figures by name, for a record."""
        figures: dict[str, float] = {}
        for result in self.results:
            figures[f"{result.kind}_top1"] = result.top1
            figures[f"{result.kind}_balanced_accuracy"] = result.balanced_accuracy
            if result.lr is not None:
                figures[f"{result.kind}_lr"] = result.lr
        figures["unreadable"] = len(self.bad)
        return figures

    def warning(self) -> str | None:
        """What makes its results worth little, if anything does."""
        if not self.num_shared:
            return None
        return (
            f"warning: {self.num_shared} of {self.num_val} videos to judge on are learnt from too"
        )


def probe(
    checkpoint: str | Path,
    *,
    train: Sequence[str],
    val: Sequence[str],
    kinds: Sequence[str],
    config: ProbeJobConfig,
) -> ProbeReport | None:
    """Probe the encoder of a checkpoint, of pre-training or fine-tuning; None but on one process.

    Clips are sampled as the checkpoint's settings say, in the views of ``config``.
    """
    check_probe_kinds("kind", kinds)
    lists = read_probe_lists(train, val, root=config.root, names=("--train", "--val"))
    with join_world(config.device, setting="device") as world:
        loaded = load_backbone(
            checkpoint, precision=config.precision, device=world.device, clip=config.clip
        )
        backbone = loaded.backbone
        check_probe(lists, kinds, config.probe, grid=backbone.grid, width=backbone.width)
        return probe_backbone(backbone, lists, loaded.data, config, world, kinds=kinds)


def probe_backbone(
    backbone: Backbone,
    lists: ProbeLists,
    data: DataConfig,
    config: ProbeJobConfig,
    world: World,
    *,
    kinds: Sequence[str],
) -> ProbeReport | None:
    """Judge an encoder by probes of all ``kinds``; the report is the main process's.

    Clips are those of ``data``; views, workers and the probes are those of ``config``. Raises
    UnreadableDataError, on the main process, where no video of a list can be read.
    """
    train, val = (
        encode_videos(backbone, manifest, data, config, world, with_tokens="attentive" in kinds)
        for manifest in (lists.train, lists.val)
    )
    # Learning may take longer than a process may wait for another one in a collective
    with others_wait(world):
        if train is None or val is None:
            return None
        bad: list[tuple[str, str, str]] = []
        for part, manifest, what in (
            (train, lists.train, "not learnt from"),
            (val, lists.val, "counts as wrong"),
        ):
            named = [(manifest.path(index), reason, what) for index, reason in part.bad]
            if not len(part.labels):
                path, reason, _ = named[0]
                raise UnreadableDataError(
                    f"none of {len(named)} videos can be read, e.g. {path}: {reason}"
                )
            bad += named
        results = []
        for kind in kinds:
            scores, how, lr = _scores(
                kind, train, val, lists.num_classes, backbone=backbone, settings=config.probe
            )
            right = (scores.argmax(dim=1).cpu() == val.labels).numpy()
            shares = accuracies(right, val.labels.numpy(), np.asarray(lists.val.labels))
            results.append(ProbeResult(kind, *shares, how, lr))
    num_train, num_val = len(lists.train), len(lists.val)
    return ProbeReport(tuple(results), num_train, num_val, tuple(bad), lists.num_shared)


def _scores(
    kind: str,
    train: Encoded,
    val: Encoded,
    num_classes: int,
    *,
    backbone: Backbone,
    settings: ProbeConfig,
) -> tuple[torch.Tensor, str, float | None]:
    """What one kind of probe, learnt from ``train``, makes of ``val``: scores (V, C), what it
    settled on, and the learning rate that it chose."""
    device = backbone.device
    features, queries = train.features.to(device), val.features.to(device)
    labels = train.labels.to(device)
    if kind == "knn":
        occurring, most = len(train.labels.unique()), settings.knn_neighbours
        neighbours = num_neighbours(len(features), occurring, most=most)
        scores = knn_scores(
            features,
            labels,
            queries,
            num_classes=num_classes,
            neighbours=neighbours,
            temperature=settings.knn_temperature,
        )
        return scores, f"{neighbours} neighbours", None
    if kind == "linear":
        linear = linear_scores(
            features, labels, queries, num_classes=num_classes, epochs=settings.linear_epochs
        )
        by = "the middle one: no class has a video to spare"
        if linear.lr_was_chosen:
            by = "chosen on a fifth of the training videos"
        return linear.scores, f"lr {linear.lr:g}, {by}", linear.lr
    assert kind == "attentive" and train.tokens is not None and val.tokens is not None
    scores = attentive_scores(
        train.tokens,
        labels,
        val.tokens,
        num_classes=num_classes,
        heads=backbone.heads,
        epochs=settings.attentive_epochs,
        lr=settings.attentive_lr,
        device=device,
    )
    return scores, f"lr {settings.attentive_lr:g}, as given", None


def accuracies(
    right: np.ndarray, labels: np.ndarray, all_labels: np.ndarray
) -> tuple[float, float]:
    """Top-1 and balanced accuracy over all videos (V,), of which those with ``labels`` (K,) were
    classified, ``right`` (K,) or not; the rest are wrong."""
    classes = np.unique(all_labels)
    recalls = [right[labels == label].sum() / (all_labels == label).sum() for label in classes]
    return float(right.sum() / len(all_labels)), float(np.mean(recalls))
