"""Checkpoints: written atomically and read without executing code from them.

A checkpoint is one file, step_<step>.pt, of plain containers and tensors:

    kind     "pretrain" or "finetune"
    config   all settings, a plain dict
    step     optimizer steps done
    model    weights of the student or the classifier, for evaluation
    ...      training state (teacher, optimizer, logs; trained_model if `model` is an average of
             it) and facts about the model (class names)

For models sharded over ranks, it is a folder, step_<step>. The tensors of `_PARTS` are stored in
the format of `hpm_video.weights.shards`, everything else in a small torch.save file beside them.
"""

import glob
import os
import pickle
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hpm_video.config import FinetuneConfig, PretrainConfig, as_then
from hpm_video.config.settings import config_from_dict
from hpm_video.models.adapters import merged
from hpm_video.models.build import size_of_blocks, size_of_target
from hpm_video.models.grid import TokenShape
from hpm_video.models.resample import Tokens, fit_tokens
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import Encoder
from hpm_video.runtime.files import whole_file, writing
from hpm_video.weights.hub import local_model
from hpm_video.weights.misfits import is_allowed, misfits, refuse
from hpm_video.weights.run_folders import way_to_kind, without_checkpoint
from hpm_video.weights.shard_metadata import METADATA
from hpm_video.weights.shards import read_shards, stored_shapes, write_shards
from hpm_video.weights.torch_files import UNREADABLE, read_torch

BEST = "best.pt"
HISTORY = "history"  # subfolder of checkpoints kept for analysis

# Training state: tensors that grow with the model, then the run's position and bookkeeping
TRAINING_WEIGHTS = ("trained_model", "teacher", "optimizer")
_OF_THE_RUN = (
    "window",
    "data",
    "loss_scale",
    "competence",
    "collapsed_records",
    "target_digest",
    "best_so_far",
    "since_best",
)
_OF_TRAINING = (*TRAINING_WEIGHTS, *_OF_THE_RUN)

# Limits for a checkpoint's settings, against files made to exhaust memory: parameters in blocks (a
# multiple of those stored plus slack, as a file may lack parts of a model), blocks, tokens per
# clip, and classes
_MOST_TIMES, _MOST_NUMBERS, _MOST_BLOCKS = 16, 1 << 28, 1000
_MOST_TOKENS, _MOST_CLASSES = 1 << 16, 1 << 20

# The sharded entries of a checkpoint, and the file for the others
_PARTS = ("model", *TRAINING_WEIGHTS)
_REST = "rest.pt"


def save_checkpoint(folder: Path, state: Mapping[str, Any], *, keep: int) -> Path:
    """Write ``state`` to folder/step_<step>.pt, point folder/last to it, and keep the newest
    ``keep`` checkpoints (0: all).

    The file appears under its name only when it is complete and on disk.
    """
    path = folder / f"step_{state['step']:08d}.pt"
    _clear(folder)
    write_checkpoint(path, state)
    with writing(path):
        _publish(path, keep=keep)
    return path


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state``; the file appears under its name only when it is complete and on disk.

    Raises ValueError if it cannot be written.
    """
    with whole_file(path) as temporary:
        for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            if left != temporary:  # from a killed process; nobody else writes to a run's folder
                left.unlink()
        _write(temporary, state)


def save_sharded(
    folder: Path, state: Mapping[str, Any], *, keep: int, group: dist.ProcessGroup | None
) -> Path:
    """Like `save_checkpoint`, but to a folder step_<step>, to which each rank writes its shards.

    All ranks of ``group`` must call this; without a group there is one process. The folder appears
    under its name only when the shards of all ranks are on disk. Raises ValueError if this rank
    cannot write.
    """
    path = folder / f"step_{state['step']:08d}"
    part = path.with_suffix(".part")
    trees = {name: state[name] for name in _PARTS if state.get(name) is not None}
    is_main = group is None or group.rank() == 0
    with writing(path):
        if is_main:
            folder.mkdir(parents=True, exist_ok=True)
            _clear(folder)
            part.mkdir()
            rest = {name: value for name, value in state.items() if name not in trees}
            with whole_file(part / _REST) as temporary:
                _write(temporary, rest)
        if group is not None:
            dist.barrier(group)
        write_shards(part, dict(_flat(trees)), group)
        if is_main:
            last = folder / "last"
            if path.exists() and last.exists() and path.samefile(last):
                _remove(part)  # runs are deterministic, and `last` must exist at all times
            else:
                _remove(path)
                os.replace(part, path)
            _publish(path, keep=keep)
    return path


def linked_checkpoint(run: Path) -> str | None:
    """Name of the checkpoint that a run folder's ``last`` link points to; None if it has none."""
    last = run / "checkpoints" / "last"
    return os.readlink(last) if last.is_symlink() else None


