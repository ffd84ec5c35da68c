"""The folder of a run: whose it is, and where a run that writes there starts from."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from hpm_video.checkpoint import (
    find_checkpoint,
    is_checkpoint,
    load_checkpoint,
    load_encoder,
    load_weights,
    tokens_of,
    trained_grid,
)
from hpm_video.data.manifest import Manifest
from hpm_video.distributed import World, barrier, gather_objects
from hpm_video.models.grids import Tokens, describe_fit
from hpm_video.models.vit import Encoder
from hpm_video.optimizer_state import load_optimizer_state
from hpm_video.run_lock import FolderInUse, lock_folder
from hpm_video.settings import config_to_dict, config_to_yaml, differing_keys
from hpm_video.tokens import TokenGrid
from hpm_video.weights.importing import Imported
from hpm_video.weights.init import init_weights, write_init_table
from hpm_video.weights.table import in_a_line

# Settings that may change between two starts of one run without changing its results.
_FREE_TO_CHANGE = (
    "run.output_dir", "run.log_every", "run.checkpoint_every_minutes", "run.keep_checkpoints",
    "run.resume", "run.max_bad_steps", "run.picture_every", "run.probe_every", "run.device",
    "run.compile", "run.parallel", "run.shard_processes", "run.activation_checkpointing",
    "run.save_in_background", "run.collective_timeout_s", "evaluation.batch_size", "probe",
    "data.num_workers", "data.decode_timeout_s", "data.root", "data.max_bad_fraction",
    # Videos per step matter, however they are divided: see `find_start`
    "data.batch_size", "optim.accumulation", "optim.total_batch",
)  # fmt: skip

# What a start that was interrupted early, or the submission of the run to a cluster, may leave in a
# folder that belongs to nobody yet.
_LEFTOVERS = {"run.lock", "config.part", "slurm"}


def check_run_folder(config: Any) -> Path:
    """The folder run.output_dir names, which is free or already belongs to this config.

    Raises ValueError when it is not given, is no folder, holds something else, or belongs to a run
    whose settings differ in what changes results.
    """
    if not config.run.output_dir:
        raise ValueError("run.output_dir (null) must name a folder for the run")
    folder = Path(config.run.output_dir)
    file = folder / "config.yaml"
    check_can_be_folder(folder, name="run.output_dir")
    if file.is_file():
        try:
            there = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is not the config.yaml of a run") from error
        if not isinstance(there, dict):
            raise ValueError(f"{file} is not the config.yaml of a run")
        ours, theirs = _kind(config_to_dict(config)), _kind(there)
        if ours != theirs:
            raise ValueError(
                f"run.output_dir ({folder}) holds a {theirs} run: must be free or hold a {ours} run"
            )
        keys = _mattering_keys(there, config)
        # Nothing is lost where nothing was saved: a mistaken first start may be corrected.
        if keys and (folder / "checkpoints" / "last").is_symlink():
            raise ValueError(
                f"run.output_dir ({folder}) belongs to a run with other settings "
                f"({', '.join(keys)}): choose another folder"
            )
    elif folder.is_dir() and {path.name for path in folder.iterdir()} - _LEFTOVERS:
        raise ValueError(f"run.output_dir ({folder}) holds other files: must be empty or a run")
    return folder


def check_can_be_folder(folder: Path, *, name: str) -> None:
    """Raise ValueError when a path, the setting ``name``, is a file or lies under one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            place = "is a file" if path == folder else f"lies under a file ({path})"
            raise ValueError(f"{name} ({folder}) {place}: must be a folder")


