"""Videos in tars at URLs: the cache holds the index of a tar, and videos one at a time.

If no index lies beside a tar, processes with network access read its headers, in ranges of bytes.
If the server cannot send ranges, they fetch the whole tar once.
"""

import fcntl
import os
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from hpm_video.data.remote.cache import Cache, Held, cache
from hpm_video.data.remote.server import (
    NoRanges,
    Refused,
    RemoteFile,
    check_size,
    outcome_of,
    restart_timer,
)
from hpm_video.data.video.tar_index import TarIndex, dated, packed
from hpm_video.data.video.tar_listing import is_outside, list_source

Read = Callable[[int, int], bytes]  # (start, end) -> bytes of a tar

_RANGE = 2**22  # most bytes per request
_FIRST = 2**16  # least bytes per request for headers
_NEAR = 2**18  # bytes; closer requests read ahead twice as much each time
_MOST_OF_A_HEADER = 2**21  # bytes, above the limits of labels and of data after a tar's end
_MOST_OF_AN_INDEX = 2**30
_BLOCK = 512  # bytes of the header before each file
_LONGEST_WAIT_S = 600.0  # for another process, which may be suspended


def cached_index(tar: str) -> TarIndex | None:
    """The index of a tar at a URL, if it is in the cache."""
    data = _held_index(cache(), tar)
    return None if data is None else TarIndex(data)


def fetch_from_tar(file: RemoteFile, tar: str, name: str, *, cache: Cache, to: str) -> int:
    """Write a video in the tar at a URL to a file, or the tar's index if the name is "".

    Returns how many bytes were added to the cache.
    """
    try:
        if file.size is None:
            raise NoRanges
        return _fetch(file.read, file, tar, name, cache=cache, to=to)
    except NoRanges:
        held, came = _whole(file, tar, cache)
    with closing(held), open(held.path, "rb") as local:
        file = replace(file, size=os.fstat(local.fileno()).st_size)

        def read(start: int, end: int) -> bytes:
            restart_timer(file.timeout_s)
            return os.pread(local.fileno(), end - start, start)

        return came + _fetch(read, file, tar, name, cache=cache, to=to)


def _fetch(read: Read, file: RemoteFile, tar: str, name: str, *, cache: Cache, to: str) -> int:
    data = _index(read, file, tar, cache=cache, scratch=to)
    if not name:
        return Path(to).write_bytes(data)
    start, size = TarIndex(data).find(name)
    check_size(size, cache)
    with open(to, "wb") as out:
        for place in range(start, start + size, _RANGE):
            out.write(read(place, min(place + _RANGE, start + size)))
    return size


def _index(read: Read, file: RemoteFile, tar: str, *, cache: Cache, scratch: str) -> bytes:
    """The cached index of a tar if it is up to date, else a new one, which is then cached."""
    if (data := _kept(file, tar, cache)) is not None:
        return data
    with _turn(file, f"{tar}/", cache):
        if (data := _kept(file, tar, cache)) is not None:
            return data
        data = _beside(read, file, scratch) or _listed(read, file, tar)
        with cache.new_file(cache.place(f"{tar}/")) as temporary:
            Path(temporary).write_bytes(data)
    return data


def _kept(file: RemoteFile, tar: str, cache: Cache) -> bytes | None:
    data = _held_index(cache, tar)
    if data is None or not TarIndex(data).fits(file.size or 0, file.mtime_ns):
        return None
    return data


def _held_index(cache: Cache, tar: str) -> bytes | None:
    if (held := cache.hold(cache.place(f"{tar}/"))) is None:
        return None
    with closing(held), suppress(ValueError):
        TarIndex(data := Path(held.path).read_bytes())
        return data
    return None


def _beside(read: Read, file: RemoteFile, scratch: str) -> bytes | None:
    """The index stored beside a tar on the server, if it matches the tar."""
    try:
        found = file.beside(".videos")
        if found.size is None or found.size > _MOST_OF_AN_INDEX:
            return None
        found.download(scratch)
    except Exception as error:
        if outcome_of(error)[0] == "failed":
            raise
        return None
    with suppress(ValueError, tarfile.TarError):
        index = TarIndex(data := Path(scratch).read_bytes())
        names = [index.name(number) for number, _ in enumerate(index.labels())]
        if index.num_bytes != file.size or not names or any(map(is_outside, names)):
            return None
        # Times of change say nothing here: check that the last video's header precedes it
        start, size = index.find(names[-1])
        header = read(start - _BLOCK, start) if start >= _BLOCK else b""
        if tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size:
            return dated(data, file.mtime_ns)
    return None


def _listed(read: Read, file: RemoteFile, tar: str) -> bytes:
    """An index made from the headers of a tar."""
    assert file.size is not None
    try:
        return packed(list_source(_Headers(read, file.size), file.size, file.mtime_ns))
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise Refused(f"{tar} {error}") from error


class _Headers:
    """A tar of which only the headers are read; the data between them are not fetched."""

    def __init__(self, read: Read, size: int) -> None:
        self._read, self._size, self._place = read, size, 0
        self._start, self._data, self._step = 0, b"", _FIRST

    def tell(self) -> int:
        return self._place

    def seek(self, place: int, /) -> int:
        self._place = place
        return place

    def read(self, count: int, /) -> bytes:
        if count > _MOST_OF_A_HEADER:
            raise ValueError(f"is damaged at byte {self._place}: has too long a header")
        start, end = self._place, min(self._place + count, self._size)
        if start >= end:
            return b""
        known = self._start + len(self._data)
        if start < self._start or end > known:
            is_near = self._data and 0 <= start - known < _NEAR
            self._step = min(2 * self._step, _RANGE) if is_near else _FIRST
            self._data = self._read(start, min(max(end, start + self._step), self._size))
            self._start = start
        self._place = end
        return self._data[start - self._start : end - self._start]


def _whole(file: RemoteFile, tar: str, cache: Cache) -> tuple[Held, int]:
    """The whole tar in the cache, and how many bytes were fetched."""
    try:
        check_size(file.size, cache)
    except Refused as error:
        raise Refused(f"{tar} must be fetched whole from this server, but {error}") from error
    place = cache.place(tar)
    with _turn(file, tar, cache):
        if (held := cache.hold(place)) is not None:
            status = os.stat(held.path)
            if file.size in (None, status.st_size) and status.st_mtime_ns == file.mtime_ns:
                return held, 0
            held.close()
        with cache.new_file(place) as temporary:
            came = file.download(temporary)
            os.utime(temporary, ns=(time.time_ns(), file.mtime_ns))
        if (held := cache.hold(place)) is None:
            raise OSError("its tar was deleted from the cache at once")
        return held, came


@contextmanager
def _turn(file: RemoteFile, url: str, cache: Cache) -> Iterator[None]:
    """Hold a lock on fetching a URL: processes that wait for it find the file in the cache."""
    folder, name = os.path.split(cache.place(url))
    os.makedirs(folder, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(os.path.join(folder, f".{name}.lock"), flags, 0o600)
    try:
        restart_timer(None if file.timeout_s is None else 0)
        end = time.monotonic() + _LONGEST_WAIT_S
        while not _is_locked(descriptor) and time.monotonic() < end:
            time.sleep(0.05)
        restart_timer(file.timeout_s)
        yield
    finally:
        os.close(descriptor)


def _is_locked(descriptor: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