def is_checkpoint(path: Path) -> bool:
    """Whether the path is a file or a folder of shards."""
    return path.is_file() or (path / METADATA).is_file()


def find_checkpoint(path: str | Path, which: str = "last", *, kind: str | None = None) -> Path:
    """Path of a checkpoint (file or shards), given itself, a checkpoints folder or a run folder.

    ``which``: the checkpoint to take from a folder, ``last`` or ``best.pt``. ``kind``: of the runs
    to name in a refusal. Raises FileNotFoundError if there is none, and ValueError for a Hugging
    Face folder.
    """
    path = local_model(path)
    for candidate in (path, path / which, path / "checkpoints" / which):
        if is_checkpoint(candidate):
            return candidate
    if (path / "config.json").is_file():
        raise ValueError(
            f"checkpoint ({path}) is a Hugging Face folder; convert it with: hpm-video weights "
            f"import {path} -o ours.pt"
        )
    if path.is_dir():
        raise FileNotFoundError(without_checkpoint(path, f"checkpoints/{which}", kind))
    raise FileNotFoundError(f"checkpoint ({path}) does not exist")


def is_of_ours(found: object) -> bool:
    """Whether the content of a file is one of our checkpoints."""
    return isinstance(found, dict) and {"kind", "config", "step", "model"} <= found.keys()


def check_state(state: Mapping[str, Any], name: str) -> None:
    """Raise ValueError if an entry of a checkpoint has another type than we write.

    ``name``: the checkpoint's name in the message.
    """
    for key, (is_right, rule) in _TYPES.items():
        if key in state and not is_right(value := state[key]):
            is_short = type(value) is str or (type(value) is int and abs(value) < 1 << 64)
            found = repr(value)[:80] if is_short else f"a {type(value).__name__}"
            raise ValueError(f"{name}: {key} ({found}) must be {rule}")


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_share(value: object) -> bool:
    return isinstance(value, Tensor) and value.shape == () and 0 <= value.item() <= 1


def _is_score(value: object) -> bool:
    return type(value) is float and 0 <= value <= 1


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(type(entry) is str for entry in value)


def _are_tensors(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        type(key) is str and isinstance(entry, Tensor) for key, entry in value.items()
    )


def _is_shape(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_count, value))


# Type checks of the entries that reports and models use; settings are checked where they are used
_TYPES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "kind": (lambda value: type(value) is str, "a string"),
    "config": (lambda value: isinstance(value, Mapping), "a mapping of settings"),
    "step": (_is_count, "a whole number of at least 0"),
    "model": (_are_tensors, "a mapping of names to tensors"),
    "teacher": (
        lambda value: value is None or _are_tensors(value),
        "a mapping of names to tensors",
    ),
    "competence": (lambda value: value is None or _is_share(value), "a number in [0, 1]"),
    "collapsed_records": (_is_count, "a whole number of at least 0"),
    "target_digest": (lambda value: value is None or type(value) is str, "a string"),
    "best_so_far": (lambda value: value is None or type(value) is float, "a number"),
    "thresholds": (
        lambda value: value is None or (isinstance(value, list) and all(map(_is_score, value))),
        "a list of numbers in [0, 1]",
    ),
    "since_best": (_is_count, "a whole number of at least 0"),
    "num_classes": (
        lambda value: _is_count(value) and value <= _MOST_CLASSES,
        f"a whole number in [0, {_MOST_CLASSES}]",
    ),
    "classes": (lambda value: value is None or _are_texts(value), "a list of class names"),
    "trained_grid": (lambda value: value is None or _is_shape(value), "three whole numbers"),
}


def run_checkpoints(run: str | Path, *, history: bool = False) -> dict[int, Path]:
    """Step -> checkpoint, in order of steps, for a run folder or its checkpoints folder.

    ``history``: include those kept for analysis, which have no optimizer state. If a step exists as
    both file and folder, the file wins. Raises FileNotFoundError if there are none.
    """
    run = Path(run)
    for folder in (run / "checkpoints", run):
        places = [folder / HISTORY, folder] if history else [folder]
        found = {
            int(match[1]): path
            for place in places
            for path in sorted(place.glob("step_*"))  # the file sorts after its folder and wins
            if (match := re.fullmatch(r"step_(\d+)(\.pt)?", path.name)) and is_checkpoint(path)
        }
        if found:
            return dict(sorted(found.items()))
    if run.exists() and not run.is_dir():
        raise FileNotFoundError(f"run folder ({run}) must be a folder: it is a file")
    if run.is_dir():
        raise FileNotFoundError(without_checkpoint(run, "checkpoints/step_*"))
    raise FileNotFoundError(f"run folder ({run}) does not exist")


