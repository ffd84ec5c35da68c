"""Fetches videos at URLs into the cache, in processes that may stall without harm.

Decoding processes have no network and cannot write. So a video is fetched first, and they get the
path of its file in the cache. All messages and records name the URL.
"""

import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Generic, TypeVar

from hpm_video.data.remote.cache import Cache, Held, cache, number
from hpm_video.data.remote.download import Job, fetch
from hpm_video.data.remote.server import STALLED, Outcome
from hpm_video.data.remote.urls import is_url, system_of
from hpm_video.data.video.frames import NO_SUCH_FILE, VideoReadError
from hpm_video.data.video.part import split_part
from hpm_video.runtime.files import printable
from hpm_video.runtime.workers import KillableWorker, WorkerDied, wait_for_workers

Item = TypeVar("Item")

NOT_FETCHED = "cannot be fetched"  # prefix of reasons that may be temporary
_ATTEMPTS = 4
_PAUSE_S = 0.5  # before the second attempt; doubles for each further one
_MOST_HELD = 256  # files held at once, each with an open descriptor
_ROOM_SHARE = 0.01  # of the cache's size: after so many new bytes, its limit is enforced
_new_bytes: dict[Cache, float] = {}  # bytes fetched by this process since then


@dataclass
class _Fetch(Generic[Item]):
    """A file being fetched."""

    job: Job
    items: list[Item] = field(default_factory=list)  # items that wait for it
    attempt: int = 1


@dataclass(frozen=True)
class Fetched(Generic[Item]):
    """The result for an item: its cached file, to be closed after use, or why there is none."""

    item: Item
    held: Held | None
    reason: str = ""


class Fetches(Generic[Item]):
    """The files being fetched, for a loop that also waits for other workers.

    `add` items, `start` as many as possible, wait for `workers`, `take` their results, `close`.
    ``own``: a cache instead of the user's. Raises ValueError for an invalid environment variable,
    see `cache`.
    """

    def __init__(self, own: Cache | None = None) -> None:
        self._cache = own or cache()
        self._most = int(max(1, number("FETCH_PROCESSES")))
        self._timeout_s = number("FETCH_TIMEOUT_S")
        self._queue: deque[tuple[Item, str]] = deque()
        self._again: deque[_Fetch[Item]] = deque()
        self._idle: list[KillableWorker] = []
        self._busy: dict[KillableWorker, _Fetch[Item]] = {}
        self._held: list[Held] = []

    def add(self, item: Item, url: str, *, first: bool = False) -> None:
        """Queue the file of a URL for an item; ``first``: at the head of the queue."""
        (self._queue.appendleft if first else self._queue.append)((item, url))

    @property
    def workers(self) -> list[KillableWorker]:
        """The processes that are fetching."""
        return list(self._busy)

    @property
    def has_room(self) -> bool:
        """Whether another file could be fetched now."""
        return len(self._queue) + len(self._busy) < self._most

    def start(self) -> list[Fetched[Item]]:
        """Give work to idle processes. Returns cached files and errors that are known at once."""
        done: list[Fetched[Item]] = []
        self._held = [held for held in self._held if held.is_open]
        while len(self._busy) < self._most and len(self._held) + len(self._busy) < _MOST_HELD:
            if self._again:
                done += self._submit(self._again.popleft())
            elif self._queue:
                done += self._begin(*self._queue.popleft())
            else:
                break
        return done

    def take(self, worker: KillableWorker) -> list[Fetched[Item]]:
        """The results of a process that is ready; empty if the fetch is tried again."""
        found = self._busy.pop(worker)
        self._idle.append(worker)
        try:
            return self._came(found, *worker.result())
        except WorkerDied as error:
            reason = str(error)
            if error.exitcode == STALLED:
                reason = f"no MiB arrived within HPM_VIDEO_FETCH_TIMEOUT_S ({self._timeout_s:g})"
            return self._came(found, "failed", reason, 0)

    def close(self) -> None:
        for worker in (*self._idle, *self._busy):
            worker.kill()

    def _begin(self, item: Item, url: str) -> list[Fetched[Item]]:
        place = self._cache.place(url)
        for found in (*self._busy.values(), *self._again):
            if found.job.place == place:  # e.g. another part of the same video
                found.items.append(item)
                return []
        # A tar may have changed, so its index is always checked with the server
        if not url.endswith("/") and (held := self._hold(place)) is not None:
            return [Fetched(item, held)]
        try:
            scheme, kind = system_of(url)
        except ValueError as error:
            return [Fetched(item, None, str(error))]
        job = Job(url, scheme, kind, place, self._cache, self._timeout_s, 0, makes_room=False)
        return self._submit(_Fetch(job, [item]))

    def _submit(self, found: _Fetch[Item]) -> list[Fetched[Item]]:
        pause_s = _PAUSE_S * 2 ** (found.attempt - 2) if found.attempt > 1 else 0
        came = _new_bytes.setdefault(self._cache, math.inf)
        if makes_room := came > _ROOM_SHARE * self._cache.most_bytes:
            _new_bytes[self._cache] = 0
        job = replace(found.job, pause_s=pause_s, makes_room=makes_room)
        if job.scheme == "memory":  # in-memory files exist in this process only
            return self._came(found, *fetch(job.kind, replace(job, timeout_s=None)))
        worker = (
            self._idle.pop()
            if self._idle
            else KillableWorker(partial(fetch, job.kind), has_network=True)
        )
        self._busy[worker] = found
        worker.submit(job)
        return []

    def _came(
        self, found: _Fetch[Item], outcome: Outcome, reason: str, size: int
    ) -> list[Fetched[Item]]:
        _new_bytes[self._cache] += size
        if outcome == "done":
            reason = "was deleted from the cache at once: raise HPM_VIDEO_CACHE_GB"
            return [Fetched(item, self._hold(found.job.place), reason) for item in found.items]
        if outcome == "failed" and found.attempt < _ATTEMPTS:
            url = found.job.url.removesuffix("/")
            text = f"{url}: attempt {found.attempt} of {_ATTEMPTS} failed: {reason}"
            sys.stderr.write(f"{printable(text)}\n")
            found.attempt += 1
            self._again.append(found)
            return []
        if outcome == "missing":
            reason = NO_SUCH_FILE
        elif outcome == "failed":
            reason = f"{NOT_FETCHED} in {_ATTEMPTS} attempts: {reason}"
        return [Fetched(item, None, reason) for item in found.items]

    def _hold(self, place: str) -> Held | None:
        if (held := self._cache.hold(place)) is not None:
            self._held.append(held)
        return held


