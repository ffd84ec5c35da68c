"""Finds videos that two lists share: by path, by link or by copied content.

Two parts of one video count as shared if their times overlap.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.video.source import locate, open_bytes

_SAMPLE = 16 * 1024  # bytes at either end of a file that identify a copy
_THREADS = 16  # network file systems answer many requests at once
_CHUNK = 500
_File = tuple[int, int, int]  # identity that all links to a file share
_Identity = tuple[str, _File, int]  # path, file, size


@dataclass(frozen=True)
class Overlap:
    """How many videos of a list are also in another."""

    num_named: int  # same path
    num_linked: int  # same file under another path
    num_copied: int  # another file with the same content
    num_videos: int  # videos in the list
    num_looked_at: int  # files of the other list that were checked in time
    num_files: int

    @property
    def num_shared(self) -> int:
        return self.num_named + self.num_linked + self.num_copied

    def __str__(self) -> str:
        """For messages: "3 of 40 videos (1 linked, 2 copied)"."""
        kinds = [f"{self.num_linked} linked"] * bool(self.num_linked)
        kinds += [f"{self.num_copied} copied"] * bool(self.num_copied)
        if self.num_looked_at < self.num_files:
            kinds.append(
                f"only {self.num_looked_at} of {self.num_files} files compared within the time "
                "limit"
            )
        how = f" ({', '.join(kinds)})" if kinds else ""
        return f"{self.num_shared} of {self.num_videos} videos{how}"


def find_shared(one: Manifest, other: Manifest, *, most_seconds: float = 30.0) -> Overlap:
    """How many videos of ``other`` are also in ``one``.

    Compares paths, then the files behind them, then content: both ends of files of equal size.
    Parts count if they overlap; if one is in seconds and the other in frames, they count as
    overlapping. Stats each file once, reads none twice, and takes about ``most_seconds`` in all.
    Missing files are skipped.
    """
    wanted: dict[str, list[int]] = {}
    for index in range(len(other)):
        wanted.setdefault(os.path.normpath(other.file(index)), []).append(index)
    named = {path for path in _paths(one, range(len(one))) if path in wanted}
    has_parts = one.bounds is not None or other.bounds is not None
    same = {path: {path} for path in named if has_parts}  # path in other -> paths in one
    linked: set[str] = set()
    copied: set[str] = set()
    num_looked_at = 0
    until = time.monotonic() + most_seconds
    with ThreadPoolExecutor(_THREADS) as pool:
        files: dict[_File, list[str]] = {}
        sizes: dict[int, list[str]] = {}
        contents: dict[int, dict[bytes, list[str]]] = {}  # size -> hash of both ends -> paths
        for path, file, size in _identities(pool, [path for path in wanted if path not in named]):
            files.setdefault(file, []).append(path)
            sizes.setdefault(size, []).append(path)
        while files and num_looked_at < len(one) and time.monotonic() < until:
            rows = range(num_looked_at, min(num_looked_at + _CHUNK * _THREADS, len(one)))
            paths = [path for path in dict.fromkeys(_paths(one, rows)) if path not in wanted]
            alike: list[tuple[str, int]] = []
            for path, file, size in _identities(pool, paths):
                linked.update(found := files.get(file, ()))
                for of_other in found if has_parts else ():
                    same.setdefault(of_other, set()).add(path)
                alike += [(path, size)] * (size in sizes)
            for size in {size for _, size in alike} - contents.keys():
                contents[size] = {}
                for path, ends in zip(sizes[size], pool.map(_ends, sizes[size]), strict=True):
                    if ends is not None:
                        contents[size].setdefault(ends, []).append(path)
            ends_of = pool.map(_ends, (path for path, _ in alike))
            for (path, size), ends in zip(alike, ends_of, strict=True):
                copied.update(found := [] if ends is None else contents[size].get(ends, []))
                for of_other in found if has_parts else ():
                    same.setdefault(of_other, set()).add(path)
            num_looked_at = rows.stop
        copied -= linked
    if has_parts:
        _keep_overlapping(wanted, same, one, other)
    num_named, num_linked, num_copied = (
        sum(len(wanted[path]) for path in found) for found in (named, linked, copied)
    )
    num_files = len(one) if files else num_looked_at
    return Overlap(num_named, num_linked, num_copied, len(other), num_looked_at, num_files)


def _keep_overlapping(
    wanted: dict[str, list[int]], same: dict[str, set[str]], one: Manifest, other: Manifest
) -> None:
    """Keep the wanted rows of ``other`` that overlap in time with one of ``one``."""
    rows: dict[str, list[int]] = {path: [] for path in set().union(*same.values())}
    for row, path in enumerate(_paths(one, range(len(one)))):
        if path in rows:
            rows[path].append(row)
    for path, found in same.items():
        spans = np.array([_span(one, row) for of_one in found for row in rows[of_one]])
        wanted[path] = [row for row in wanted[path] if _meets(_span(other, row), spans)]


_Span = tuple[float, float, float]


def _span(manifest: Manifest, row: int) -> _Span:
    """Start, end, and 1 for frames or 0 for seconds; NaN for a whole video, which matches both."""
    part = manifest.part(row)
    return (0, np.inf, np.nan) if part is None else (part.start, part.end, float(part.in_frames))


def _meets(span: _Span, spans: npt.NDArray[np.float64]) -> bool:
    start, end, unit = span
    starts, ends, units = spans.T
    return bool(((start < ends) & (starts < end) | (units != unit)).any())


def _paths(manifest: Manifest, rows: range) -> Iterator[str]:
    return (os.path.normpath(manifest.file(row)) for row in rows)


def _identities(pool: ThreadPoolExecutor, paths: list[str]) -> Iterator[_Identity]:
    parts = (paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK))
    return chain.from_iterable(pool.map(_identities_of, parts))


def _identities_of(paths: list[str]) -> list[_Identity]:
    """Identities of the files that exist and are not empty."""
    found = []
    for path in paths:
        try:
            place = locate(path)
        except (OSError, ValueError):
            continue
        if place.size:
            found.append((path, place.bytes_id, place.size))
    return found


def _ends(path: str) -> bytes | None:
    """A hash of a file's first and last bytes, or None if it cannot be read."""
    try:
        with open_bytes(path) as file:
            digest = hashlib.blake2b(file.read(_SAMPLE), digest_size=16)
            file.seek(max(0, file.seek(0, os.SEEK_END) - _SAMPLE))
            digest.update(file.read(_SAMPLE))
            return digest.digest()
    except OSError:
        return None
