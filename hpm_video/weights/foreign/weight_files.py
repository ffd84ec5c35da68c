"""Reads weight files of any origin without executing code from them."""

import json
import pickle
import re
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from hpm_video.runtime.reading import check_regular, parse_json, read_json, read_text
from hpm_video.weights.checkpoint import (
    check_state,
    find_checkpoint,
    is_of_ours,
    load_checkpoint,
    without_adapters,
)
from hpm_video.weights.hub import local_model
from hpm_video.weights.misfits import refusal
from hpm_video.weights.run_folders import run_of, runs_in
from hpm_video.weights.torch_files import UNREADABLE, ZIP, ClaimError, read_torch

# Keys under which files hold their weights, in order of preference
CONTAINERS = ("model", "module", "state_dict", "model_state_dict", "target_encoder", "encoder")

_DEEPSPEED = "mp_rank_00_model_states.pt"
_EXPECTED = "a PyTorch checkpoint or a safetensors file"
# First bytes of files that are sometimes mistaken for weights
_BEGINNINGS = {
    b"<": "a web page, probably from a failed download",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not fetched (git lfs pull)",
    b"\x89HDF": "an HDF5 file",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"\x89PNG": "an image",
    b"\xff\xd8\xff": "an image",
    b"RIFF": "a video or audio file",
    b"%PDF": "a PDF",
}


@dataclass(frozen=True)
class Source:
    """The content of a weight file or folder.

    tensors: with the names in the file. container: key that holds them, empty if at the top level.
    others: the file's other keys. config: settings of a Hugging Face folder. state: the whole
    checkpoint, if it is one of ours.
    """

    path: Path
    tensors: dict[str, Tensor]
    container: str = ""
    others: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    state: dict[str, Any] | None = None


def read_weights(path: str | Path, *, container: str | None = None) -> Source:
    """Read a file or a folder (a run, Hugging Face, DeepSpeed) onto the CPU.

    ``container``: key of the file that holds the weights, if not one of `CONTAINERS`.

    Raises FileNotFoundError, or ValueError that says what was found and what was expected.
    """
    path = local_model(path)
    source = _read_folder(path, container) if path.is_dir() else _read_file(path, container)
    if container is not None and source.container != container:
        raise ValueError(f"container ({container}) must be left out: {path} has no containers")
    for name in source.tensors:
        if not name.isprintable():  # names are printed to the terminal
            raise refusal(path, f"a tensor {name!r}", "a printable name")
    return source


def _read_file(path: Path, container: str | None) -> Source:
    if not path.exists():
        raise FileNotFoundError(f"weights ({path}) do not exist")
    if not path.is_file():  # opening a pipe could block forever
        raise refusal(path, "a device or a pipe", "a file or a folder")
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except PermissionError as error:
        raise ValueError(f"weights ({path}) must be readable: {error.strerror}") from error
    # safetensors files start with the header's length and its opening brace
    length, most = int.from_bytes(start[:8], "little"), max(path.stat().st_size, 1 << 24)
    if start[8:9] == b"{" and 2 <= length < most:
        return _read_safetensors([path], path)
    return _read_torch(path, start, container)


def _read_folder(path: Path, container: str | None) -> Source:
    if (path / "config.json").is_file():
        config = _read_json(path / "config.json")
        if (preprocessor := path / "preprocessor_config.json").is_file():
            config = {**_read_json(preprocessor), **config}
        if files := sorted(path.glob("*.safetensors")):
            source = _read_safetensors(files, path)
        elif (file := path / "pytorch_model.bin").is_file():
            source = _read_file(file, container)
        else:
            beside = "*.safetensors or pytorch_model.bin beside it"
            raise refusal(path, "config.json alone", beside)
        return replace(source, path=path, config=config)
    latest = path / "latest"
    name = read_text(latest, errors="replace", most=4096).strip() if latest.is_file() else ""
    for file in (path / _DEEPSPEED, path / name / _DEEPSPEED):
        if file.is_file():
            return _read_file(file, container)
    try:
        return _ours(find_checkpoint(path), load_checkpoint(path))
    except FileNotFoundError as error:
        if run_of(path) is not None or runs_in(path):
            raise
        there = f"a folder with {_few(sorted(p.name for p in path.iterdir()))}"
        words = str(refusal(path, there, "a folder of a run, Hugging Face or DeepSpeed"))
        raise FileNotFoundError(words) from error


