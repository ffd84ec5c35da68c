"""Checks of a run that need no PyTorch, whose import takes seconds: settings, missing files, faulty
lists, and steps of more videos than a list has."""

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from hpm_video.config import FinetuneConfig, FinetuneDataConfig, PretrainConfig
from hpm_video.config.schema import SettingFaults
from hpm_video.config.settings import load_config
from hpm_video.data.lists.places import list_exists
from hpm_video.runtime.files import similar_path
from hpm_video.runtime.rendezvous import find_place
from hpm_video.train.output_folder import check_is_run
from hpm_video.train.relations import check_relations
from hpm_video.train.step_videos import check_shares, step_videos
from hpm_video.weights.run_folders import runs_near

if TYPE_CHECKING:
    from hpm_video.data.lists.manifest import Manifest

Config = TypeVar("Config", PretrainConfig, FinetuneConfig)


def read_settings(schema: type[Config], path: str | Path | None, words: Sequence[str]) -> Config:
    """The settings of a run.

    Raises as `load_config` does; the same SettingFaults also names settings that do not fit each
    other, missing settings and files, and what `read_videos` would refuse next.
    """
    faults: list[str] = []
    try:
        config = load_config(schema, path, words, check=check_relations)
    except SettingFaults as error:
        if error.mended is None:
            raise
        config, faults = error.mended, list(error.faults)
    # A mistyped name of a setting is one fault, not also a missing setting
    faults += [
        lack for lack in _lacking(config) if not any(_about(lack) in fault for fault in faults)
    ]
    if faults:
        lists = config.data.manifest
        # A typing error is answered at once: lists need NumPy, whose import takes a while
        is_mistyped = any(" is unknown" in fault for fault in faults)
        if lists and not is_mistyped and all(map(list_exists, lists)):
            try:
                read_videos(config, recipe=path)
            except (ValueError, OSError) as error:
                faults.append(str(error))
        raise SettingFaults(faults)
    return config


def read_videos(
    config: PretrainConfig | FinetuneConfig, *, recipe: str | Path | None = None
) -> "Manifest":
    """The list of a run's videos. Raises as `read_manifest` does, and ValueError if its videos do
    not exist or are fewer than one step takes. ``recipe``: the file of the settings, if known."""
    # Imports NumPy, which faulty settings need not wait for
    from hpm_video.data.lists.manifest import check_some_exist, read_manifest  # noqa: PLC0415
    from hpm_video.data.loading.mixture import mixture_of  # noqa: PLC0415

    data = config.data
    manifest = read_manifest(
        data.manifest,
        root=data.root,
        labels=isinstance(data, FinetuneDataConfig),
        max_damage=data.max_damage,
        several=data.labels if isinstance(data, FinetuneDataConfig) else None,
    )
    check_some_exist(manifest, option="data.root=")
    num_videos = mixture_of(manifest, data.weights).num_videos
    num_processes = find_place().size
    step_videos(
        data, config.optim, num_videos=num_videos, num_processes=num_processes, recipe=recipe
    )
    if data.batch_size == "auto":
        check_shares(config, num_processes)
    return manifest


def _about(fault: str) -> str:
    return fault.split(maxsplit=1)[0].rstrip(":")


def _lacking(config: PretrainConfig | FinetuneConfig) -> Iterator[str]:
    """Faults: settings that must be given, and files that do not exist."""
    if not config.run.output_dir:
        yield (
            "run.output_dir (null) must name a folder for the run: set run.output_dir=outputs/first"
        )
    else:
        try:
            check_is_run(config)
        except ValueError as error:
            yield str(error)
    if not config.data.manifest:
        yield (
            "data.manifest ([]) must name a list of videos: run hpm-video data list --folder "
            "VIDEOS -o train.csv, then set data.manifest=train.csv"
        )
    lists = [("data.manifest", config.data.manifest)]
    if isinstance(config, FinetuneConfig):
        lists.append(("data.val_manifest", config.data.val_manifest))
    elif config.run.probe_every:
        for name in ("train_manifest", "val_manifest"):
            lists.append((f"probe.{name}", getattr(config.probe, name)))
    for name, paths in lists:
        for path in paths:
            if not list_exists(path):
                lack = f"{name}: {path} does not exist (expected a list of videos)"
                yield lack + similar_path(path)
    if config.run.output_dir and Path(config.run.output_dir, "checkpoints", "last").is_symlink():
        return  # a run that continues no longer needs them
    kind = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
    for name, place, needed, else_ in (
        ("model.init", config.model.init, "pretrain", "train from scratch"),
        ("run.resume", config.run.resume, kind, "begin a new run"),
    ):
        if place is not None and "://" not in place and not os.path.exists(place):
            lack = f"{name} ({place}) does not exist: must be a checkpoint or a run folder"
            words = [shlex.quote(f"{name}={run}") for run in runs_near(place, needed)]
            others = f"; set {', or '.join([*words, f'{name}=null'])} to {else_}"
            yield lack + (similar_path(place) or others)
