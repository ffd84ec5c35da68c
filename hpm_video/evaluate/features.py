"""Extract features with a frozen encoder: one per video, or one per sliding window.

See docs/features.md.
"""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Subset

from hpm_video.config import ClipConfig, DataConfig, FeaturesConfig, FrozenEncoderConfig
from hpm_video.config.limits import at_least
from hpm_video.data.lists.manifest import Manifest, check_some_exist, read_manifest, write_manifest
from hpm_video.data.loading.bad_videos import none_readable
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.loading.windows import GuardedWindows, WindowReader, WindowSettings
from hpm_video.data.remote.fetching import fetched
from hpm_video.data.remote.urls import is_url
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.data.video.part import stem_of
from hpm_video.evaluate.feature_file import (
    SUFFIXES,
    Parts,
    fingerprint,
    read_metadata,
    write_features,
)
from hpm_video.evaluate.frozen_encoder import (
    Backbone,
    LoadedBackbone,
    load_backbone,
)
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, barrier, gather_objects, join_world
from hpm_video.runtime.files import check_can_be_folder, printable
from hpm_video.runtime.progress import Progress
from hpm_video.weights.foreign.encoder_sources import Source
from hpm_video.weights.foreign.stored_model import version_of

PART = 512  # videos or windows per saved part
_INDEX = ("path", "label", "features")  # first columns of a folder's index.csv


@dataclass(frozen=True)
class Extracted:
    """Result: the file or index, the number of videos, and (path, reason) of unreadable ones."""

    output: Path
    num_videos: int
    bad: tuple[tuple[str, str], ...]
    notes: tuple[str, ...] = ()  # on the lists


@dataclass(frozen=True)
class Sliding:
    """Sliding windows: frames T per window, stride between frames, stride between windows.

    None: T and the frame stride as in training; windows side by side.
    """

    window: int | None = None
    frame_stride: int | None = None
    stride: int | None = None
    per_step: bool = False  # also one feature per time step of each window

    def __post_init__(self) -> None:
        for name in ("window", "frame_stride", "stride"):
            at_least(name, getattr(self, name), 1)


def list_features(
    checkpoint: str | Path, manifests: Sequence[str], output: Path, config: FeaturesConfig
) -> Extracted:
    """Write one feature per video of the lists, the mean over its views, into one file.

    For a folder it is features.npz in it. Processes share the videos. Unreadable videos get NaN.
    Raises UnreadableDataError if no video is readable.
    """
    output = _output_file(output, "features")
    manifest = read_manifest(list(manifests), root=config.root, several=config.labels)
    check_some_exist(manifest)
    with join_world(config.device, setting="device") as world:
        config = _with_precision(config, world)
        loaded = _load(checkpoint, config.clip, config, world)
        names = [manifest.name(index) for index in range(len(manifest))]
        description = {
            **_about(checkpoint, loaded, config),
            "lists": [os.fspath(path) for path in manifests],
            "sampling": loaded.data.sampling,
            **_rate(loaded.data),
            "frame_stride": loaded.data.frame_stride,
            "num_clips": config.num_clips,
        }
        labels = manifest.targets(np.arange(len(manifest)))
        described = fingerprint([description, config.root, names, labels.tolist()])
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
            arrays = {**joined, "label": labels}
            metadata = {
                **description,
                "paths": names,
                "classes": None if manifest.classes is None else list(manifest.classes),
                "unreadable": {names[index]: reasons[index] for index in bad},
            }
            write_features(output, arrays, metadata)
        barrier(world)  # wait until all ranks have read the parts
        if world.is_main:
            parts.remove()  # so that a retry reads the videos again
    pairs = tuple((manifest.path(index), reasons[index]) for index in bad)
    if not is_any_readable:
        raise none_readable(pairs)
    return Extracted(output, len(manifest), pairs, (*manifest.notes, *loaded.notes))


def video_features(
    checkpoint: str | Path,
    video: str | Path,
    output: Path,
    sliding: Sliding,
    config: FeaturesConfig,
) -> Extracted:
    """Write features of windows that slide over one video of any length into one file.

    For a folder the file is named after the video. Raises VideoReadError.
    """
    output = _output_file(output, _stem_of(video))
    with join_world(config.device, setting="device") as world:
        if world.size > 1:
            raise ValueError(f"processes ({world.size}) must be 1 for a single video")
        config = _with_precision(config, world)
        loaded, about = _load_for_windows(checkpoint, sliding, config, world)
        with fetched(os.fspath(video)) as local:
            _slide(loaded, os.fspath(video), local, output, config, about=about)
    return Extracted(output, 1, (), loaded.notes)


