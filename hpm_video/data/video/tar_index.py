"""The index of a tar of videos: the offset of each of them, stored beside the tar.

``train-0000.tar.videos`` belongs to ``train-0000.tar``; if the tar's folder is not writable, it is
in the user's cache. An index records the size and modification time of its tar, so an outdated one
does no harm.

File layout: a header; one column per video, in tar order, with rows for its start, its size and the
end of its name, and one more row that sorts the videos by name; all names; all classes, as JSON.
"""

import hashlib
import json
import mmap
import os
import struct
import zlib
from bisect import bisect_left
from functools import lru_cache
from pathlib import Path

import numpy as np

from hpm_video.data.video.tar_listing import Listing, list_tar
from hpm_video.runtime.files import whole_file
from hpm_video.runtime.reading import open_regular, parse_json

_MAGIC = b"hpm-video shard\n"
_VERSION = 1
# Magic, version, CRC-32 of the rest; size and time of the tar, samples without a video; size of the
# labels, number of names and their size
_HEADER = struct.Struct("<16s8Q")
_ROWS = 4


class DamagedTarError(ValueError):
    """A tar that cannot be used; the message names the tar and the reason."""


class TarIndex:
    """An index in its stored form, which processes on one machine share if it is mapped.

    Raises ValueError if it is damaged, or not an index.
    """

    def __init__(self, data: bytes | mmap.mmap) -> None:
        whole = memoryview(data)
        if len(whole) < _HEADER.size or whole[:16] != _MAGIC:
            raise ValueError("is not the index of a tar")
        _, version, checksum, *numbers = _HEADER.unpack_from(whole)
        self.num_bytes, self.mtime_ns, self.num_without, labels_size, self._num, names_size = (
            numbers
        )
        place = _HEADER.size + 8 * _ROWS * self._num
        if version != _VERSION or len(whole) != place + names_size + labels_size:
            raise ValueError("is damaged, or of another version")
        table = np.frombuffer(whole, "<u8", _ROWS * self._num, _HEADER.size)
        self._starts, self._sizes, self._ends, self._order = table.reshape(_ROWS, self._num)
        # An index may come from anyone: its ranges must lie in the tar, and in its own names
        is_possible = (
            zlib.crc32(whole[_HEADER.size :]) == checksum
            and (self._order < self._num).all()
            and (self._ends <= names_size).all()
            and (self._sizes <= self.num_bytes).all()
            and (self._starts <= self.num_bytes - self._sizes).all()
        )
        if not is_possible:
            raise ValueError("is damaged")
        self._names = whole[place : place + names_size]
        self._labels = whole[place + names_size :]

    def __len__(self) -> int:
        return self._num

    def fits(self, num_bytes: int, mtime_ns: int) -> bool:
        """Whether it belongs to a tar of this size and modification time."""
        return is_same((num_bytes, mtime_ns), (self.num_bytes, self.mtime_ns))

    def name(self, index: int) -> str:
        """The name of a video in the tar."""
        return self._name(index).decode("utf-8", "surrogateescape")

    def _name(self, index: int) -> bytes:
        start = int(self._ends[index - 1]) if index else 0
        return bytes(self._names[start : int(self._ends[index])])

    def labels(self) -> list[str]:
        """The label of every video, from its file ``KEY.cls``; "" for none.

        Raises ValueError if the labels are damaged.
        """
        labels = parse_json(bytes(self._labels))
        if not (isinstance(labels, list) and len(labels) == self._num):
            raise ValueError("is damaged")
        return list(map(str, labels))

    def find(self, name: str) -> tuple[int, int]:
        """The offset of a video, and its size. Raises FileNotFoundError."""
        wanted = os.fsencode(name)
        place = bisect_left(self._order, wanted, key=lambda index: self._name(int(index)))
        index = int(self._order[place]) if place < self._num else None
        if index is None or self._name(index) != wanted:
            raise FileNotFoundError(f"no such file: {name}")
        return int(self._starts[index]), int(self._sizes[index])


def is_same(now: tuple[int, int], then: tuple[int, int]) -> bool:
    """Whether a file of this size and modification time is unchanged.

    tar, scp -p and other file systems may store times at lower resolution.
    """
    kept = {then[1] - then[1] % step for step in (1, 100, 10**3, 10**6, 10**9)}
    return now[0] == then[0] and now[1] in kept


def find_index(tar: str, status: os.stat_result) -> TarIndex:
    """The index of a tar with this status; if none is stored, one made for this process.

    Raises DamagedTarError if the tar cannot be used, or OSError if it cannot be read.
    """
    return _index(tar, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=64)
def _index(tar: str, num_bytes: int, mtime_ns: int) -> TarIndex:
    if (kept := kept_index(tar)) is not None:
        return kept
    listing = list_tar(tar)
    if isinstance(listing, str):
        raise DamagedTarError(listing)
    return TarIndex(packed(listing))


def kept_index(tar: str) -> TarIndex | None:
    """The stored index of a tar, if it is up to date."""
    status = os.stat(tar)
    for place in _places(tar):
        try:
            with open_regular(place) as file:
                index = TarIndex(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except (OSError, ValueError):
            continue
        if index.fits(status.st_size, status.st_mtime_ns):
            return index
    return None


def keep_index(tar: str, listing: Listing) -> None:
    """Write the index of a tar. Raises ValueError if neither location is writable."""
    beside, cached = _places(tar)
    for place in (beside, cached):
        try:
            with whole_file(place) as temporary:
                temporary.write_bytes(packed(listing))
            return
        except ValueError as error:
            refused = error
    raise ValueError(
        f"{refused}, nor can {beside}; make one of them writable, or set XDG_CACHE_HOME to another "
        "folder for the first"
    ) from refused


def _places(tar: str) -> tuple[Path, Path]:
    """The possible paths of a tar's index: beside it, and in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    name = hashlib.blake2b(os.fsencode(os.path.realpath(tar)), digest_size=16).hexdigest()
    return Path(f"{tar}.videos"), cache / "hpm_video" / "shards" / f"{name}.videos"


def dated(index: bytes, mtime_ns: int) -> bytes:
    """The bytes of an index with another modification time of its tar."""
    place = _HEADER.size - 5 * 8
    return index[:place] + struct.pack("<Q", mtime_ns) + index[place + 8 :]


def packed(listing: Listing) -> bytes:
    """The bytes of a tar's index."""
    names = [os.fsencode(name) for name in listing.names]
    order = sorted(range(len(names)), key=names.__getitem__)
    ends = np.cumsum([len(name) for name in names], dtype=np.uint64)
    labels = json.dumps(listing.labels, separators=(",", ":")).encode()
    joined = b"".join(names)
    rows = np.array([listing.starts, listing.sizes, ends, order], dtype="<u8").tobytes()
    content = b"".join((rows, joined, labels))
    header = _HEADER.pack(
        _MAGIC, _VERSION, zlib.crc32(content), listing.num_bytes, listing.mtime_ns,
        listing.num_without, len(labels), len(names), len(joined),
    )  # fmt: skip
    return header + content
