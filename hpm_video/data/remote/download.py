"""What processes with a network do: bring the file of a URL into the cache.

Whoever sent them may lose one at any time: where too little comes for too long, a timer ends it,
even inside native code.
"""

import asyncio
import datetime
import hashlib
import os
import signal
import time
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


class _Refused(Exception):  # noqa: N818 - the outcome of a file, not a mistake
    """A file that would not come another time either."""


@dataclass(frozen=True)
class Job:
    """What to fetch."""

    url: str
    scheme: str  # of the URL
    kind: type  # of file system, of fsspec
    place: str  # where it goes
    cache: Cache
    timeout_s: float | None  # for each MiB; None: no timer
    pause_s: float  # before it
    makes_room: bool  # whether to delete what is too much afterwards


Outcome = Literal["done", "missing", "refused", "failed"]


def fetch(kind: type, job: Job) -> tuple[Outcome, str, int]:
    """Fetch a file. Returns what came of it, why it did not come, and its size; what failed may
    come another time.

    ``kind``: of file system, so that its module is there before processes are forked.
    """
    time.sleep(job.pause_s)
    try:
        with job.cache.new_file(job.place) as temporary:
            _restart_timer(job.timeout_s)
            size = _fetch(job, temporary)
        if job.makes_room:
            job.cache.make_room()
    except _Refused as error:
        return "refused", str(error), 0
    except Exception as error:  # noqa: BLE001 - each library for a kind of server has its own
        return _outcome(error)
    finally:
        if job.timeout_s is not None:
            _restart_timer(0)
    return "done", "", size


def _outcome(error: BaseException) -> tuple[Outcome, str, int]:
    cause = error.__cause__
    # A file is not there, says fsspec, whatever a web server answers, and if it does not answer
    is_other = type(cause).__module__.startswith("aiohttp") or isinstance(cause, _NO_ANSWER)
    if isinstance(error, FileNotFoundError) and is_other and cause is not None:
        return _outcome(cause)
    status = getattr(error, "status", None)  # of aiohttp
    if isinstance(error, FileNotFoundError) or status in _GONE:
        return "missing", "", 0
    said = " ".join(str(error).split())[:_LONGEST_REASON]
    if isinstance(error, PermissionError):
        return "refused", f"permission denied: {said}", 0
    is_final = isinstance(status, int) and 400 <= status < 500 and status not in _LATER
    return "refused" if is_final else "failed", f"{type(error).__name__}: {said}", 0


def _fetch(job: Job, temporary: str) -> int:
    from fsspec import register_implementation  # noqa: PLC0415 - only here is it needed
    from fsspec.callbacks import Callback  # noqa: PLC0415
    from fsspec.core import url_to_fs  # noqa: PLC0415

    class Watch(Callback):
        """Restarts the timer when enough has come."""

        seen = 0

        def call(self, *_: object, **__: object) -> None:
            if self.value - self.seen >= _ENOUGH:
                self.seen = self.value
                _restart_timer(job.timeout_s)

    register_implementation(job.scheme, job.kind, clobber=True)  # perhaps a user's own
    system, path = url_to_fs(job.url)
    facts = system.info(path)
    if facts.get("type") == "directory":
        raise _Refused("is a folder: folders of frames must be on this machine")
    size = facts.get("size")
    if size is not None and size > job.cache.most_bytes:
        raise _Refused(
            f"has {size / 1e9:.3g} GB: more than HPM_VIDEO_CACHE_GB "
            f"({job.cache.most_bytes / 1e9:g}) allows"
        )
    system.get_file(path, temporary, callback=Watch())
    came = os.stat(temporary).st_size
    if size is not None and came != size:
        raise OSError(f"{came} bytes came of {size}")
    # A time that is the same wherever the file is fetched: an index tells by it whether it changed
    changed = _seconds(next((facts[name] for name in _VERSION if facts.get(name)), ""))
    os.utime(temporary, ns=(time.time_ns(), changed * 10**9))
    return came


def _seconds(version: Any) -> int:
    if isinstance(version, datetime.datetime):
        return int(version.timestamp())
    digest = hashlib.blake2b(str(version).encode(errors="surrogateescape"), digest_size=4).digest()
    return int.from_bytes(digest, "little") // 4  # some file systems know no time after 2038


def _restart_timer(seconds: float | None) -> None:
    if seconds is not None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