def split_url(path: str) -> tuple[str, str] | None:
    """The URL of a video or part, and the part's suffix; None if the path is not a URL."""
    if not is_url(path):
        return None
    try:
        url, part = split_part(path)
    except ValueError:  # invalid part, which its reader will report
        return None
    return url, str(part or "")


def fetch_each(
    items: Iterable[Item], url_of: Callable[[Item], str], *, own: Cache | None = None
) -> Iterator[Fetched[Item]]:
    """Yield the result for every item, in order of completion.

    Takes items as needed, a few in advance. ``own``: see `Fetches`.
    """
    waiting, fetches = iter(items), Fetches[Item](own)
    try:
        while True:
            while fetches.has_room and (item := next(waiting, None)) is not None:
                fetches.add(item, url_of(item))
            done = fetches.start()
            if not done:
                if not fetches.workers:
                    assert fetches.has_room, "too many files are held"
                    return
                for worker in wait_for_workers(fetches.workers):
                    done += fetches.take(worker)
            yield from done
    finally:
        fetches.close()


@contextmanager
def fetched(path: str) -> Iterator[str]:
    """The local path of a video or part: itself, or in the cache, locked inside the context.

    Raises VideoReadError, naming ``path``, if it cannot be fetched; such errors raised inside the
    context are renamed to ``path`` too.
    """
    if (split := split_url(path)) is None:
        yield path
        return
    url, part = split
    (found,) = fetch_each([url], str)
    if found.held is None:
        raise VideoReadError(path, found.reason)
    local = found.held.path + part
    try:
        yield local
    except VideoReadError as error:
        if error.path not in (local, found.held.path):
            raise
        raise VideoReadError(path, error.reason) from error
    finally:
        found.held.close()
