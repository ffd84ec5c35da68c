"""The index of a list: the frame tables of its videos, in one file beside it.

``train.csv.index`` belongs to ``train.csv``. It finds videos by their names in the list, so a list,
its index and its videos can be moved together. Each table detects whether its file has changed, so
an outdated index does no harm.

File layout: a header; the tables; then four rows with one column per name: 64 bits of the name's
hash (ascending), 64 more bits to resolve collisions, and start and end of its table.
"""

import hashlib
import mmap
import os
import shlex
import struct
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from hpm_video.runtime.files import whole_file
from hpm_video.runtime.reading import open_regular

_MAGIC = b"hpm-video index\n"
_VERSION = 1
_HEADER = struct.Struct("<16sQQQ")  # magic, version, number of names, offset of their rows
_ROWS = 4
_MOST_BYTES = 2**26  # largest table, in bytes; a larger one is reported as damaged


def index_beside(manifest: str | Path) -> Path:
    """The path of a list's index."""
    manifest = Path(manifest)
    return manifest.with_name(f"{manifest.name}.index")


class FrameIndex:
    """An index mapped into memory, so that processes on one machine share the pages they have read.

    Raises FileNotFoundError if it does not exist, or ValueError if it is damaged, of another
    version, or not an index; the message says what to do.
    """

    def __init__(self, path: Path) -> None:
        with open_regular(path) as file:
            header = file.read(_HEADER.size)
            if len(header) < _HEADER.size or not header.startswith(_MAGIC):
                raise _unusable(path, "is not the index of a list")
            _, version, num_names, place = _HEADER.unpack(header)
            if version != _VERSION:
                raise _unusable(path, f"has version {version}, not {_VERSION}")
            if file.seek(0, os.SEEK_END) != place + 8 * _ROWS * num_names:
                raise _unusable(path, "is damaged")
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        numbers = np.frombuffer(self._data, "<u8", _ROWS * num_names, place)
        self._hashes, self._rests, self._starts, self._ends = numbers.reshape(_ROWS, num_names)

    def __len__(self) -> int:
        return len(self._hashes)

    def get(self, name: str) -> bytes | None:
        """The table of a video (`FrameTable.to_bytes`), or None if the index has none."""
        key, rest = _hashes(name)
        place = int(np.searchsorted(self._hashes, np.uint64(key)))
        if place == len(self) or (self._hashes[place], self._rests[place]) != (key, rest):
            return None
        start, end = int(self._starts[place]), int(self._ends[place])
        return self._data[start : min(end, start + _MOST_BYTES)]


def check_is_index(path: Path) -> None:
    """Raise ValueError if writing an index would overwrite a file that is not an index."""
    try:
        with open_regular(path) as file:
            if not file.read(_HEADER.size).startswith(_MAGIC):
                raise ValueError(
                    f"{path} is not the index of a list, which is written there: move it away"
                )
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def find_frame_index(manifest: Path) -> FrameIndex | None:
    """The index beside a list, or None if there is no usable one: see `index_fault`."""
    try:
        return FrameIndex(index_beside(manifest))
    except (ValueError, OSError):
        return None


def index_fault(manifest: Path) -> str | None:
    """Why the index beside a list cannot be used; None if it can be, or does not exist."""
    try:
        FrameIndex(index_beside(manifest))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        return str(error)
    return None


class FrameIndexWriter:
    """Adds tables to a new index; see `new_frame_index`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(bytes(_HEADER.size))
        self._place = _HEADER.size
        self._rows = tuple(array("Q") for _ in range(_ROWS))
        self._known: set[int] = set()

    def add(self, name: str, table: bytes) -> None:
        """Add the table of a video under its name in the list; ignored if the name has one."""
        key, rest = _hashes(name)
        if key in self._known:
            return
        self._known.add(key)
        end = self._place + len(table)
        for row, number in zip(self._rows, (key, rest, self._place, end), strict=True):
            row.append(number)
        self._file.write(table)
        self._place = end

    def finish(self) -> None:
        """Write the sorted names and the header, which are known only at the end."""
        rows = np.array(self._rows, dtype="<u8")
        padding = -self._place % 8
        self._file.write(bytes(padding))
        self._file.write(rows[:, np.argsort(rows[0])].tobytes())
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, _VERSION, rows.shape[1], self._place + padding))


@contextmanager
def new_frame_index(path: Path) -> Iterator[FrameIndexWriter]:
    """A writer for an index, which appears under its name atomically once it is complete.

    Raises ValueError if it cannot be written.
    """
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        writer = FrameIndexWriter(file)
        yield writer
        writer.finish()


def write_frame_index(path: Path, tables: Iterable[tuple[str, bytes]]) -> None:
    """Write an index from pairs of (name in the list, `FrameTable.to_bytes`)."""
    with new_frame_index(path) as index:
        for name, table in tables:
            index.add(name, table)


def _hashes(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    key, rest = struct.unpack("<QQ", digest)
    return key, rest


def _unusable(path: Path, why: str) -> ValueError:
    checked = shlex.quote(str(path.with_suffix("")))
    return ValueError(
        f"{path} {why}, so it is not used; write a new one with `hpm-video data check {checked}`"
    )
