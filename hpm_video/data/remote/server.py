"""Files elsewhere, through fsspec, and what their servers say; for processes with a network.

Whoever sent them may lose one at any time: where too little comes for too long, a timer ends it,
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

STALLED = -signal.SIGALRM  # the exit code of a process that its timer ended
_ENOUGH = 2**20  # bytes that must come in the time limit
_LONGEST_REASON = 300
_GONE = (404, 410)
_LATER = (408, 425, 429)  # of a web server that may answer something else another time
_NO_ANSWER = (ConnectionError, TimeoutError, asyncio.TimeoutError)
# What servers say of a version of a file, in the order of how well it tells one from another
_VERSION = ("ETag", "etag", "md5Hash", "crc32c", "content_md5", "LastModified", "Last-Modified",
            "last_modified", "updated", "mtime", "created")  # fmt: skip

Outcome = Literal["done", "missing", "refused", "failed"]


class Refused(Exception):  # noqa: N818 - the outcome of a file, not a mistake
    """A file that would not come another time either."""


class NoRanges(Exception):  # noqa: N818 - the way of a server, not a mistake
    """A server gives only whole files."""


@dataclass(frozen=True)
class RemoteFile:
    """A file elsewhere."""

    system: Any  # a file system of fsspec, and the path there
    path: str
    size: int | None  # None: its server does not say
    mtime_ns: int  # the same wherever it is fetched: an index tells by it whether it changed
    timeout_s: float | None

    def download(self, to: str) -> int:
        """Fetch it. Returns how many bytes it has."""
        from fsspec.callbacks import Callback  # noqa: PLC0415 - only here is it needed

        class Watch(Callback):
            """Restarts the timer when enough has come."""

            seen = 0

            def call(watch, *_: object, **__: object) -> None:  # noqa: N805
                if watch.value - watch.seen >= _ENOUGH:
                    watch.seen = watch.value
                    restart_timer(self.timeout_s)

        restart_timer(self.timeout_s)
        self.system.get_file(self.path, to, callback=Watch())
        came = os.stat(to).st_size
        if self.size is not None and came != self.size:
            raise OSError(f"{came} bytes came of {self.size}")
        return came

    def read(self, start: int, end: int) -> bytes:
        """Fetch some of its bytes, which must come in the time limit. Raises NoRanges."""
        restart_timer(self.timeout_s)
        try:
            if "http" in self.system.protocol:  # whose `cat_file` takes a whole file for a range
                options = {"size": self.size, "cache_type": "none", "block_size": 1}
                with self.system.open(self.path, "rb", **options) as file:
                    file.seek(start)
                    data: bytes = file.read(end - start)
            else:
                data = self.system.cat_file(self.path, start=start, end=end)
        except ValueError as error:  # so says fsspec
            raise NoRanges from error
        if len(data) != end - start:
            raise OSError(f"{len(data)} bytes came of {end - start}")
        return data

    def beside(self, ending: str) -> "RemoteFile":
        """The file whose name is that of this one and an ending."""
        return _asked(self.system, self.path + ending, self.timeout_s)


def remote_file(url: str, timeout_s: float | None) -> RemoteFile:
    """Ask the server of a URL for its file."""
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
    """Raise Refused for more than the cache may hold."""
    if num_bytes is not None and num_bytes > cache.most_bytes:
        raise Refused(
            f"has {num_bytes / 1e9:.3g} GB: more than HPM_VIDEO_CACHE_GB "
            f"({cache.most_bytes / 1e9:g}) allows"
        )


def outcome_of(error: BaseException) -> tuple[Outcome, str]:
    """What came of a file whose server, or its client, raised an error, and why."""
    if isinstance(error, Refused):
        return "refused", str(error)
    cause = error.__cause__
    # A file is not there, says fsspec, whatever a web server answers, and if it does not answer
    is_other = type(cause).__module__.startswith("aiohttp") or isinstance(cause, _NO_ANSWER)
    if isinstance(error, FileNotFoundError) and is_other and cause is not None:
        return outcome_of(cause)
    status = getattr(error, "status", None)  # of aiohttp
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return "missing", ""
    said = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, PermissionError):
        return "refused", f"permission denied: {said}"
    is_final = isinstance(status, int) and 400 <= status < 500 and status not in _LATER
    return "refused" if is_final else "failed", f"{type(error).__name__}: {said}"


def restart_timer(seconds: float | None) -> None:
    """End this process in so many seconds, in place of an earlier time; 0: never."""
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _seconds(version: Any) -> int:
    if isinstance(version, datetime.datetime):
        return int(version.timestamp())
    digest = hashlib.blake2b(str(version).encode(errors="surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "little") // 4  # some file systems know no time after 2038
