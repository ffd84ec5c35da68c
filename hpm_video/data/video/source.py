"""Resolves the path of a video: a file, or a member of an uncompressed tar.

``shard.tar/KEY.mp4`` is a member, as if the tar were a folder. It is read in place, at its offset
in the tar. All access to videos goes through this module.
"""

import io
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO

from hpm_video.data.video.part import IN_TAR
from hpm_video.data.video.tar_index import find_index


@dataclass(frozen=True)
class Place:
    """Where the bytes of a video are."""

    file: str
    start: int | None  # offset in the file; None: the whole file
    size: int
    mtime_ns: int  # modification time of the file
    mode: int  # of the file
    bytes_id: tuple[int, int, int]  # equal for all links to the same bytes

    @property
    def identity(self) -> tuple[int, int]:
        """Size and modification time, which change with the video."""
        return self.size, self.mtime_ns


def locate(path: str) -> Place:
    """Where a video is.

    Raises OSError if it does not exist, DamagedTarError, or ValueError for an invalid path.
    """
    try:
        status = os.stat(path)
    except NotADirectoryError:
        tar, name = _split(path)
        status = os.stat(tar)
        start, size = find_index(tar, status).find(name)
        return _place(tar, status, start, size)
    # A folder's size depends on the file system; its modification time changes as files come and go
    return _place(path, status, None, 0 if stat.S_ISDIR(status.st_mode) else status.st_size)


def _place(file: str, status: os.stat_result, start: int | None, size: int) -> Place:
    bytes_id = status.st_dev, status.st_ino, start or 0
    return Place(file, start, size, status.st_mtime_ns, status.st_mode, bytes_id)


def exists(path: str) -> bool:
    """Whether a file, a folder (maybe of frames) or such a member of a tar exists."""
    try:
        mode = locate(path).mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    except (OSError, ValueError):
        return False


def open_bytes(path: str) -> BinaryIO:
    """Open the bytes of a video. Raises as `locate` does."""
    place = locate(path)
    # Opened by descriptor, as FFmpeg would read the name of a file opened by path
    file = io.FileIO(os.open(place.file, os.O_RDONLY | os.O_CLOEXEC))
    if place.start is None:
        return io.BufferedReader(file)
    return io.BufferedReader(_Section(file, place.start, place.size))


def ffmpeg_name(path: str) -> str:
    """The name by which every FFmpeg version opens a video. Raises as `locate` does."""
    place = locate(path)
    # An absolute path: other names might not be taken for files
    name = os.path.join(os.getcwd(), place.file)
    if place.start is None:
        return name
    return f"subfile,,start,{place.start},end,{place.start + place.size},,:{name}"


def _split(path: str) -> tuple[str, str]:
    """Split a path through a file into a tar and the name of a member. Raises FileNotFoundError."""
    for match in IN_TAR.finditer(path):
        tar, name = path[: match.end() - 1], path[match.end() :]
        if os.path.isfile(tar):
            return tar, name
    raise FileNotFoundError(f"no such file: {path}")


class _Section(io.RawIOBase):
    """A section of a file, as a file object."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("cannot seek to before the start")
        self._place = base + offset
        return self._place

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        left = max(0, self._size - self._place)
        count = os.preadv(self._file.fileno(), [view[:left]], self._start + self._place)
        self._place += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