def load_checkpoint(
    path: str | Path,
    *,
    kind: str | None = None,
    optimizer: bool = False,
    as_trained: bool = False,
) -> dict[str, Any]:
    """Read a checkpoint onto the CPU without executing code from it.

    ``optimizer``: also read the optimizer state of a sharded checkpoint, half of its size.
    ``as_trained``: keep LoRA adapters separate, to resume training; by default they are merged
    into their layers and removed from the settings.

    Raises FileNotFoundError, or ValueError if it is not one of ours or of another ``kind``.
    """
    place = find_checkpoint(path)
    try:
        if place.is_file():
            state = read_torch(place)
        else:
            state = read_torch(place / _REST)
            names = {n for n in stored_shapes(place) if optimizer or not n.startswith("optimizer/")}
            state |= _nested(read_shards(place, names))
    except UNREADABLE as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, pickle.UnpicklingError | KeyError):
            reason = "it is not a checkpoint, or reading it would run code stored in it"
        advice = f"find out what it is with: hpm-video weights inspect {place}"
        raise ValueError(f"checkpoint ({place}) cannot be read: {reason}; {advice}") from error
    if not is_of_ours(state):
        raise ValueError(
            f"checkpoint ({place}) was not written by hpm-video; convert it with: hpm-video "
            f"weights import {place} -o ours.pt"
        )
    check_state(state, f"checkpoint ({place})")
    if kind is not None:
        check_kind(state, kind, f"checkpoint ({place})", place)
    if as_trained:
        return state
    return without_adapters(state, f"checkpoint ({place})")


def check_kind(state: Mapping[str, Any], kind: str, name: str, place: Path) -> None:
    """Raise ValueError if the checkpoint at ``place``, ``name`` in the message, is of another
    kind."""
    if state["kind"] != kind:
        raise ValueError(
            f"{name} must be of kind {kind}, not {state['kind']}; {way_to_kind(place, kind)}"
        )


def without_adapters(state: dict[str, Any], name: str) -> dict[str, Any]:
    """A checkpoint whose LoRA adapters are merged into their layers.

    Raises ValueError if they do not fit; ``name`` is the checkpoint's name in the message.
    """
    config = state["config"]
    model = config.get("model")
    if state["kind"] != "finetune" or not isinstance(model, Mapping) or not model.get("lora_rank"):
        return state
    try:
        settings = settings_of(state)
        assert isinstance(settings, FinetuneConfig)
        scale = settings.model.lora_alpha / settings.model.lora_rank
        weights = merged(state["model"], scale)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return {**state, "config": {**config, "model": {**model, "lora_rank": 0}}, "model": weights}


def _write(path: Path, state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, torch.save would store its name in the file
        torch.save(dict(state), file)


def _publish(path: Path, *, keep: int) -> None:
    """Point the link ``last`` to a checkpoint and remove others, oldest steps first, until ``keep``
    are left (0: all). Later steps, left by a run that was rolled back, go last."""
    link = path.parent / "last.part"
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)  # fails if a link exists
    os.replace(link, path.parent / "last")
    if keep:
        there = {each for each in path.parent.glob("step_*") if each.suffix != ".part"}
        others = sorted(there - {path}, key=lambda each: each.stem)
        for old in others[: max(0, len(there) - keep)]:
            _remove(old)


def remove_history(folder: Path, *, after: int) -> None:
    """Remove history checkpoints of steps later than ``after``, left by an earlier start."""
    for path in (folder / HISTORY).glob("step_*"):
        match = re.fullmatch(r"step_(\d+)(\.pt)?", path.name)
        if match and int(match[1]) > after:
            _remove(path)


def _clear(folder: Path) -> None:
    """Remove the remains of interrupted saves."""
    for part in (*folder.glob("step_*.part"), *folder.glob(".step_*.tmp")):
        _remove(part)


def _remove(path: Path) -> None:
    """Remove a checkpoint (file or shards) if it exists. Folders are renamed first, so that no
    partial checkpoint has a valid name."""
    if path.is_dir() and not path.is_symlink():
        part = path.with_name(f"{path.stem}.old.part")  # step_*.part may hold new shards
        if part.exists():
            shutil.rmtree(part)
        os.replace(path, part)
        shutil.rmtree(part)
    else:
        path.unlink(missing_ok=True)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors in nested dicts with their paths "a/b/c"; keys must not contain slashes."""
    for name, entry in tree.items():
        if isinstance(entry, Mapping):
            yield from _flat(entry, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", entry


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `_flat`."""
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *folders, name = path.split("/")
        branch = tree
        for folder in folders:
            branch = branch.setdefault(folder, {})
        branch[name] = value
    return tree