def _read_safetensors(files: list[Path], path: Path) -> Source:
    tensors: dict[str, Tensor] = {}
    header: dict[str, str] = {}
    for name in files:
        try:
            check_regular(name, name.stat().st_mode)
            with safe_open(name, framework="pt") as file:
                header |= file.metadata() or {}
                found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError, MemoryError) as error:
            damaged = f"a safetensors file that is damaged or half-written ({error})"
            raise _unreadable(name, damaged) from error
        if twice := tensors.keys() & found.keys():
            words = f"{min(twice)} in {name.name} and in another file"
            raise refusal(path, words, "each tensor once")
        tensors |= found
    if {"kind", "step", "config"} <= header.keys():
        try:
            rest = {k: v if k == "kind" else parse_json(v) for k, v in header.items()}
        except json.JSONDecodeError as error:
            raise _unreadable(path, f"a header that is not valid JSON ({error})") from error
        return _ours(path, {**rest, "model": tensors})
    return Source(path, tensors)


def _read_torch(path: Path, start: bytes, container: str | None) -> Source:
    try:
        # Official files store their options in a Namespace, which is harmless
        found = read_torch(path, classes=(Namespace,))
    except ClaimError as error:
        raise _unreadable(path, f"a file that would take too much memory ({error})") from error
    except (*UNREADABLE, SafetensorError) as error:  # PyTorch also reads *.safetensors
        raise _unreadable(path, _words(path, start, error)) from error
    if start.startswith(ZIP) and (damaged := _damaged_part(path)):
        raise _unreadable(path, f"{damaged}, which is damaged")
    if is_of_ours(found):
        return _ours(path, found)
    if not isinstance(found, Mapping):
        raise _unreadable(path, f"a {type(found).__name__}")
    names = tuple(map(str, found))
    if container is not None and container not in found:
        raise ValueError(f"container ({container}) must be one of {_few(names)} of {path}")
    inside = container or next((n for n in CONTAINERS if isinstance(found.get(n), Mapping)), "")
    weights = found[inside] if inside else found
    if not isinstance(weights, Mapping) or not weights:
        raise _unreadable(path, f"no weights{f' in {inside}' if inside else ''}")
    for name, value in weights.items():
        if not isinstance(value, Tensor):
            containers = f"tensors, at the top level or in one of {', '.join(CONTAINERS)}"
            raise refusal(path, f"{name}, a {type(value).__name__}", containers)
    others = tuple(name for name in names if name != inside) if inside else ()
    return Source(path, {str(n): v for n, v in weights.items()}, container=inside, others=others)


def _damaged_part(path: Path) -> str:
    """A zip archive's first part with a wrong checksum, if any; PyTorch ignores checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() or ""
    except UNREADABLE:
        return "a zip archive"


def _ours(path: Path, state: dict[str, Any]) -> Source:
    model, config = state["model"], state["config"]
    if not isinstance(config, Mapping) or not isinstance(model, Mapping) or not model:
        raise _unreadable(path, "no weights in model, or no settings in config")
    for name, value in model.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _unreadable(path, f"{name} in model, a {type(value).__name__}")
    check_state(state, f"weights ({path})")
    state = without_adapters(state, f"weights ({path})")
    others = tuple(str(name) for name in state if name != "model")
    return Source(path, dict(state["model"]), container="model", others=others, state=state)


def _words(path: Path, start: bytes, error: Exception) -> str:
    """Description of a file that `torch.load` could not read."""
    if not start:
        return "an empty file"
    if start.startswith(ZIP):
        if isinstance(error, zipfile.BadZipFile):
            return "a zip archive without its end, half-written or not completely downloaded"
        if re.search(r"data\.pkl|not in a subdirectory", str(error)):
            return "a zip archive without weights, such as a torch.export program"
    else:
        known = (words for mark, words in _BEGINNINGS.items() if start.lstrip().startswith(mark))
        if words := next(known, ""):
            return words
    if isinstance(error, pickle.UnpicklingError) and (
        found := re.search(r"GLOBAL (\S+)", str(error))
    ):
        name = found[1].strip(".,`'\"")
        return f"a Python object ({name}), and reading it would run code stored in the file"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if first.startswith("Weights only"):  # PyTorch's advice to load it unsafely
        first = "neither its zip archive nor a pickle of tensors"
    return f"a file that PyTorch cannot read ({first[:120]})"


def _unreadable(path: Path, found: str) -> ValueError:
    return ValueError(f"weights ({path}) cannot be read: found {found}, expected {_EXPECTED}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ValueError as error:
        raise refusal(path, f"invalid JSON ({error})", "settings") from error
    if not isinstance(found, dict):
        raise refusal(path, f"a {type(found).__name__}", "settings")
    return found


def _few(names: tuple[str, ...] | list[str]) -> str:
    """The first few names as text."""
    shown = ", ".join(names[:6])
    return (shown + (f" and {len(names) - 6} more" if len(names) > 6 else "")) or "nothing"