def make_folder(path: str | Path, *, name: str) -> Path:
    """Make the folder that the setting ``name`` means; ValueError if it cannot be written to."""
    folder = Path(path)
    check_can_be_folder(folder, name=name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{name} ({folder}): {error.strerror}; must be writable") from error
    return folder


@contextmanager
def not_left_empty(folder: Path | None) -> Iterator[None]:
    """Remove a folder that an error leaves empty."""
    try:
        yield
    except BaseException:
        with suppress(OSError):  # it is not empty, or not there
            if folder is not None:
                folder.rmdir()
        raise


def claim_run_folder(folder: Path, config: Any, world: World) -> None:
    """Make the folder, lock it and write its config.yaml, once every process has checked it.

    The main process holds the lock for all until `unlock_folder`, or its own end. Raises
    ValueError when another start of the run, which still goes on, holds it.
    """
    barrier(world)
    refusal = _claim(folder, config) if world.is_main else None
    # All of them say it, instead of losing the main one without a word
    refusal = gather_objects(refusal, world)[0]
    if refusal is not None:
        raise ValueError(refusal)


def _claim(folder: Path, config: Any) -> str | None:
    """Make, lock and label the folder; returns why that cannot be done, if so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return f"run.output_dir ({folder}) cannot be made: {error.strerror}"
    try:
        lock_folder(folder)
    except FolderInUse as error:
        return (
            f"run.output_dir ({folder}) is in use by another process ({error}): "
            "must be stopped first, or choose another folder"
        )
    file = folder / "config.yaml"
    if file.is_file():
        there = yaml.safe_load(file.read_text(encoding="utf-8"))
        if _mattering_keys(there, config):  # a mistaken start, see check_run_folder
            (folder / "bad_videos.csv").unlink(missing_ok=True)
    part = folder / "config.part"
    part.write_text(config_to_yaml(config), encoding="utf-8")
    os.replace(part, file)
    return None


@dataclass(frozen=True)
class Start:
    """Where a run starts from.

    state: the checkpoint it continues, if any. init: what it takes its encoder from, if anything.
    source: the file of either. line: all this in words. allow_missing: what init may lack.
    """

    state: dict[str, Any] | None
    init: Imported | None
    source: str | Path | None
    line: str
    allow_missing: Sequence[str] = ()

    def load_into(self, model: nn.Module) -> list[str]:
        """Load the weights into the model, whose encoder is ``model.encoder``; ValueError if they
        do not fit. Returns the names of what was allowed to be missing, and is."""
        if self.state is not None:
            # Where an average of the weights is what a checkpoint's model is, training goes on
            # with the weights themselves.
            weights = self.state.get("trained_model") or self.state["model"]
            load_weights(model, weights, source=self.source or "")
        elif self.init is not None:
            encoder = model.get_submodule("encoder")
            assert isinstance(encoder, Encoder)
            return load_encoder(
                encoder,
                self.init.state,
                source=self.source or "",
                allow_missing=self.allow_missing,
            )
        return []

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Load the state of the optimizer of ``model``, which may be spread over processes by now;
        ValueError if it does not fit."""
        if self.state is not None:
            load_optimizer_state(optimizer, model, self.state, source=self.source or "")

    def trained_grid(self) -> TokenGrid | None:
        """The grid whose position table the encoder's weights were trained with, if any."""
        if self.state is not None:
            return trained_grid(self.state)
        return None if self.init is None else trained_grid(self.init.state)

    def describe_fit(self, encoder: Encoder) -> list[str]:
        """How the encoder's weights are changed for other tokens than they were trained with."""
        return [] if self.init is None else describe_fit(self._tokens(encoder), encoder.tokens)

    def write_table(self, folder: Path, model: nn.Module, initialised: Sequence[str]) -> None:
        """Write to the run's folder what became of every tensor of ``init``, if there is one."""
        if self.init is not None:
            encoder = model.get_submodule("encoder")
            assert isinstance(encoder, Encoder)
            before = self._tokens(encoder)
            write_init_table(folder, self.init, encoder, before=before, initialised=initialised)

    def _tokens(self, encoder: Encoder) -> Tokens:
        """Those that the weights of ``init`` were trained with."""
        assert self.init is not None
        return replace(tokens_of(self.init.state), grid=self.trained_grid() or encoder.grid)


def find_start(
    config: Any,
    folder: Path,
    *,
    kind: str,
    total_steps: int,
    data: Mapping[str, Any] | None = None,
) -> Start:
    """In this order: the run folder's own last checkpoint, run.resume, model.init, scratch.

    ``data`` tells which videos make up which step, as `describe_data` does. What was done with
    other data is no part of this run: its own checkpoint is refused then, one to resume is not.

    Raises ValueError or FileNotFoundError when what is named is missing, damaged, of another kind,
    or further than this run goes.
    """
    own = folder / "checkpoints" / "last"
    if own.is_symlink() and not is_checkpoint(own):
        raise FileNotFoundError(f"{own} points to a checkpoint that is gone: {os.readlink(own)}")
    source = own if own.is_symlink() else config.run.resume
    if source is not None:
        state = load_checkpoint(source, kind=kind)
        if find_checkpoint(source).is_file() and "optimizer" not in state:
            raise ValueError(
                f"run.resume ({source}) has no state of the optimizer: must be a step_*.pt or last"
            )
        step = state["step"]
        changes = _changes(state.get("data"), data)
        if changes and source == own:
            raise ValueError(
                f"run.output_dir ({folder}) cannot go on after step {step}, as {changes}: must be "
                f"as before, or go on with run.resume={source} in another folder"
            )
        if step > total_steps:
            raise ValueError(
                f"checkpoint ({source}) is of step {step}: this run has only {total_steps} steps"
            )
        line = f"continues after step {step} of {source}" + (f", but {changes}" if changes else "")
        return Start(state, None, source, line)
    source = config.model.init
    if source is not None:
        found = init_weights(config.model, config.data)
        line = f"starts with the encoder of {in_a_line(found)} of {source}"
        return Start(None, found, source, line, config.model.allow_missing)
    return Start(None, None, None, "starts from scratch")


def describe_data(manifest: Manifest, *, videos_per_step: int) -> dict[str, Any]:
    """What decides which videos make up which step, as a part of checkpoints."""
    return {
        "videos": manifest.digest(),
        "num_videos": len(manifest),
        "videos_per_step": videos_per_step,
    }


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """What differs between two results of `describe_data`, in words; empty if nothing does."""
    found = []
    if before is not None and now is not None:
        if before["videos"] != now["videos"]:
            found.append(
                f"the list of videos has changed ({before['num_videos']} then, "
                f"{now['num_videos']} now)"
            )
        if before["videos_per_step"] != now["videos_per_step"]:
            found.append(
                f"a step had {before['videos_per_step']} videos and now has "
                f"{now['videos_per_step']} (data.batch_size x optim.accumulation x processes)"
            )
    return " and ".join(found)


def _kind(config: Mapping[str, Any]) -> str:
    """Which job the settings are of, as a plain dict."""
    return "pretrain" if "masking" in config else "finetune"


def _mattering_keys(there: Mapping[str, Any], config: Any) -> list[str]:
    """Settings that change results and differ from those of a config.yaml, as a plain dict."""
    return [key for key in differing_keys(there, config_to_dict(config)) if _matters(key)]


def _matters(key: str) -> bool:
    """Whether a setting changes results."""
    return not any(re.fullmatch(rf"{re.escape(free)}(\..*)?", key) for free in _FREE_TO_CHANGE)