def load_weights(
    module: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    source: str | Path,
    allow_missing: Sequence[str] = (),
) -> list[str]:
    """Load weights strictly; raises ValueError naming the first keys that do not fit.

    Keys of the module that match a pattern of ``allow_missing`` and have no fitting weights keep
    their values. Returns these keys.
    """
    own = module.state_dict()
    wrong = misfits(weights, own, rule="the model has", unknown="is not in the model")
    kept = [name for name in wrong if name in own and is_allowed(allow_missing, name)]
    refused = [f"{name} {why}" for name, why in wrong.items() if name not in kept]
    refuse(refused, f"checkpoint ({source}) does not fit the model of these settings")
    module.load_state_dict({**weights, **{name: own[name] for name in kept}})
    return kept


def settings_of(state: Mapping[str, Any]) -> PretrainConfig | FinetuneConfig:
    """The settings of the run that wrote a checkpoint.

    Raises ValueError if they are invalid, or describe a model far larger than the stored weights.
    """
    schemas: dict[str, type[PretrainConfig | FinetuneConfig]]
    schemas = {"pretrain": PretrainConfig, "finetune": FinetuneConfig}
    if state["kind"] not in schemas:
        raise ValueError(f"kind ({state['kind']}) must be {' or '.join(schemas)}")
    config = config_from_dict(schemas[state["kind"]], as_then(state["config"]))
    blocks, numbers = size_of_blocks(config.model)
    if isinstance(config, PretrainConfig):
        numbers += size_of_target(config)
    held = sum(tensor.numel() for tensor in state["model"].values())
    most = _MOST_TIMES * held + _MOST_NUMBERS
    if blocks > _MOST_BLOCKS or numbers > most:
        raise ValueError(
            f"the checkpoint's settings describe a model of {blocks} blocks and {numbers} "
            f"parameters: must be at most {_MOST_BLOCKS} blocks and {most} parameters, as the file "
            f"stores {held}"
        )
    if blocks:  # baselines have no tokens
        _check_clips(state)
    return config


def _check_clips(state: Mapping[str, Any]) -> None:
    """Raise ValueError if clips have more tokens than any model uses in practice."""
    for grid in filter(None, (tokens_of(state).grid, trained_grid(state))):
        if grid.num_tokens > _MOST_TOKENS:
            raise ValueError(
                f"the checkpoint's settings describe clips of {grid}: must be at most "
                f"{_MOST_TOKENS} tokens"
            )


def without_training(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without its training state."""
    return {name: value for name, value in state.items() if name not in _OF_TRAINING}


def under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names start with a prefix, with the prefix removed."""
    return {n.removeprefix(prefix): value for n, value in weights.items() if n.startswith(prefix)}


def tokens_of(state: Mapping[str, Any]) -> Tokens:
    """Token grid and shape of the clips that a checkpoint's model expects."""
    stored = {
        name: _stored_number(state["config"], group, name)
        for group, name in (
            *(("model", "tubelet_size"), ("model", "patch_size")),
            *(("data", "num_frames"), ("data", "crop_size")),
        )
    }
    shape = TokenShape(stored["tubelet_size"], stored["patch_size"])
    grid = shape.grid(num_frames=stored["num_frames"], crop_size=stored["crop_size"])
    return Tokens(grid, shape)


def _stored_number(config: Mapping[str, Any], group: str, name: str) -> int:
    settings = config.get(group)
    value = settings.get(name) if isinstance(settings, Mapping) else None
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ValueError(f"{group}.{name} of the checkpoint must be a whole number of at least 1")
    return value


def trained_grid(state: Mapping[str, Any]) -> TokenGrid | None:
    """The grid of the position table with which a checkpoint was trained; None if it has none."""
    if "trained_grid" in state:
        return state["trained_grid"] and TokenGrid(*state["trained_grid"])
    return tokens_of(state).grid


def load_encoder(
    encoder: Encoder,
    state: Mapping[str, Any],
    *,
    source: str | Path,
    allow_missing: Sequence[str] = (),
) -> list[str]:
    """Load a checkpoint's encoder; its final norm is dropped if ``encoder`` has none.

    ``allow_missing`` and the result are as in `load_weights`, with names starting with
    ``encoder.``. If the encoder's tokens differ from the checkpoint's, the patch embedding is
    resampled and a stored position table is interpolated.
    """
    weights = under(state["model"], "encoder.")
    if not any(name.startswith("norm.") for name in encoder.state_dict()):
        weights = {name: value for name, value in weights.items() if not name.startswith("norm.")}
    weights = fit_tokens(weights, "", tokens_of(state), encoder.tokens)
    patterns = [pattern.removeprefix("encoder.") for pattern in allow_missing]
    kept = load_weights(encoder, weights, source=source, allow_missing=patterns)
    return [f"encoder.{name}" for name in kept]
