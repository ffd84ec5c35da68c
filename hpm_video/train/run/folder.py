"""The folder of a run: who may write to it, and which process holds its lock."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpm_video.config import as_then
from hpm_video.config.settings import config_to_dict, config_to_yaml, differing_keys, read_stored
from hpm_video.runtime.determinism import deterministic
from hpm_video.runtime.distributed import World, gather_objects, join_world
from hpm_video.runtime.files import write_atomically
from hpm_video.runtime.lock import FolderInUse, lock_folder, unlock_folder
from hpm_video.train.output_folder import check_is_run
from hpm_video.train.run.loggers import ID_FILE, check_installed
from hpm_video.weights.checkpoint import linked_checkpoint

# Settings that may change between two starts of a run without affecting results.
_FREE_TO_CHANGE = (
    "run.output_dir", "run.log_every", "run.checkpoint_every_minutes", "run.keep_checkpoints",
    "run.history_checkpoints",
    "run.resume", "run.max_bad_steps", "run.picture_every", "run.probe_every", "run.device",
    "run.compile", "run.cuda_graphs", "run.deterministic", "run.parallel", "run.shard_processes",
    "run.activation_checkpointing", "run.loggers",
    "run.save_in_background", "run.collective_timeout_s", "run.profile_steps", "probe",
    "model.first_weights",
    "loss.target_width",  # loss.target_model decides
    "evaluation.batch_size", "evaluation.patience",
    "data.num_workers", "data.decode_timeout_s", "data.root", "data.max_bad_fraction",
    # Only videos per step matter, not how they are divided; `starting_point` checks those
    "data.batch_size", "optim.accumulation", "optim.total_batch",
)  # fmt: skip


@contextmanager
def join_run(config: Any) -> Iterator[tuple[Path, World]]:
    """Yield a run's folder, checked by `check_run_folder`, and its ranks; unlocks it at the end."""
    run = config.run
    check_installed(run.loggers)
    with (
        deterministic(run.deterministic),
        join_world(run.device, timeout_s=run.collective_timeout_s) as world,
    ):
        folder = check_run_folder(config)
        try:
            yield folder, world
        finally:
            unlock_folder(folder)


def check_run_folder(config: Any) -> Path:
    """The folder run.output_dir, which must be free or belong to this config.

    Raises ValueError if it is not given, is no folder, has other content, or belongs to a run with
    different settings that affect results. More epochs are allowed.
    """
    if not config.run.output_dir:
        raise ValueError("run.output_dir (null) must name a folder for the run")
    folder = Path(config.run.output_dir)
    if (there := check_is_run(config)) is not None:
        keys = changed_settings(config, there)
        if "optim.epochs" in keys and _goes_further(config, there):
            keys.remove("optim.epochs")
        # A start that has saved nothing may be corrected
        if keys and linked_checkpoint(folder) is not None:
            raise ValueError(
                f"run.output_dir ({folder}) belongs to a run with other settings "
                f"({', '.join(keys)}): {_as_there(there, config, keys)}choose another folder; "
                f"there, run.resume={folder} continues from its last checkpoint with these settings"
            )
    return folder


def _goes_further(config: Any, there: Mapping[str, Any]) -> bool:
    """Whether a config has more epochs than the run that it continues, which is allowed."""
    optim = _completed(there, config_to_dict(type(config)()))["optim"]
    epochs = optim.get("epochs") if isinstance(optim, Mapping) else None
    return isinstance(epochs, int) and config.optim.epochs > epochs


def _as_there(there: Mapping[str, Any], config: Any, keys: Sequence[str]) -> str:
    """Words to add to a command to continue a run; empty if it would take many."""
    stored = _completed(as_then(there), config_to_dict(type(config)()))
    words = []
    for key in keys:
        value: Any = stored
        for name in key.split("."):
            value = value.get(name) if isinstance(value, Mapping) else None
        text = value if isinstance(value, str) else json.dumps(value, default=repr)
        if not re.fullmatch(r"[\w./:-]{1,200}", text, re.ASCII):
            return ""
        words.append(f"{key}={text}")
    return f"continue it with {' '.join(words)}, or "


