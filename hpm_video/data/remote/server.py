"""Remote files through fsspec, and the answers of their servers; for processes with network access.

A server may stall at any time. If too little data arrives for too long, a timer kills the process,
even inside native code.
"""

import asyncio
import datetime
import hashlib
import os
import signal
from dataclasses import dataclass
from typing import Any, Literal

from hpm_video.data.remote.cache import Cache

STALLED = -signal.SIGALRM  # exit code of a process killed by its timer
_ENOUGH = 2**20  # bytes that must arrive within the time limit
_LONGEST_REASON = 300
_GONE = (404, 410)
_LATER = (408, 425, 429)  # HTTP statuses that may be temporary
_NO_ANSWER = (ConnectionError, TimeoutError, asyncio.TimeoutError)
# Fields by which servers identify a version of a file, most reliable first
_VERSION = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "LastModified", "Last-Modified",
            "last_modified", "updated", "mtime", "created")  # fmt: skip

Outcome = Literal["done", "missing", "refused", "failed"]


class Refused(Exception):  # noqa: N818 - the outcome of a file, not a mistake
    """A file that another attempt would not get either."""


class NoRanges(Exception):  # noqa: N818 - the way of a server, not a mistake
    """The server cannot send parts of files."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server."""

    system: Any  # an fsspec file system, and the path in it
    path: str
    size: int | None  # None: unknown
    mtime_ns: int  # derived from the version, equal on every machine; indices detect changes by it
    timeout_s: float | None

    def download(self, to: str) -> int:
        """Fetch the file. Returns its size in bytes."""
        from fsspec.callbacks import Callback  # noqa: PLC0415 - only here is it needed

        class Watch(Callback):
            """Restarts the timer when enough data has arrived."""

            seen = 0

            def call(watch, *_: object, **__: object) -> None:  # noqa: N805
                if watch.value - watch.seen >= _ENOUGH:
                    watch.seen = watch.value
                    restart_timer(self.timeout_s)

        restart_timer(self.timeout_s)
        self.system.get_file(self.path, to, callback=Watch())
        came = os.stat(to).st_size
        if self.size is not None and came != self.size:
            raise OSError(f"{came} of {self.size} bytes arrived")
        return came

    def read(self, start: int, end: int) -> bytes:
        """Fetch a range of bytes within the time limit. Raises NoRanges."""
        restart_timer(self.timeout_s)
        try:
            if "http" in self.system.protocol:  # its `cat_file` accepts a whole file for a range
                options = {"size": self.size, "cache_type": "none", "block_size": 1}
                with self.system.open(self.path, "rb", **options) as file:
                    file.seek(start)
                    data: bytes = file.read(end - start)
            else:
                data = self.system.cat_file(self.path, start=start, end=end)
        except ValueError as error:  # fsspec's error for a server without ranges
            raise NoRanges from error
        if len(data) != end - start:
            raise OSError(f"{len(data)} of {end - start} bytes arrived")
        return data

    def beside(self, ending: str) -> "RemoteFile":
        """The file whose name is this one's plus an ending."""
        return _asked(self.system, self.path + ending, self.timeout_s)


def remote_file(url: str, timeout_s: float | None) -> RemoteFile:
    """Query the server of a URL for its file."""
    from fsspec.core import url_to_fs  # noqa: PLC0415 - only here is it needed

    restart_timer(timeout_s)
    system, path = url_to_fs(url)
    return _asked(system, path, timeout_s)


def _asked(system: Any, path: str, timeout_s: float | None) -> RemoteFile:
    restart_timer(timeout_s)
    facts = system.info(path)
    if facts.get("type") == "directory":
        raise Refused("is a folder: folders of frames must be on this machine")
    version = next((facts[name] for name in _VERSION if facts.get(name)), "")
    return RemoteFile(system, path, facts.get("size"), _seconds(version) * 10**9, timeout_s)


def check_size(num_bytes: int | None, cache: Cache) -> None:
    """Raise Refused if a file is larger than the cache."""
    if num_bytes is not None and num_bytes > cache.most_bytes:
        raise Refused(
            f"has {num_bytes / 1e9:.3g} GB: more than HPM_VIDEO_CACHE_GB "
            f"({cache.most_bytes / 1e9:g}) allows"
        )


def outcome_of(error: BaseException) -> tuple[Outcome, str]:
    """The outcome and reason for an error raised by a server or its client."""
    if isinstance(error, Refused):
        return "refused", str(error)
    cause = error.__cause__
    # fsspec raises FileNotFoundError for any error of a web server, even without an answer
    is_other = type(cause).__module__.startswith("aiohttp") or isinstance(cause, _NO_ANSWER)
    if isinstance(error, FileNotFoundError) and is_other and cause is not None:
        return outcome_of(cause)
    status = getattr(error, "status", None)  # set by aiohttp
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return "missing", ""
    said = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, PermissionError):
        return "refused", f"permission denied: {said}"
    is_final = isinstance(status, int) and 400 <= status < 500 and status not in _LATER
    return "refused" if is_final else "failed", f"{type(error).__name__}: {said}"


def restart_timer(seconds: float | None) -> None:
    """Kill this process after this many seconds, replacing an earlier timer; 0: never."""
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _seconds(version: Any) -> int:
    if isinstance(version, datetime.datetime):
        return int(version.timestamp())
    digest = hashlib.blake2b(str(version).encode(errors="surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "little") // 4  # some file systems store no time after 2038
