"""The index of a list: the tables of frames of its videos, in one file beside it.

``train.csv.index`` belongs to ``train.csv``. Videos are found by their names as the list has them,
so a list, its index and its videos can be moved together. A table says itself whether its file has
changed since, so an index that is older than its list does no harm.

The file: a header; the tables; then four rows with a column for each name: 64 bits of its hash,
rising, 64 more that tell names of the same hash apart, and where its table begins and ends.
"""

import hashlib
import mmap
import os
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
_HEADER = struct.Struct("<16sQQQ")  # magic, version, number of names, where their rows begin
_ROWS = 4
_MOST_BYTES = 2**26  # of a table: of one that is cut off it is said that it is damaged


def index_beside(manifest: str | Path) -> Path:
    """Where the index of a list is."""
    manifest = Path(manifest)
    return manifest.with_name(f"{manifest.name}.index")


class FrameIndex:
    """An index, mapped into memory: processes of one machine share what they have read of it.

    Raises FileNotFoundError: there is none; ValueError: it is damaged, of another version, or some
    other file, in one line that says what to do.
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
        """The table of a video (`FrameTable.to_bytes`), None where there is none."""
        key, rest = _hashes(name)
        place = int(np.searchsorted(self._hashes, np.uint64(key)))
        if place == len(self) or (self._hashes[place], self._rests[place]) != (key, rest):
            return None
        start, end = int(self._starts[place]), int(self._ends[place])
        return self._data[start : min(end, start + _MOST_BYTES)]


def check_is_index(path: Path) -> None:
    """Raise ValueError where writing an index would replace some other file."""
    try:
        with open_regular(path) as file:
            if not file.read(_HEADER.size).startswith(_MAGIC):
                raise ValueError(f"{path} must be an index or no file at all: is another file")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def find_frame_index(manifest: Path) -> FrameIndex | None:
    """The index beside a list, None without a usable one: see `index_fault`."""
    try:
        return FrameIndex(index_beside(manifest))
    except (ValueError, OSError):
        return None


def index_fault(manifest: Path) -> str | None:
    """Why the index beside a list cannot be used; None where it can, or there is none."""
    try:
        FrameIndex(index_beside(manifest))
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        return str(error)
    return None


class FrameIndexWriter:
    """Adds tables to an index that is being written; see `new_frame_index`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._file.write(bytes(_HEADER.size))
        self._place = _HEADER.size
        self._rows = tuple(array("Q") for _ in range(_ROWS))
        self._known: set[int] = set()

    def add(self, name: str, table: bytes) -> None:
        """Add the table of a video, under its name as the list has it; a second one is left out."""
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
        """Write what is known only now: the names, in order, and the header."""
        rows = np.array(self._rows, dtype="<u8")
        padding = -self._place % 8
        self._file.write(bytes(padding))
        self._file.write(rows[:, np.argsort(rows[0])].tobytes())
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, _VERSION, rows.shape[1], self._place + padding))


@contextmanager
def new_frame_index(path: Path) -> Iterator[FrameIndexWriter]:
    """An index to add tables to; it appears, at once, when all are there.

    Raises ValueError: it cannot be written.
    """
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        writer = FrameIndexWriter(file)
        yield writer
        writer.finish()


def write_frame_index(path: Path, tables: Iterable[tuple[str, bytes]]) -> None:
    """Write an index of (name as in the list, `FrameTable.to_bytes`)."""
    with new_frame_index(path) as index:
        for name, table in tables:
            index.add(name, table)


def _hashes(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    key, rest = struct.unpack("<QQ", digest)
    return key, rest


def _unusable(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} {why}: it is not used; hpm-video data check of the list writes it anew"
    )
