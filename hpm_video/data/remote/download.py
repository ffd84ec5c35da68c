"""What processes with a network do: bring files of URLs, or videos in tars, into the cache."""

import os
import time
from dataclasses import dataclass

from hpm_video.data.remote.cache import Cache
from hpm_video.data.remote.server import Outcome, check_size, outcome_of, remote_file, restart_timer
from hpm_video.data.remote.tars import fetch_from_tar
from hpm_video.data.remote.urls import split_tar


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


def fetch(kind: type, job: Job) -> tuple[Outcome, str, int]:
    """Fetch a file. Returns what came of it, why it did not come, and how much was added to the
    cache; what failed may come another time.

    ``kind``: of file system, so that its module is there before processes are forked.
    """
    time.sleep(job.pause_s)
    try:
        with job.cache.new_file(job.place) as temporary:
            size = _fetch(job, temporary)
        if job.makes_room:
            job.cache.make_room()
    except Exception as error:  # noqa: BLE001 - each library for a kind of server has its own
        return *outcome_of(error), 0
    finally:
        if job.timeout_s is not None:
            restart_timer(0)
    return "done", "", size


def _fetch(job: Job, temporary: str) -> int:
    from fsspec import register_implementation  # noqa: PLC0415 - only here is it needed

    register_implementation(job.scheme, job.kind, clobber=True)  # perhaps a user's own
    tar, name = split_tar(job.url) or (job.url, None)
    file = remote_file(tar, job.timeout_s)
    if name is None:
        check_size(file.size, job.cache)
        came = file.download(temporary)
    else:
        came = fetch_from_tar(file, tar, name, cache=job.cache, to=temporary)
    os.utime(temporary, ns=(time.time_ns(), file.mtime_ns))
    return came