def sliding_list_features(
    checkpoint: str | Path,
    manifests: Sequence[str],
    folder: Path,
    *,
    sliding: Sliding,
    config: FeaturesConfig,
) -> Extracted:
    """Write one file of sliding-window features per video of the lists, and index.csv.

    Processes share the videos. Files of an interrupted run are kept. Unreadable videos have no
    file; the index gives the reason. Raises UnreadableDataError if no video is readable.
    """
    if folder.suffix in SUFFIXES and not folder.is_dir():
        raise ValueError(
            f"output ({folder}) must be a folder: windows of a list go into one file per video"
        )
    check_can_be_folder(folder, name="output")
    index_file = folder / "index.csv"
    if index_file.is_file() and not index_file.read_bytes().startswith(",".join(_INDEX).encode()):
        raise ValueError(
            f"output ({folder}) must be another folder: hpm-video did not write its index.csv"
        )
    manifest = read_manifest(list(manifests), root=config.root, several=config.labels)
    check_some_exist(manifest)
    # The list index keeps videos of the same name apart
    files = [f"{i:06d}_{_stem_of(manifest.name(i))}.npz" for i in range(len(manifest))]
    with join_world(config.device, setting="device") as world:
        config = _with_precision(config, world)
        loaded, about = _load_for_windows(checkpoint, sliding, config, world)
        mine: list[tuple[int, str]] = []
        share = range(len(manifest))[world.rank :: world.size]
        with Progress("encoded" if world.is_main else "", total=len(share)) as progress:
            for index in share:
                try:
                    path, table = manifest.path(index), manifest.table(index)
                    with fetched(path) as local:
                        output = folder / files[index]
                        _slide(loaded, path, local, output, config, about=about, table=table)
                except VideoReadError as error:
                    mine.append((index, error.reason))
                progress.step(bad=bool(mine) and mine[-1][0] == index)
        reasons = dict(pair for part in gather_objects(mine, world) for pair in part)
        bad = tuple((manifest.path(index), reasons[index]) for index in sorted(reasons))
        if len(bad) == len(manifest):
            raise none_readable(bad)
        if world.is_main:
            rows = []
            for index, file in enumerate(files):
                name = manifest.name(index).removesuffix(str(manifest.part(index) or ""))
                known = {**manifest.row(index), "path": name, "label": _label(manifest, index)}
                reason = reasons.get(index, "")
                rows.append({**known, "features": "" if reason else file, "reason": reason})
            write_manifest(index_file, rows, columns=_INDEX)
        barrier(world)
    return Extracted(index_file, len(manifest), bad, (*manifest.notes, *loaded.notes))


def _encode_rows(
    loaded: LoadedBackbone, manifest: Manifest, rows: range, config: FeaturesConfig
) -> dict[str, npt.NDArray[Any]]:
    """Features (K, D) and errors (K,) of some rows of a list; '' for readable videos."""
    backbone = loaded.backbone
    dataset = ViewDataset(
        manifest, loaded.data, num_clips=config.num_clips, num_crops=config.num_crops
    )
    features = np.empty((len(rows), backbone.feature_width), dtype=np.float32)
    reasons = [""] * len(rows)
    for batch in view_loader(
        Subset(dataset, rows),
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        rank=0,
        world_size=1,
        timeout_s=config.decode_timeout_s or None,
        device=backbone.device,
    ):
        pooled = backbone.pooled(backbone.encode(batch.on(backbone.device)))  # (B * views, D)
        means = pooled.unflatten(0, (len(batch.views), -1)).mean(dim=1).cpu().numpy()
        for index, feature, error in zip(batch.indices.tolist(), means, batch.errors, strict=True):
            place = rows.index(index)
            features[place] = np.nan if error is not None else feature
            reasons[place] = error or ""
    return {"features": features, "reason": np.array(reasons)}


def _load(
    checkpoint: str | Path, clip: ClipConfig, config: FeaturesConfig, world: World
) -> LoadedBackbone:
    return load_backbone(
        checkpoint,
        precision=config.precision,
        device=world.device,
        clip=clip,
        settings=config.encoder,
    )


def _load_for_windows(
    checkpoint: str | Path, sliding: Sliding, config: FeaturesConfig, world: World
) -> tuple[LoadedBackbone, dict[str, Any]]:
    """Load the encoder for windows, with the metadata common to all files."""
    given: dict[str, Any] = {"num_frames": sliding.window, "frame_stride": sliding.frame_stride}
    clip = replace(config.clip, **{n: value for n, value in given.items() if value is not None})
    loaded = _load(checkpoint, clip, config, world)
    frame_stride = sliding.frame_stride or loaded.data.frame_stride
    return loaded, {
        **_about(checkpoint, loaded, config),
        **asdict(sliding),
        "window": loaded.data.num_frames,
        **_rate(loaded.data),
        "frame_stride": frame_stride,
        "stride": sliding.stride or frame_stride * loaded.data.num_frames,
    }


def _rate(data: DataConfig) -> dict[str, float]:
    """fps, only if set: older files have no such entry in their metadata."""
    return {} if data.fps is None else {"fps": data.fps}


