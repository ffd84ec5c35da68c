"""Feature files in npz or safetensors format, and the parts of an unfinished one.

A file appears complete or not at all. The finished parts of a long job lie beside it, so the same
command resumes after an interruption.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from hpm_video.runtime.files import own_folder, whole_file
from hpm_video.runtime.reading import open_regular, parse_json
from hpm_video.weights.torch_files import check_archive

Arrays = Mapping[str, npt.NDArray[Any]]

SUFFIXES = (".npz", ".safetensors")
_METADATA = "metadata"


def write_features(path: Path, arrays: Arrays, metadata: Mapping[str, Any]) -> None:
    """Write named arrays and JSON metadata in the format given by the suffix of ``path``."""
    text = json.dumps(metadata)  # ASCII, because file names need not be UTF-8
    with whole_file(path) as temporary:
        if path.suffix == ".npz":
            with temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **{_METADATA: np.array(text)}, **dict(arrays))
        else:
            whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            safetensors.numpy.save_file(whole, temporary, metadata={_METADATA: text})


def read_features(path: str | Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Arrays and metadata of a file from `write_features`; runs no code from the file."""
    try:
        with _opened(Path(path)) as (text, arrays):
            return dict(arrays), parse_json(text)
    except MemoryError as error:
        raise ValueError(f"{path} claims more values than fit into memory") from error


def read_metadata(path: Path) -> dict[str, Any] | None:
    """Metadata alone; None if the file is missing or of another kind."""
    broken = (EOFError, zipfile.BadZipFile, safetensors.SafetensorError)  # empty or truncated
    try:
        with _opened(path) as (text, _):
            metadata = parse_json(text)
    except (*broken, OSError, ValueError, KeyError, TypeError):
        return None
    return metadata if isinstance(metadata, dict) else None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[str, Iterator[tuple[str, npt.NDArray[Any]]]]]:
    """Metadata text of a file, and its named arrays, which are read lazily."""
    if path.suffix == ".npz":
        with _archive(path) as file:
            names = (name for name in file.files if name != _METADATA)
            yield str(file[_METADATA]), ((name, file[name]) for name in names)
    else:
        open_regular(path).close()  # safe_open would block on a pipe
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
            yield file.metadata()[_METADATA], arrays


def _archive(path: Path) -> Any:
    """Open an npz whose arrays unpack to no more than its own size; the caller closes it."""
    with open_regular(path) as archive:
        check_archive(archive, os.fstat(archive.fileno()).st_size)
    return np.load(path, allow_pickle=False)


def fingerprint(values: Any) -> str:
    """A short hash of JSON values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


class Parts:
    """Finished parts of an output, one file each, in the folder OUTPUT.parts.

    Parts are valid for one ``described`` value; if it changes, the job starts anew.
    """

    def __init__(self, output: Path, *, described: str) -> None:
        self.folder = output.with_name(f"{output.name}.parts")
        self._prefix = described

    def clean(self) -> None:
        """Create the folder, and remove parts of another job."""
        own_folder(self.folder)
        for file in self.folder.iterdir():
            if not file.name.startswith(f"{self._prefix}_") or file.suffix != ".npz":
                if file.is_dir() and not file.is_symlink():
                    shutil.rmtree(file)
                else:
                    file.unlink()

    def has(self, number: int) -> bool:
        return self._file(number).is_file()

    def write(self, number: int, arrays: Arrays) -> None:
        with whole_file(self._file(number)) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **dict(arrays))

    def joined(self, count: int) -> dict[str, npt.NDArray[Any]]:
        """Arrays of parts 0 to count - 1, concatenated along the first axis."""
        parts = []
        for number in range(count):
            with _archive(self._file(number)) as file:
                parts.append({name: file[name] for name in file.files})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def remove(self) -> None:
        shutil.rmtree(self.folder)

    def _file(self, number: int) -> Path:
        return self.folder / f"{self._prefix}_{number:06d}.npz"
