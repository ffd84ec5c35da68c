"""Local copies of files at URLs: a folder of bounded size, shared by all processes of a user.

A file gets its name only once it is complete. The least recently used files are deleted first, but
never one that a process is reading: readers hold a lock. We set the access time at each use.
"""

import fcntl
import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from hpm_video.data.remote.urls import name_of
from hpm_video.runtime.files import own_folder, writing

_SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,8}")
_KEPT = 0.9  # share of the size limit that is kept when files are deleted
_ABANDONED_S = 3600.0  # an incomplete file this old belongs to a killed process
_NUMBERS = {"CACHE_GB": 50.0, "FETCH_PROCESSES": 16, "FETCH_TIMEOUT_S": 60.0}  # defaults


def number(name: str) -> float:
    """The number in the environment variable HPM_VIDEO_<name>, or its default.

    Raises ValueError for any other text.
    """
    text = os.environ.get(f"HPM_VIDEO_{name}", "")
    try:
        value = float(text) if text else _NUMBERS[name]
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise ValueError(f"HPM_VIDEO_{name} ({text}) must be a number above 0")
    return value


class Held:
    """A file in the cache, which is not deleted before this is closed."""

    def __init__(self, path: str, descriptor: int) -> None:
        self.path, self._descriptor, self.is_open = path, descriptor, True

    def close(self) -> None:
        if self.is_open:
            os.close(self._descriptor)
            self.is_open = False

    def __del__(self) -> None:
        self.close()


@dataclass(frozen=True)
class Cache:
    """The cache folder and its size limit in bytes."""

    folder: Path
    most_bytes: int

    def place(self, url: str) -> str:
        """The local path for the file of a URL. It keeps the ending, which readers rely on."""
        digest = hashlib.blake2b(os.fsencode(url), digest_size=16).hexdigest()
        suffix = os.path.splitext(name_of(url))[1]
        ending = suffix if _SUFFIX.fullmatch(suffix) else ""
        return str(self.folder / digest[:2] / f"{digest[2:]}{ending}")

    def hold(self, place: str) -> Held | None:
        """Open and lock the file at a path, and mark it as used; None if there is none."""
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        status = os.fstat(descriptor)
        if not status.st_nlink:  # deleted in the meantime
            os.close(descriptor)
            return None
        os.utime(descriptor, ns=(time.time_ns(), status.st_mtime_ns))
        return Held(place, descriptor)

    @contextmanager
    def new_file(self, place: str) -> Iterator[str]:
        """A temporary file to write, which is moved to ``place`` once it is complete."""
        folder, name = os.path.split(place)
        os.makedirs(folder, exist_ok=True)
        temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}")
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            yield temporary
            os.replace(temporary, place)
        finally:
            with suppress(FileNotFoundError):
                os.unlink(temporary)

    def make_room(self) -> None:
        """Delete the least recently used files, unless another process is doing so."""
        lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._delete_oldest()
        except BlockingIOError:
            pass
        finally:
            os.close(lock)

    def _delete_oldest(self) -> None:
        files: list[tuple[int, int, str]] = []
        total = 0
        for folder in self.folder.glob("??"):
            with os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError):
                        status = entry.stat(follow_symlinks=False)
                        if entry.name.startswith("."):
                            if time.time() - status.st_ctime > _ABANDONED_S:
                                os.unlink(entry.path)
                                continue
                        else:
                            files.append((status.st_atime_ns, status.st_size, entry.path))
                        total += status.st_size
        if total <= self.most_bytes:
            return
        for _, size, path in sorted(files)[:-1]:  # the newest alone may exceed the limit
            if total <= _KEPT * self.most_bytes:
                return
            if _delete_unused(path):
                total -= size


def _delete_unused(path: str) -> bool:
    """Delete a file unless a process holds it; returns whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)


def cache() -> Cache:
    """The cache configured by the environment: HPM_VIDEO_CACHE and HPM_VIDEO_CACHE_GB.

    Raises ValueError if the folder cannot be created, locked or written to, or belongs to another
    user.
    """
    usual = os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "hpm_video", "remote"
    )
    folder = os.path.abspath(os.environ.get("HPM_VIDEO_CACHE") or usual)
    return _cache(folder, int(number("CACHE_GB") * 1e9))


@lru_cache
def _cache(folder: str, most_bytes: int) -> Cache:
    place = Path(folder)
    own_folder(place, mode=0o700)
    with writing(place), open(place / "lock", "a", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return Cache(place, most_bytes)
