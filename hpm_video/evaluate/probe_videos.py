"""The videos of probes: two labelled lists, and their features from a frozen encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpm_video.config import DataConfig, ProbeConfig, ProbeJobConfig
from hpm_video.data.lists.manifest import Manifest, num_shared, read_manifest
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.samples.views import views_of
from hpm_video.evaluate.frozen_encoder import Backbone
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import World, gather_to_main


@dataclass(frozen=True)
class ProbeLists:
    """Labelled videos to learn from, others to judge, the number of classes of the former, and how
    many of the latter are learnt from too."""

    train: Manifest
    val: Manifest
    num_classes: int
    num_shared: int


@dataclass(frozen=True)
class Encoded:
    """Features of the readable videos of a list.

    features (K, C * D) float32: means over tokens and views, of each of C cells of the grid.
    tokens (K, views * N, D) float16, if they were asked for. labels (K,). bad: (manifest index,
    reason) of the videos that are left out. All on the CPU.
    """

    features: Tensor
    tokens: Tensor | None
    labels: Tensor
    bad: tuple[tuple[int, str], ...]


def read_probe_lists(
    train: Sequence[str], val: Sequence[str], *, root: str | None, names: tuple[str, str]
) -> ProbeLists:
    """Read both lists; classes are those of the first. ``names``: what messages call the two.

    Raises ValueError for a video without a label, or with one the first list does not have.
    """
    learnt = read_manifest(list(train), root=root)
    num_classes = learnt.num_classes
    if num_classes == 0:
        raise ValueError(f"{names[0]} ({', '.join(train)}) must have labels: has none")
    judged = read_manifest(
        list(val), root=root, classes=learnt.classes, numbers_only=learnt.classes is None
    )
    for manifest, name in ((learnt, names[0]), (judged, names[1])):
        labels = np.asarray(manifest.labels)
        for index in np.flatnonzero((labels < 0) | (labels >= num_classes))[:1]:
            label = "none" if labels[index] < 0 else labels[index]
            raise ValueError(
                f"label ({label}) of {manifest.path(int(index))} in {name} must be in "
                f"[0, {num_classes - 1}], the classes of {names[0]}"
            )
    return ProbeLists(learnt, judged, num_classes, num_shared(learnt, judged))


def check_probe(
    lists: ProbeLists, kinds: Sequence[str], settings: ProbeConfig, *, grid: TokenGrid, width: int
) -> None:
    """Raise ValueError where there are more cells than tokens, or more to keep than may be."""
    sizes = (grid.time, grid.height, grid.width)
    if any(cells > size for cells, size in zip(settings.cells, sizes, strict=True)):
        raise ValueError(
            f"probe.cells ({list(settings.cells)}) must not be finer than the grid, {grid}"
        )
    num_videos = len(lists.train) + len(lists.val)
    num_tokens = settings.num_clips * settings.num_crops * grid.num_tokens
    cells, tokens = math.prod(settings.cells) * torch.float32.itemsize, 0
    if "attentive" in kinds:
        tokens = num_tokens * torch.float16.itemsize
    for each, what, instead in (
        (cells, f"cells of {num_videos} videos take", "shorter lists, fewer probe.cells"),
        (
            tokens,
            f"tokens of {num_videos} videos take, for the attentive probe",
            "shorter lists, fewer views, another kind",
        ),
    ):
        needed = num_videos * each * width / 1e9
        if needed > settings.most_token_gb:
            raise ValueError(
                f"probe.most_token_gb ({settings.most_token_gb:g}) must be at least "
                f"{math.ceil(needed * 10) / 10}, the GB that the {what}: or {instead}"
            )


def encode_videos(
    backbone: Backbone,
    manifest: Manifest,
    data: DataConfig,
    config: ProbeJobConfig,
    world: World,
    *,
    with_tokens: bool,
) -> Encoded | None:
    """Encode the fixed views of all videos of a list, shared out over processes.

    The main process gets everything, each video once and in its place; the others get None.
    """
    settings = config.probe
    views = settings.num_clips * settings.num_crops
    batches = view_loader(
        views_of(manifest, data, num_clips=settings.num_clips, num_crops=settings.num_crops),
        batch_size=settings.batch_size,
        num_workers=config.num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=config.decode_timeout_s or None,
    )
    count, width = len(manifest), backbone.width
    features = torch.empty(count if world.is_main else 0, math.prod(settings.cells) * width)
    tokens = None
    if with_tokens and world.is_main:
        num_tokens = views * backbone.grid.num_tokens
        tokens = torch.empty(count, num_tokens, width, dtype=torch.float16)
    bad: list[tuple[int, str]] = []
    # Shares may differ by a batch. Gathered batch by batch, tokens never fill a device's memory
    for _ in range(-(-count // (world.size * settings.batch_size)) if count else 0):
        batch, mine = next(batches, None), None
        if batch is not None:
            encoded = backbone.encode(to_clips(batch.views.flatten(0, 1), world.device))
            pooled = backbone.pooled(encoded, settings.cells)  # (B * views, C * D)
            pooled = pooled.unflatten(0, (-1, views)).mean(dim=1).cpu()
            each = None
            if with_tokens:  # (B * views, N, D) -> (B, views * N, D)
                each = backbone.tokens(encoded).unflatten(0, (-1, views)).flatten(1, 2)
                each = each.to("cpu", torch.float16)
            mine = batch.indices.tolist(), pooled, each, batch.errors
        for part in gather_to_main(mine, world):
            if part is not None:
                indices, pooled, each, errors = part
                features[indices] = pooled
                if tokens is not None:
                    tokens[indices] = each
                pairs = zip(indices, errors, strict=True)
                bad += [(index, error) for index, error in pairs if error is not None]
    if not world.is_main:
        return None
    labels = torch.from_numpy(np.array(manifest.labels))
    if bad:
        readable = torch.ones(count, dtype=torch.bool)
        readable[[index for index, _ in bad]] = False
        features, labels = features[readable], labels[readable]
        tokens = None if tokens is None else tokens[readable]
    return Encoded(features, tokens, labels, tuple(sorted(bad)))