def _slide(
    loaded: LoadedBackbone,
    path: str,
    local: str,
    output: Path,
    config: FeaturesConfig,
    *,
    about: dict[str, Any],
    table: bytes | None = None,
) -> None:
    """Write the features of a video's windows unless the file exists; resumes from parts.
    ``local``: local path of the video, see `fetched`."""
    name = path if is_url(path) else os.path.abspath(path)
    described = fingerprint([about, name, *check_is_file(local)])
    if (read_metadata(output) or {}).get("fingerprint") == described:
        return
    settings = WindowSettings(
        clip_frames=loaded.data.num_frames,
        frame_stride=about["frame_stride"],
        stride=about["stride"],
        crop_size=loaded.data.crop_size,
        num_crops=config.num_crops,
        batch_size=config.batch_size,
        part=PART,
        antialias=loaded.data.antialias,
        fps=loaded.data.fps,
    )
    reader, timeout_s = WindowReader(local, settings, table), config.decode_timeout_s or None
    with GuardedWindows(reader, num_workers=config.num_workers, timeout_s=timeout_s) as video:
        parts = Parts(output, described=described)
        parts.clean()
        try:
            joined = _encode_windows(loaded.backbone, video, parts, per_step=about["per_step"])
        except VideoReadError:
            if not any(parts.folder.iterdir()):
                parts.folder.rmdir()
            raise
    indices, tubelet = video.indices, loaded.data.num_frames // loaded.backbone.grid.time
    times = {"start_s": video.times[indices[:, 0]], "end_s": video.times[indices[:, -1] + 1]}
    if about["per_step"]:
        times["step_start_s"] = video.times[indices[:, ::tubelet]]
        times["step_end_s"] = video.times[indices[:, tubelet - 1 :: tubelet] + 1]
    metadata = {
        **about,
        "fingerprint": described,
        "video": path,
        "num_frames": video.num_frames,
        "fps": video.fps,
        "end_s": None if np.isnan(video.times[-1]) else float(video.times[-1]),
    }
    write_features(output, {**joined, "frames": indices, **times}, metadata)
    parts.remove()


def _encode_windows(
    backbone: Backbone, video: GuardedWindows, parts: Parts, *, per_step: bool
) -> dict[str, npt.NDArray[Any]]:
    """Features of all windows of a video, and of their time steps; finished parts are kept."""
    count = -(-len(video.indices) // PART)
    first = next((part for part in range(count) if not parts.has(part)), count)
    kept: dict[str, list[npt.NDArray[Any]]] = {}
    num_done = first * PART
    for windows in video.batches(num_done):
        tokens = backbone.encode(to_clips(windows.flatten(0, 1), backbone.device))
        found = {"features": backbone.pooled(tokens)}
        if per_step:
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


def _with_precision(config: FeaturesConfig, world: World) -> FeaturesConfig:
    """The settings with precision=auto resolved."""
    precision, _ = choose_precision(config.precision, world, setting="precision")
    return replace(config, precision=precision)


def _label(manifest: Manifest, index: int) -> str:
    """Class of a video: its name if known, '' if it has none. Several are joined with the list's
    separator."""
    sets, label = manifest.label_sets, manifest.label(index)
    labels = [label] if sets is None else sets.of(index).tolist()
    names = (str(n) if manifest.classes is None else manifest.classes[n] for n in labels if n >= 0)
    return (";" if sets is None else sets.separator or ";").join(names)


def _stem_of(video: str | Path) -> str:
    """Stem of a video's feature file."""
    return printable(stem_of(video)).replace(os.sep, "_")[:100]


def _about(
    checkpoint: str | Path, loaded: LoadedBackbone, config: FeaturesConfig
) -> dict[str, Any]:
    """Metadata of everything besides the videos that the features depend on."""
    file, size, written_ns = version_of(config.encoder.weights or checkpoint)
    backbone, encoder = loaded.backbone, asdict(config.encoder)
    tokens = (
        backbone.grid if isinstance(backbone.encoder, Source) else backbone.encoder.tokens.shape
    )
    return {
        "checkpoint": os.fspath(file),
        "checkpoint_bytes": size,
        "checkpoint_written_ns": written_ns,
        "kind": loaded.kind,
        "step": loaded.step,
        "precision": config.precision,
        "window": loaded.data.num_frames,
        "crop_size": loaded.data.crop_size,
        "token": str(tokens),
        "num_crops": config.num_crops,
        # Files from before these settings lack them, and stay valid
        **({} if loaded.data.antialias else {"antialias": False}),
        **({} if encoder == asdict(FrozenEncoderConfig()) else {"encoder": encoder}),
    }


def _output_file(output: Path, name: str) -> Path:
    """File of an output: the path itself or, for a folder, NAME.npz in it.

    An existing folder, or a path without a suffix, is a folder. Raises ValueError for an unknown
    suffix.
    """
    if output.is_dir() or not output.suffix:
        check_can_be_folder(output, name="output")
        return output / f"{name}.npz"
    if output.suffix not in SUFFIXES:
        raise ValueError(
            f"output ({output}) must end in {' or '.join(SUFFIXES)}, or be a folder: an "
            "existing one, or a name without a suffix"
        )
    return output
