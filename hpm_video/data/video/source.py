"""What the path of a video means: a file, or a member of a tar that is not compressed.

``shard.tar/KEY.mp4`` is a member, as if the tar were a folder. It is read in place, by where it
lies in the tar: all that opens or asks about a video does so through here.
"""

import io
import os
import re
import stat
from dataclasses import dataclass
from typing import BinaryIO

from hpm_video.data.video.tar_index import find_index

IN_TAR = re.compile(r"\.tar/", re.IGNORECASE)  # before the name of a member


@dataclass(frozen=True)
class Place:
    """Where the bytes of a video are."""

    file: str
    start: int | None  # in the file, None where it is the video
    size: int
    mtime_ns: int  # when the file was last changed
    mode: int  # of the file
    bytes_id: tuple[int, int, int]  # which all links to the same bytes share

    @property
    def identity(self) -> tuple[int, int]:
        """Size and time of change, which tell a video from a changed one."""
        return self.size, self.mtime_ns


def locate(path: str) -> Place:
    """Where a video is. Raises OSError where there is none, DamagedTarError, or ValueError for a
    path that can be none."""
    try:
        status = os.stat(path)
    except NotADirectoryError:
        tar, name = _split(path)
        status = os.stat(tar)
        start, size = find_index(tar, status).find(name)
        return _place(tar, status, start, size)
    # Of a folder it depends on the file system; its time of change is when files came or left
    return _place(path, status, None, 0 if stat.S_ISDIR(status.st_mode) else status.st_size)


def _place(file: str, status: os.stat_result, start: int | None, size: int) -> Place:
    bytes_id = status.st_dev, status.st_ino, start or 0
    return Place(file, start, size, status.st_mtime_ns, status.st_mode, bytes_id)


def exists(path: str) -> bool:
    """Whether there is a file, a folder, which may be of frames, or such a member of a tar."""
    try:
        mode = locate(path).mode
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    except (OSError, ValueError):
        return False


def open_bytes(path: str) -> BinaryIO:
    """Open the bytes of a video. Raises as `locate` does."""
    place = locate(path)
    # By its number: a file that is opened by its name tells FFmpeg that
    file = io.FileIO(os.open(place.file, os.O_RDONLY | os.O_CLOEXEC))
    if place.start is None:
        return io.BufferedReader(file)
    return io.BufferedReader(_Section(file, place.start, place.size))


def ffmpeg_name(path: str) -> str:
    """The name by which any FFmpeg opens a video. Raises as `locate` does."""
    place = locate(path)
    # By a whole path: no other name is certain to be that of a file
    name = os.path.join(os.getcwd(), place.file)
    if place.start is None:
        return name
    return f"subfile,,start,{place.start},end,{place.start + place.size},,:{name}"


def _split(path: str) -> tuple[str, str]:
    """A tar and the name of a member, of a path through a file. Raises FileNotFoundError."""
    for match in IN_TAR.finditer(path):
        tar, name = path[: match.end() - 1], path[match.end() :]
        if os.path.isfile(tar):
            return tar, name
    raise FileNotFoundError(f"no such file: {path}")


class _Section(io.RawIOBase):
    """Some of the bytes of a file, as a file."""

    def __init__(self, file: io.FileIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._place = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise OSError("a place before the start")
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
