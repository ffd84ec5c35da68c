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
from hpm_video.data.loading.guarded_windows import GuardedWindows, WindowReader, WindowSettings
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.evaluate.feature_file import (
    SUFFIXES,
    Parts,
    fingerprint,
    read_metadata,
    write_features,
)
from hpm_video.evaluate.frozen_encoder import LoadedBackbone, load_backbone
from hpm_video.evaluate.list_features import PART, Extracted, about, output_file
from hpm_video.runtime.distributed import World, barrier, gather_objects, join_world
from hpm_video.runtime.files import check_can_be_folder, printable

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


@dataclass(frozen=True)
class _Job:
    """What all videos of a command have in common; about: metadata of each of their files."""

    loaded: LoadedBackbone
    sliding: Sliding
    config: FeaturesConfig
    about: dict[str, Any]

    @classmethod
    def of(
        cls, checkpoint: str | Path, sliding: Sliding, config: FeaturesConfig, world: World
    ) -> _Job:
        clip = config.clip
        if sliding.window is not None:
            clip = replace(clip, num_frames=sliding.window)
        loaded = load_backbone(
            checkpoint, precision=config.precision, device=world.device, clip=clip
        )
        frame_stride = sliding.frame_stride or loaded.data.frame_stride
        description = {
            **about(checkpoint, loaded, config),
            **asdict(sliding),
            "window": loaded.data.num_frames,
            "frame_stride": frame_stride,
            "stride": sliding.stride or frame_stride * loaded.data.num_frames,
        }
        return cls(loaded, sliding, config, description)

    def windows(self, path: str) -> GuardedWindows:
        """The windows of a video."""
        data, config = self.loaded.data, self.config
        settings = WindowSettings(
            clip_frames=data.num_frames,
            frame_stride=self.about["frame_stride"],
            stride=self.about["stride"],
            crop_size=data.crop_size,
            num_crops=config.num_crops,
            batch_size=config.batch_size,
            part=PART,
        )
        timeout_s, reader = config.decode_timeout_s or None, WindowReader(path, settings)
        return GuardedWindows(reader, num_workers=config.num_workers, timeout_s=timeout_s)


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
    output = output_file(output, _stem_of(video))
    with join_world(config.device, setting="device") as world:
        if world.size > 1:
            raise ValueError(f"processes ({world.size}) must be 1 for a single video")
        _slide(_Job.of(checkpoint, sliding, config, world), os.fspath(video), output)
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
    if folder.suffix in SUFFIXES and not folder.is_dir():
        raise ValueError(
            f"output ({folder}) must be a folder: of a list by windows each video has a file"
        )
    check_can_be_folder(folder, name="output")
    index_file = folder / "index.csv"
    if index_file.is_file() and not index_file.read_bytes().startswith(",".join(_INDEX).encode()):
        raise ValueError(f"output ({folder}) must be another folder: its index.csv is not of ours")
    manifest = read_manifest(list(manifests), root=config.root)
    # Their numbers keep videos of one name apart
    files = [f"{i:06d}_{_stem_of(manifest.name(i))}.npz" for i in range(len(manifest))]
    with join_world(config.device, setting="device") as world:
        job = _Job.of(checkpoint, sliding, config, world)
        mine: list[tuple[int, str]] = []
        for index in range(len(manifest))[world.rank :: world.size]:
            try:
                _slide(job, manifest.path(index), folder / files[index])
            except VideoReadError as error:
                mine.append((index, error.reason))
        reasons = dict(pair for part in gather_objects(mine, world) for pair in part)
        bad = tuple((manifest.path(index), reasons[index]) for index in sorted(reasons))
        if len(bad) == len(manifest):
            raise UnreadableDataError(
                f"none of {len(bad)} videos can be read, e.g. {bad[0][0]}: {bad[0][1]}"
            )
        rows = [
            {
                "path": manifest.name(index),
                "label": _label(manifest, index),
                "features": "" if index in reasons else file,
                "reason": reasons.get(index, ""),
            }
            for index, file in enumerate(files)
        ]
        if world.is_main:
            write_manifest(index_file, rows, columns=_INDEX)
        barrier(world)
    return Extracted(index_file, len(manifest), bad)


def _slide(job: _Job, path: str, output: Path) -> None:
    """Write the features of a video's windows, unless they are there; goes on where it stopped."""
    check_is_file(path)
    stat = os.stat(path)
    described = fingerprint([job.about, os.path.abspath(path), stat.st_size, stat.st_mtime_ns])
    if (read_metadata(output) or {}).get("fingerprint") == described:
        return
    with job.windows(path) as video:
        parts = Parts(output, described=described)
        parts.clean()
        try:
            joined = _encode_windows(job, video, parts)
        except VideoReadError:
            parts.remove_if_empty()
            raise
    indices, tubelet = video.indices, job.loaded.backbone.encoder.tokens.shape.tubelet_size
    times = {"start_s": video.times[indices[:, 0]], "end_s": video.times[indices[:, -1] + 1]}
    if job.sliding.per_step:
        times["step_start_s"] = video.times[indices[:, ::tubelet]]
        times["step_end_s"] = video.times[indices[:, tubelet - 1 :: tubelet] + 1]
    metadata = {
        **job.about,
        "fingerprint": described,
        "video": path,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "end_s": None if np.isnan(video.times[-1]) else float(video.times[-1]),
    }
    write_features(output, {**joined, "frames": indices, **times}, metadata)
    parts.remove()


def _encode_windows(job: _Job, video: GuardedWindows, parts: Parts) -> dict[str, npt.NDArray[Any]]:
    """Features of all windows of a video, and of their steps, part by part; those that are done
    are not done again."""
    backbone = job.loaded.backbone
    count = -(-len(video.indices) // PART)
    first = next((part for part in range(count) if not parts.has(part)), count)
    kept: dict[str, list[npt.NDArray[Any]]] = {}
    num_done = first * PART
    for windows in video.batches(num_done):
        tokens = backbone.encode(to_clips(windows.flatten(0, 1), backbone.device))
        found = {"features": backbone.pooled(tokens)}
        if job.sliding.per_step:
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


def _label(manifest: Manifest, index: int) -> str:
    """The class of a video: its name where it has one, '' for none."""
    label = manifest.label(index)
    if label < 0:
        return ""
    return str(label) if manifest.classes is None else manifest.classes[label]


def _stem_of(video: str | Path) -> str:
    """What a file of a video's features is called after it."""
    return printable(Path(video).stem).replace(os.sep, "_")[:100]
