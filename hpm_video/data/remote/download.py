"""The job of processes with network access: fetch files and videos in tars into the cache."""

import os
import time
from dataclasses import dataclass

from hpm_video.data.remote.cache import Cache
from hpm_video.data.remote.server import Outcome, check_size, outcome_of, remote_file, restart_timer
from hpm_video.data.remote.tars import fetch_from_tar
from hpm_video.data.remote.urls import split_tar


@dataclass(frozen=True)
class Job:
    """A file to fetch."""

    url: str
    scheme: str  # of the URL
    kind: type  # class of the fsspec file system
    place: str  # path to write
    cache: Cache
    timeout_s: float | None  # per MiB; None: no timer
    pause_s: float  # pause before the attempt
    makes_room: bool  # whether to enforce the size limit of the cache afterwards


def fetch(kind: type, job: Job) -> tuple[Outcome, str, int]:
    """Fetch a file. Returns the outcome, why it failed, and the bytes added to the cache.

    The outcome "failed" is worth another attempt. ``kind``: class of the file system, so that its
    module is imported before processes are forked.
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

    register_implementation(job.scheme, job.kind, clobber=True)  # may be a user's own class
    tar, name = split_tar(job.url) or (job.url, None)
    file = remote_file(tar, job.timeout_s)
    if name is None:
        check_size(file.size, job.cache)
        came = file.download(temporary)
    else:
        came = fetch_from_tar(file, tar, name, cache=job.cache, to=temporary)
    os.utime(temporary, ns=(time.time_ns(), file.mtime_ns))
    return came