def changed_settings(config: Any, before: Mapping[str, Any] | None = None) -> list[str]:
    """Settings that affect results and differ from those of the run in run.output_dir, or from
    ``before``, a run's settings as a plain dict."""
    there = read_stored(Path(config.run.output_dir) / "config.yaml") if before is None else before
    keys = _mattering_keys(there, config)
    run = there.get("run")
    if not keys or not isinstance(run, Mapping):
        return keys
    # The run may have been moved, alone or with its parents; paths that moved along are equal
    old, new = Path(str(run.get("output_dir"))), Path(config.run.output_dir)
    while old.name == new.name and old.name:
        old, new = old.parent, new.parent
    moved = _mattering_keys(_moved(there, str(old), str(new)), config)
    return [key for key in keys if key in moved]


def _moved(value: Any, before: str, now: str) -> Any:
    """Settings with paths below one folder moved below another."""
    if isinstance(value, dict):
        return {key: _moved(entry, before, now) for key, entry in value.items()}
    if isinstance(value, list):
        return [_moved(entry, before, now) for entry in value]
    if isinstance(value, str) and value.startswith(f"{before}/"):
        return now + value[len(before) :]
    return value


def claim_run_folder(folder: Path, config: Any, world: World, *, last: str | None) -> None:
    """Create and lock the folder and write its config.yaml, after all ranks have checked it.

    ``last``: the run's own checkpoint that this rank continues, if any. Rank 0 holds the lock until
    `unlock_folder` or its end. Raises ValueError if another start of the run holds the lock or has
    saved meanwhile, or if the folder is not writable.
    """
    lasts = gather_objects(last, world)
    refusal = _claim(folder, config, lasts) if world.is_main else None
    # All ranks raise, so that the others do not just lose rank 0
    if (refusal := gather_objects(refusal, world)[0]) is not None:
        raise ValueError(refusal)


def _claim(folder: Path, config: Any, lasts: Sequence[str | None]) -> str | None:
    """Create, lock and label the folder; returns the reason if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock_folder(folder)
        if any(last != linked_checkpoint(folder) for last in lasts):
            return (
                f"run.output_dir ({folder}) was continued by another process while this one "
                "started: start again"
            )
        file = folder / "config.yaml"
        is_new = linked_checkpoint(folder) is None
        if is_new and file.is_file() and changed_settings(config, read_stored(file)):
            # A start that has saved nothing, see check_run_folder
            for name in ("bad_videos.csv", ID_FILE):
                (folder / name).unlink(missing_ok=True)
        write_atomically(file, [config_to_yaml(config)])
    except FolderInUse as error:
        return (
            f"run.output_dir ({folder}) is in use by another process ({error}): "
            "stop it first, or choose another folder"
        )
    except OSError as error:
        return f"run.output_dir ({folder}) cannot be written to: {error.strerror}"
    except ValueError as error:  # not writable
        return str(error)
    return None


def _mattering_keys(there: Mapping[str, Any], config: Any) -> list[str]:
    """Settings that affect results and differ from those of a config.yaml, given as a plain dict.

    A setting that is newer than the config.yaml counts as its default there, or as what `as_then`
    knows. ``auto`` does not differ: a run keeps the choices of its first start.
    """
    before = _completed(as_then(there), config_to_dict(type(config)()))
    now = _with_choices(config_to_dict(config), before)
    free = "|".join(map(re.escape, _FREE_TO_CHANGE))
    keys = differing_keys(before, now)
    return [key for key in keys if not re.fullmatch(rf"({free})(\..*)?", key)]


def _with_choices(values: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values with ``auto`` replaced by the earlier choice."""
    result = dict(values)
    for key, value in values.items():
        there = before.get(key, value)
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            result[key] = _with_choices(value, there)
        elif value == "auto":
            result[key] = there
    return result


def _completed(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values, completed with defaults."""
    result = {**defaults, **values}
    for key, default in defaults.items():
        if isinstance(default, Mapping) and isinstance(result[key], Mapping):
            result[key] = _completed(result[key], default)
    return result
