"""Features of windows that slide over long videos, from a frozen encoder, as files with times; see
docs/features.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.config import FeaturesConfig
from hpm_video.config.limits import at_least
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.loading.windows import GuardedWindows, WindowReader, WindowSettings
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.evaluate.backbone import LoadedBackbone, load_backbone
from hpm_video.evaluate.feature_file import Parts, fingerprint, read_metadata, write_features
from hpm_video.evaluate.features import PART, Extracted, about, output_file, output_folder, stem_of
from hpm_video.runtime.distributed import World, barrier, gather_objects, join_world

_INDEX = ("path", "label", "features")  # first columns of a folder's index.csv


@dataclass(frozen=True)
class Sliding:
    """How windows slide: frames T of a window (None: as in training), frames from one of them to
    the next (None: as in training), frames from window to window (None: side by side)."""

    window: int | None = None
    frame_stride: int | None = None
    stride: int | None = None
    per_step: bool = False  # also a feature of each step in time of each window

    def __post_init__(self) -> None:
        for name in ("window", "frame_stride", "stride"):
            if (value := getattr(self, name)) is not None:
                at_least(name, value, 1)


def video_features(
    checkpoint: str | Path,
    video: str | Path,
    output: Path,
    sliding: Sliding,
    config: FeaturesConfig,
) -> Extracted:
    """Features of windows that slide over one video, however long, into one file (of a folder: one
    called after the video in it).

    Raises VideoReadError.
    """
    output = output_file(output, stem_of(video))
    with join_world(config.device, setting="device") as world:
        if world.size > 1:
            raise ValueError(f"processes ({world.size}) must be 1 for a single video")
        loaded = _load_for(checkpoint, sliding, config, world)
        description = _about_windows(checkpoint, loaded, sliding, config)
        _slide(loaded, video, output, sliding=sliding, config=config, description=description)
    return Extracted(output, 1, ())


def sliding_list_features(
    checkpoint: str | Path,
    manifests: Sequence[str],
    folder: Path,
    *,
    sliding: Sliding,
    config: FeaturesConfig,
) -> Extracted:
    """Features of windows that slide over each video of lists, a file for each, and index.csv.

    Videos are shared out over processes. What an earlier start has done is kept. Unreadable videos
    have no file, and the reason stands in the index. Raises UnreadableDataError where none is
    readable.
    """
    folder = output_folder(folder)
    index_file = folder / "index.csv"
    if index_file.is_file() and not index_file.read_bytes().startswith(",".join(_INDEX).encode()):
        raise ValueError(f"output ({folder}) must be another folder: its index.csv is not of ours")
    manifest = read_manifest(list(manifests), root=config.root)
    with join_world(config.device, setting="device") as world:
        loaded = _load_for(checkpoint, sliding, config, world)
        description = _about_windows(checkpoint, loaded, sliding, config)
        mine: list[tuple[int, str | None]] = []
        for index in range(len(manifest))[world.rank :: world.size]:
            path, reason = manifest.path(index), None
            try:
                _slide(
                    loaded,
                    path,
                    _file_of(folder, manifest, index),
                    sliding=sliding,
                    config=config,
                    description=description,
                )
            except VideoReadError as error:
                reason = error.reason
            mine.append((index, reason))
        found = dict(pair for part in gather_objects(mine, world) for pair in part)
        bad = tuple((manifest.path(i), r) for i, r in sorted(found.items()) if r is not None)
        if len(bad) == len(manifest):
            raise UnreadableDataError(
                f"none of {len(bad)} videos can be read, e.g. {bad[0][0]}: {bad[0][1]}"
            )
        rows = [
            {
                "path": manifest.name(index),
                "label": _label(manifest, index),
                "features": "" if found[index] else _file_of(folder, manifest, index).name,
                "reason": found[index] or "",
            }
            for index in range(len(manifest))
        ]
        if world.is_main:
            write_manifest(index_file, rows, columns=_INDEX)
        barrier(world)
    return Extracted(index_file, len(manifest), bad)


def _slide(
    loaded: LoadedBackbone,
    path: str | Path,
    output: Path,
    *,
    sliding: Sliding,
    config: FeaturesConfig,
    description: dict[str, Any],
) -> None:
    """Write the features of a video's windows, unless they are there; goes on where it stopped."""
    check_is_file(os.fspath(path))
    stat = os.stat(path)
    described = fingerprint([description, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    if (read_metadata(output) or {}).get("fingerprint") == described:
        return
    settings = WindowSettings(
        clip_frames=loaded.data.num_frames,
        frame_stride=description["frame_stride"],
        stride=description["stride"],
        crop_size=loaded.data.crop_size,
        num_crops=config.num_crops,
        batch_size=config.batch_size,
        part=PART,
    )
    with GuardedWindows(
        WindowReader(os.fspath(path), settings),
        num_workers=config.num_workers,
        timeout_s=config.decode_timeout_s or None,
    ) as video:
        parts = Parts(output, described=described)
        parts.clean()
        try:
            joined = _encode_windows(loaded, video, parts, sliding)
        except VideoReadError:
            parts.remove_if_empty()
            raise
    indices, tubelet = video.indices, loaded.tubelet_size
    times = {"start_s": video.times[indices[:, 0]], "end_s": video.times[indices[:, -1] + 1]}
    if sliding.per_step:
        times["step_start_s"] = video.times[indices[:, ::tubelet]]
        times["step_end_s"] = video.times[indices[:, tubelet - 1 :: tubelet] + 1]
    metadata = {
        **description,
        "fingerprint": described,
        "video": os.fspath(path),
        "num_frames": video.num_frames,
        "fps": video.fps,
        "end_s": None if np.isnan(video.times[-1]) else float(video.times[-1]),
    }
    write_features(output, {**joined, "frames": indices, **times}, metadata)
    parts.remove()


def _encode_windows(
    loaded: LoadedBackbone, video: GuardedWindows, parts: Parts, sliding: Sliding
) -> dict[str, npt.NDArray[Any]]:
    """Features of all windows of a video, and of their steps, part by part; those that are done
    are not done again."""
    backbone = loaded.backbone
    device = backbone.encoder.mean.device
    count = -(-len(video.indices) // PART)
    first = next((part for part in range(count) if not parts.has(part)), count)
    kept: dict[str, list[npt.NDArray[Any]]] = {}
    num_done = first * PART
    for windows in video.batches(num_done):
        tokens = backbone.encode(to_clips(windows.flatten(0, 1), device))
        found = {"features": backbone.pooled(tokens)}
        if sliding.per_step:
            found["step_features"] = backbone.steps(tokens)
        for name, features in found.items():
            mean = features.unflatten(0, windows.shape[:2]).mean(dim=1)  # over crops
            kept.setdefault(name, []).append(mean.cpu().numpy())
        num_done += len(windows)
        if num_done % PART == 0 or num_done == len(video.indices):
            whole = {name: np.concatenate(values) for name, values in kept.items()}
            parts.write((num_done - 1) // PART, whole)
            kept = {}
    return parts.joined(count)


def _load_for(
    checkpoint: str | Path, sliding: Sliding, config: FeaturesConfig, world: World
) -> LoadedBackbone:
    clip = config.clip
    if sliding.window is not None:
        clip = replace(clip, num_frames=sliding.window)
    return load_backbone(checkpoint, precision=config.precision, device=world.device, clip=clip)


def _about_windows(
    checkpoint: str | Path, loaded: LoadedBackbone, sliding: Sliding, config: FeaturesConfig
) -> dict[str, Any]:
    frame_stride = sliding.frame_stride or loaded.data.frame_stride
    return {
        **about(checkpoint, loaded, config),
        **asdict(sliding),
        "window": loaded.data.num_frames,
        "frame_stride": frame_stride,
        "stride": sliding.stride or frame_stride * loaded.data.num_frames,
    }


def _label(manifest: Manifest, index: int) -> str:
    """The class of a video: its name where it has one, '' for none."""
    label = manifest.label(index)
    if label < 0:
        return ""
    return str(label) if manifest.classes is None else manifest.classes[label]


def _file_of(folder: Path, manifest: Manifest, index: int) -> Path:
    """The file of a video of a list: its number keeps videos of one name apart."""
    return folder / f"{index:06d}_{stem_of(manifest.name(index))}.npz"
