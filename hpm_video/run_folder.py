"""The folder of a run: whose it is, and where a run that writes there starts from."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import yaml
from torch import nn

from hpm_video.checkpoint import load_checkpoint, load_encoder, load_weights
from hpm_video.distributed import World, barrier
from hpm_video.settings import config_to_dict, config_to_yaml, differing_keys
from hpm_video.tokens import TokenGrid

# Settings that may change between two starts of one run without changing its results.
_FREE_TO_CHANGE = (
    "run.output_dir", "run.log_every", "run.checkpoint_every_minutes", "run.keep_checkpoints",
    "run.resume", "run.max_bad_steps", "run.picture_every", "run.probe_every", "run.device",
    "run.compile", "probe",
    "data.num_workers", "data.decode_timeout_s", "data.root", "data.max_bad_fraction",
    "evaluation.batch_size",
)  # fmt: skip

# What a start that was interrupted early may leave in a folder that belongs to nobody yet.
_LEFTOVERS = {"run.lock", "config.part"}

# The locks this process holds: they belong to it as a whole, and closing the file ends them.
_locks: dict[Path, IO[str]] = {}


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


def claim_run_folder(folder: Path, config: Any, world: World) -> None:
    """Make the folder, lock it and write its config.yaml, once every process has checked it.

    The main process holds the lock for all until `release_run_folder`, or its own end. Raises
    ValueError when another start of the run, which still goes on, holds it.
    """
    barrier(world)
    if world.is_main:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"run.output_dir ({folder}) cannot be made: {error.strerror}"
            ) from error
        _lock(folder)
        file = folder / "config.yaml"
        if file.is_file():
            there = yaml.safe_load(file.read_text(encoding="utf-8"))
            if _mattering_keys(there, config):  # a mistaken start, see check_run_folder
                (folder / "bad_videos.csv").unlink(missing_ok=True)
        part = folder / "config.part"
        part.write_text(config_to_yaml(config), encoding="utf-8")
        os.replace(part, file)
    barrier(world)


def release_run_folder(folder: Path) -> None:
    """Let other processes claim the folder; nothing happens where this one did not."""
    if lock := _locks.pop(folder.resolve(), None):
        lock.close()


def _lock(folder: Path) -> None:
    """Lock run.lock for this process, or raise ValueError with what its holder wrote there.

    It is a POSIX record lock: the kernel drops it with the process, however that ends, and forked
    loader workers, which outlive a killed parent by seconds, do not inherit it (with flock they
    would, and hinder the restart). On NFS it holds between machines if the server runs a lock
    manager; where a file system has no locks, we go on without: it guards against accidents only.
    """
    if folder.resolve() in _locks:
        return
    file = (folder / "run.lock").open("a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        file.seek(0)
        holder = file.read().strip()
        file.close()
        raise ValueError(
            f"run.output_dir ({folder}) is in use by another process ({holder}): "
            "must be stopped first, or choose another folder"
        ) from error
    except OSError:
        pass
    _locks[folder.resolve()] = file  # not closed before the run ends, and never removed: another
    file.truncate(0)  # start may just have opened it
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


@dataclass(frozen=True)
class Start:
    """Where a run starts from.

    state: the checkpoint it continues, if any. init: the one whose encoder it takes, if any.
    source: the file of either. line: all this in words.
    """

    state: dict[str, Any] | None
    init: dict[str, Any] | None
    source: str | Path | None
    line: str

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into the model, whose encoder is ``model.encoder``; ValueError if they
        do not fit."""
        if self.state is not None:
            load_weights(model, self.state["model"], source=self.source or "")
        elif self.init is not None:
            load_encoder(model.get_submodule("encoder"), self.init, source=self.source or "")

    def trained_grid(self) -> TokenGrid | None:
        """The grid whose position table the encoder's weights were trained with, if any."""
        state = self.state or self.init
        if state is None:
            return None
        if "trained_grid" in state:
            return TokenGrid(*state["trained_grid"])
        model, data = state["config"]["model"], state["config"]["data"]
        return TokenGrid.of_clip(
            num_frames=data["num_frames"],
            crop_size=data["crop_size"],
            tubelet_size=model["tubelet_size"],
            patch_size=model["patch_size"],
        )


def find_start(config: Any, folder: Path, *, kind: str, total_steps: int) -> Start:
    """In this order: the run folder's own last checkpoint, run.resume, model.init, scratch.

    Raises ValueError or FileNotFoundError when what is named is missing, damaged, of another kind,
    or further than this run goes.
    """
    own = folder / "checkpoints" / "last"
    if own.is_symlink() and not own.exists():
        raise FileNotFoundError(f"{own} points to a checkpoint that is gone: {os.readlink(own)}")
    source = own if own.is_file() else config.run.resume
    if source is not None:
        state = load_checkpoint(source, kind=kind)
        if "optimizer" not in state:
            raise ValueError(
                f"run.resume ({source}) has no state of the optimizer: must be a step_*.pt or last"
            )
        step = state["step"]
        if step > total_steps:
            raise ValueError(
                f"checkpoint ({source}) is of step {step}: this run has only {total_steps} steps"
            )
        return Start(state, None, source, f"continues after step {step} of {source}")
    source = config.model.init
    if source is not None:
        state = load_checkpoint(source)
        line = f"starts with the encoder of step {state['step']} of {source}"
        return Start(None, state, source, line)
    return Start(None, None, None, "starts from scratch")


def _kind(config: Mapping[str, Any]) -> str:
    """Which job the settings are of, as a plain dict."""
    return "pretrain" if "masking" in config else "finetune"


def _mattering_keys(there: Mapping[str, Any], config: Any) -> list[str]:
    """Settings that change results and differ from those of a config.yaml, as a plain dict."""
    return [key for key in differing_keys(there, config_to_dict(config)) if _matters(key)]


def _matters(key: str) -> bool:
    """Whether a setting changes results."""
    return not any(re.fullmatch(rf"{re.escape(free)}(\..*)?", key) for free in _FREE_TO_CHANGE)
