"""Which videos of a list are those of another, whatever they are called: by path, link or copy."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

from hpm_video.data.lists.manifest import Manifest

_SAMPLE = 16 * 1024  # bytes at either end of a file by which a copy is known
_THREADS = 16  # file systems on a network answer many at once
_CHUNK = 500
_Identity = tuple[str, tuple[int, int], int]  # path, what all links to the file share, its size


@dataclass(frozen=True)
class Overlap:
    """How many of the videos of a list are in another, too."""

    num_named: int  # by the same path
    num_linked: int  # the same file under another path
    num_copied: int  # another file of the same content
    num_videos: int  # in the list
    num_looked_at: int  # of the other list's files, before the time was over
    num_files: int

    @property
    def num_shared(self) -> int:
        return self.num_named + self.num_linked + self.num_copied

    def __str__(self) -> str:
        """For messages: "3 of 40 videos (1 by a link, 2 copies)"."""
        kinds = [f"{self.num_linked} by a link"] * bool(self.num_linked)
        kinds += [f"{self.num_copied} copies"] * bool(self.num_copied)
        if self.num_looked_at < self.num_files:
            kinds.append(f"only {self.num_looked_at} of {self.num_files} files compared in time")
        how = f" ({', '.join(kinds)})" if kinds else ""
        return f"{self.num_shared} of {self.num_videos} videos{how}"


def find_shared(one: Manifest, other: Manifest, *, most_seconds: float = 30.0) -> Overlap:
    """How many videos of ``other`` are in ``one`` too.

    By their paths, by the file that these lead to, and by content: of files of equal size both ends
    are compared. Asks the file system about each file once, for about ``most_seconds`` at most;
    what is not there is left out.
    """
    wanted: dict[str, list[int]] = {}
    for index in range(len(other)):
        wanted.setdefault(os.path.normpath(other.path(index)), []).append(index)
    named = {path for path in _paths(one, range(len(one))) if path in wanted}
    linked: set[str] = set()
    copied: set[str] = set()
    num_looked_at = 0
    until = time.monotonic() + most_seconds
    with ThreadPoolExecutor(_THREADS) as pool:
        files: dict[tuple[int, int], list[str]] = {}
        sizes: dict[int, list[str]] = {}
        for path, file, size in _identities(pool, [path for path in wanted if path not in named]):
            files.setdefault(file, []).append(path)
            sizes.setdefault(size, []).append(path)
        pairs: list[tuple[str, str]] = []
        while files and num_looked_at < len(one) and time.monotonic() < until:
            rows = range(num_looked_at, min(num_looked_at + _CHUNK * _THREADS, len(one)))
            paths = [path for path in _paths(one, rows) if path not in wanted]
            for path, file, size in _identities(pool, paths):
                linked.update(files.get(file, ()))
                pairs += ((path, candidate) for candidate in sizes.get(size, ()))
            num_looked_at = rows.stop
        pairs = [pair for pair in pairs if pair[1] not in linked]
        copied.update(path for path, is_copy in pool.map(_is_copy, pairs) if is_copy)
    num_named, num_linked, num_copied = (
        sum(len(wanted[path]) for path in found) for found in (named, linked, copied)
    )
    num_files = len(one) if files else num_looked_at
    return Overlap(num_named, num_linked, num_copied, len(other), num_looked_at, num_files)


def _paths(manifest: Manifest, rows: range) -> Iterator[str]:
    return (os.path.normpath(manifest.path(row)) for row in rows)


def _identities(pool: ThreadPoolExecutor, paths: list[str]) -> Iterator[_Identity]:
    parts = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
    return chain.from_iterable(pool.map(_identities_of, parts))


def _identities_of(paths: list[str]) -> list[_Identity]:
    """Identities of those files that are there and not empty."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        if status.st_size:
            found.append((path, (status.st_dev, status.st_ino), status.st_size))
    return found


def _is_copy(pair: tuple[str, str]) -> tuple[str, bool]:
    one, other = map(_ends, pair)
    return pair[1], one is not None and one == other


def _ends(path: str) -> tuple[bytes, bytes] | None:
    try:
        with open(path, "rb") as file:
            head = file.read(_SAMPLE)
            file.seek(max(0, os.fstat(file.fileno()).st_size - _SAMPLE))
            return head, file.read(_SAMPLE)
    except OSError:
        return None
