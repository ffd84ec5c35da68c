"""One feature of each video of a list, from a frozen encoder, as a file; see docs/features.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Subset

from hpm_video.config import FeaturesConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.samples.views import views_of
from hpm_video.evaluate.feature_file import SUFFIXES, Parts, fingerprint, write_features
from hpm_video.evaluate.frozen_encoder import LoadedBackbone, load_backbone
from hpm_video.runtime.distributed import barrier, join_world
from hpm_video.runtime.files import check_can_be_folder
from hpm_video.weights.checkpoint import find_checkpoint

PART = 512  # videos or windows that are saved at a time


@dataclass(frozen=True)
class Extracted:
    """What came out: the file or index, how many videos, and (path, reason) of unreadable ones."""

    output: Path
    num_videos: int
    bad: tuple[tuple[str, str], ...]


def output_file(output: Path, name: str) -> Path:
    """The file of features that an output means: itself or, of a folder, NAME.npz in it.

    A folder is what is one, or has no ending. Raises ValueError for another ending than ours.
    """
    if output.is_dir() or not output.suffix:
        check_can_be_folder(output, name="output")
        return output / f"{name}.npz"
    if output.suffix not in SUFFIXES:
        raise ValueError(
            f"output ({output}) must end in {' or '.join(SUFFIXES)}, or be a folder: one that is "
            "there, or a name without an ending"
        )
    return output


def list_features(
    checkpoint: str | Path, manifests: Sequence[str], output: Path, config: FeaturesConfig
) -> Extracted:
    """One feature of each video of lists, the mean over its views, into one file (of a folder:
    features.npz in it).

    Work is shared out over processes. Unreadable videos are NaN. Raises UnreadableDataError where
    none is readable.
    """
    output = output_file(output, "features")
    manifest = read_manifest(list(manifests), root=config.root)
    with join_world(config.device, setting="device") as world:
        loaded = load_backbone(
            checkpoint, precision=config.precision, device=world.device, clip=config.clip
        )
        names = [manifest.name(index) for index in range(len(manifest))]
        description = {
            **about(checkpoint, loaded, config),
            "lists": [os.fspath(path) for path in manifests],
            "sampling": loaded.data.sampling,
            "frame_stride": loaded.data.frame_stride,
            "num_clips": config.num_clips,
        }
        described = fingerprint([description, config.root, names, manifest.labels.tolist()])
        parts = Parts(output, described=described)
        if world.is_main:
            parts.clean()
        barrier(world)
        count = -(-len(manifest) // PART)
        for part in range(count)[world.rank :: world.size]:
            if not parts.has(part):
                rows = range(part * PART, min((part + 1) * PART, len(manifest)))
                parts.write(part, _encode_rows(loaded, manifest, rows, config))
        barrier(world)
        joined = parts.joined(count)
        reasons = joined.pop("reason").tolist()
        bad = [index for index, reason in enumerate(reasons) if reason]
        is_any_readable = len(bad) < len(manifest)
        if is_any_readable and world.is_main:
            arrays = {**joined, "label": np.asarray(manifest.labels)}
            metadata = {
                **description,
                "paths": names,
                "classes": None if manifest.classes is None else list(manifest.classes),
                "unreadable": {names[index]: reasons[index] for index in bad},
            }
            write_features(output, arrays, metadata)
        barrier(world)  # all have read what is removed
        if world.is_main:
            parts.remove()  # else the same command, with the videos back, would find none again
        if not is_any_readable:
            raise UnreadableDataError(
                f"none of {len(bad)} videos can be read, e.g. {manifest.path(0)}: {reasons[0]}"
            )
    pairs = tuple((manifest.path(index), reasons[index]) for index in bad)
    return Extracted(output, len(manifest), pairs)


def _encode_rows(
    loaded: LoadedBackbone, manifest: Manifest, rows: range, config: FeaturesConfig
) -> dict[str, npt.NDArray[Any]]:
    """Features (K, D) and reasons (K,), '' for readable videos, of some rows of a list."""
    backbone = loaded.backbone
    dataset = views_of(
        manifest, loaded.data, num_clips=config.num_clips, num_crops=config.num_crops
    )
    features = np.empty((len(rows), backbone.width), dtype=np.float32)
    reasons = [""] * len(rows)
    for batch in view_loader(
        Subset(dataset, rows),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        rank=0,
        world_size=1,
        timeout_s=config.decode_timeout_s or None,
    ):
        views = to_clips(batch.views.flatten(0, 1), backbone.device)
        pooled = backbone.pooled(backbone.encode(views))  # (B * views, D)
        means = pooled.unflatten(0, (len(batch.views), -1)).mean(dim=1).cpu().numpy()
        for index, feature, error in zip(batch.indices.tolist(), means, batch.errors, strict=True):
            place = rows.index(index)
            features[place] = np.nan if error is not None else feature
            reasons[place] = error or ""
    return {"features": features, "reason": np.array(reasons)}


def about(checkpoint: str | Path, loaded: LoadedBackbone, config: FeaturesConfig) -> dict[str, Any]:
    """What features depend on beside the videos, for their metadata."""
    file = find_checkpoint(checkpoint).resolve()
    return {
        "checkpoint": os.fspath(file),
        "checkpoint_bytes": file.stat().st_size,
        "checkpoint_written_ns": file.stat().st_mtime_ns,
        "kind": loaded.kind,
        "step": loaded.step,
        "precision": config.precision,
        "window": loaded.data.num_frames,
        "crop_size": loaded.data.crop_size,
        "token": str(loaded.backbone.encoder.tokens.shape),
        "num_crops": config.num_crops,
    }
