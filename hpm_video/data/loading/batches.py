"""Batches of videos, read by processes that may hang or crash without harm.

One thread of this process hands requests, in order, to the next free worker. It takes finished
batches, again in order, out of memory that it shares with the workers:

    requests -> workers -> shared memory (rows of open batches) -> the same rows, as a tensor

So the content of a batch depends neither on the number of workers nor on their speed. Memory is
reused once nothing refers to the tensor. If a caller keeps more batches than the memory holds,
further ones are copied.
"""

import itertools
import mmap
import os
import queue
import signal
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from hpm_video.data.loading.device_copy import Copied, copier_to, page_lock
from hpm_video.data.remote.cache import Held
from hpm_video.data.remote.fetching import Fetched, Fetches, fetched, split_url
from hpm_video.data.samples.clips import Reader, Reading, Request, VideoDataset, read_item
from hpm_video.data.video.frames import VideoReadError, reading
from hpm_video.data.video.limits import READING
from hpm_video.runtime.sandbox import describe
from hpm_video.runtime.workers import (
    ItemTimeout,
    KillableWorker,
    WorkerDied,
    fork_server,
    run_killable,
    wait_for_workers,
)

Value = TypeVar("Value")


class ReadBatch(NamedTuple):
    """A batch on the host, the results of its items and, if a GPU needs it, its copy there."""

    rows: torch.Tensor
    readings: list[Reading]
    copied: Copied | None = None


# Prefix of reasons for which a run does not try a video again: each attempt would cost the whole
# time limit.
GIVEN_UP = "given up: "

_FINISHED_BATCHES = 2  # batches that wait to be taken
# Batches that callers may hold without a copy: those that wait, the current one, the next one and,
# until its copy to a GPU is known to be done, the previous one
_LENT_BATCHES = _FINISHED_BATCHES + 3
_OPEN_ROWS_PER_WORKER = 8  # beyond the oldest open batch, so that slow videos do not block
_QUEUED_PER_WORKER = 2  # one being read and the next one ready


def read_batches(
    dataset: VideoDataset,
    keys: Iterable[Sequence[Any]],
    *,
    num_workers: int,
    timeout_s: float | None,
    device: torch.device | None = None,
    given_up: Mapping[str, str] | None = None,
) -> Iterator[ReadBatch]:
    """Yield a `ReadBatch` per batch of B keys: rows (B, *item shape) uint8, and readings.

    Rows of items that could not be read are zeros. With `num_workers` 0 the calling process reads,
    without protection against hangs and crashes.

    Args:
        dataset: the data set that the keys belong to.
        keys: keys of the items, batch by batch; taken as needed, some batches in advance.
        num_workers: number of reading processes.
        timeout_s: seconds after which a video counts as unreadable; None: never.
        device: where batches are needed. Copies to a GPU start one batch ahead if that batch has
            been read by then.
        given_up: path -> reason of videos not to try, see `GIVEN_UP`.
    """
    copier = copier_to(device)
    if num_workers == 0:
        for batch_keys in keys:
            shape = len(batch_keys), *dataset.reader.shape
            out = torch.empty(shape, dtype=torch.uint8, pin_memory=copier is not None)
            rows = zip(batch_keys, out, strict=True)
            readings = [read_item(dataset.reader, dataset.requests(key), row) for key, row in rows]
            yield ReadBatch(out, readings, None if copier is None else copier.start(out))
        return
    ours, theirs = Pipe(duplex=False)
    finished: queue.SimpleQueue[Any] = queue.SimpleQueue()
    index = torch.cuda.current_device() if copier is not None else None
    dispatcher = _Dispatcher(
        dataset, iter(keys), num_workers, timeout_s, index, dict(given_up or {}), finished, ours
    )
    # A daemon, so that it never keeps the process from exiting
    thread = threading.Thread(target=dispatcher.run, name="batches", daemon=True)
    thread.start()

    def take() -> Any:
        """The next batch, with its copy to the GPU started; None at the end, or an error."""
        found = finished.get()
        if not isinstance(found, tuple):
            return found
        theirs.send_bytes(b"1")  # makes room for another batch
        rows, readings = found
        return ReadBatch(rows, readings, None if copier is None else copier.start(rows))

    ahead: deque[Any] = deque()
    try:
        while (batch := ahead.popleft() if ahead else take()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            if copier is not None and not finished.empty():
                ahead.append(take())
            yield batch
            del batch  # its memory can be reused, unless the caller keeps it
    finally:
        theirs.close()  # tells the thread to stop
        thread.join()


def read_guarded(
    read: Callable[[str], Value], path: str, *, num_workers: int, timeout_s: float | None
) -> Value:
    """Return `read(path)`, called in a separate process unless `num_workers` is 0.

    Raises VideoReadError if `read` raises anything, hangs or crashes.
    """
    with fetched(path) as local:
        if num_workers == 0:
            return _read_safely(read, local)
        ((_, outcome),) = run_killable(
            partial(_read_safely, read), [local], num_workers=1, timeout_s=timeout_s, limits=READING
        )
    if isinstance(outcome, ItemTimeout | WorkerDied):
        raise VideoReadError(path, why_given_up(outcome))
    return outcome


def readers_in_words(num_workers: int) -> str:
    """The limits of the reading processes, for a log."""
    if num_workers == 0:
        return "this process itself, without limits (data.num_workers=0)"
    return describe(READING, is_offline=fork_server().is_offline())


def _read_safely(read: Callable[[str], Value], path: str) -> Value:
    with reading(path):
        return read(path)


@dataclass
class _Batch:
    """A batch with rows still to be read."""

    slot: int
    readings: list[Reading | None]


@dataclass
class _Row:
    """An item being read."""

    batch: _Batch
    place: int
    requests: Iterator[Request]
    request: Request
    bad: list[tuple[int, str]] = field(default_factory=list)
    has_lost_worker: bool = False
    held: Held | None = None  # cached file of a URL
    part: str = ""  # suffix of the part after the URL

    def let_go(self) -> None:
        """Release the cached file."""
        if self.held is not None:
            self.held.close()
        self.held = None


@dataclass
class _Dispatcher:
    """The thread's work; for the settings see `read_batches`."""

    dataset: VideoDataset
    keys: Iterator[Sequence[Any]]
    num_workers: int
    timeout_s: float | None
    cuda_device: int | None  # pin memory for this device
    given_up: dict[str, str]
    finished: queue.SimpleQueue[Any]  # batches, then None or an error
    taken: Connection  # receives a byte for each batch taken
    num_finished: int = 0
    lent: int = 0  # batches whose memory callers hold
    returned: deque[int] = field(default_factory=deque)  # slots they have released
    open: deque[_Batch] = field(default_factory=deque)
    waiting: deque[_Row] = field(default_factory=deque)  # rows whose files are local
    fetches: Fetches[_Row] | None = None  # for URLs; created for the first one

    def run(self) -> None:
        """Fill the queue until the keys run out (then None) or nobody takes batches any more."""
        try:
            # Threads start on device 0, which may belong to another rank
            if self.cuda_device is not None:
                torch.cuda.set_device(self.cuda_device)
            if (first := next(self.keys, None)) is not None:
                self.keys = itertools.chain([first], self.keys)
                self._run(len(first))
            self.finished.put(None)
        except BaseException as error:  # noqa: BLE001 - raised again by who takes the batches
            self.finished.put(error)

    def _run(self, size: int) -> None:
        """Read batches of at most ``size`` items."""
        shape = self.dataset.reader.shape
        self.most_open = 2 + _OPEN_ROWS_PER_WORKER * self.num_workers // size
        num_slots = self.most_open + _LENT_BATCHES
        with _shared_file(num_slots * size * torch.Size(shape).numel()) as file:
            memory = np.frombuffer(mmap.mmap(file.fileno(), 0), dtype=np.uint8)
            self.slots = memory.reshape(num_slots, size, *shape)
            self.free = list(range(num_slots))
            self.lends = self.cuda_device is None or page_lock(memory)
            function = _RowReader(self.dataset.reader)
            self.workers = {
                KillableWorker(function, files=[file.fileno()], limits=READING): deque[_Row]()
                for _ in range(self.num_workers)
            }
            try:
                while self._is_wanted():
                    self._open_more()
                    self._fetch()
                    self._submit()
                    self._finish()
                    if not self.open:
                        return
                    fetching = self.fetches.workers if self.fetches else []
                    for worker in wait_for_workers((*self.workers, *fetching), self.taken):
                        if worker in self.workers:
                            self._take(worker)
                        elif self.fetches:
                            self._have(self.fetches.take(worker))
            finally:
                for worker in self.workers:
                    worker.kill()
                if self.fetches:
                    self.fetches.close()

    def _is_wanted(self) -> bool:
        """Count the batches that were taken; returns whether the caller still wants more."""
        try:
            while self.taken.poll():
                self.taken.recv_bytes()
                self.num_finished -= 1
        except EOFError:
            return False
        return True

    def _open_more(self) -> None:
        # There are always enough slots that are not lent
        while len(self.open) < self.most_open and (keys := next(self.keys, None)) is not None:
            assert len(keys) <= self.slots.shape[1], "batches must not grow"
            batch = _Batch(self.free.pop(), [None] * len(keys))
            self.open.append(batch)
            for place, key in enumerate(keys):
                requests = self.dataset.requests(key)
                self._ask(_Row(batch, place, requests, next(requests)))

    def _ask(self, row: _Row, *, first: bool = False) -> None:
        """Queue a row for a worker, or its file for fetching; ``first``: at the head."""
        path = row.request.path
        if path in self.given_up or (split := split_url(path)) is None:
            (self.waiting.appendleft if first else self.waiting.append)(row)
            return
        url, row.part = split
        if self.fetches is None:
            self.fetches = Fetches()
        self.fetches.add(row, url, first=first)
        self._fetch()

    def _fetch(self) -> None:
        while self.fetches and (done := self.fetches.start()):
            self._have(done)

    def _have(self, done: Iterable[Fetched[_Row]]) -> None:
        """Continue with rows whose files were fetched or cannot be fetched."""
        for found in done:
            row, row.held = found.item, found.held
            if row.held is None:
                self._replace(row, found.reason)
            else:
                (self.waiting.appendleft if row.bad else self.waiting.append)(row)

    def _submit(self) -> None:
        # Every worker gets one row before any worker gets a second
        for depth in range(_QUEUED_PER_WORKER):
            for worker, rows in self.workers.items():
                if len(rows) == depth and (row := self._next_row()) is not None:
                    rows.append(row)
                    place = row.batch.slot * self.slots.shape[1] + row.place
                    request = row.request
                    if row.held is not None:
                        request = replace(request, path=row.held.path + row.part)
                    worker.submit((request, place), self.timeout_s)

    def _next_row(self) -> _Row | None:
        """Take the oldest waiting row, skipping videos that have been given up."""
        while self.waiting:
            row = self.waiting.popleft()
            if row.request.path not in self.given_up:
                return row
            self._replace(row, self.given_up[row.request.path])
        return None

    def _take(self, worker: KillableWorker) -> None:
        row = self.workers[worker].popleft()
        note = None
        try:
            reason, note = worker.result()
        except (ItemTimeout, WorkerDied) as error:
            if isinstance(error, WorkerDied) and not row.has_lost_worker:
                row.has_lost_worker = True  # try once more: the video may not be the cause
                self.waiting.appendleft(row)
                return
            reason = self.given_up[row.request.path] = why_given_up(error)
        if reason is None:
            row.batch.readings[row.place] = Reading(row.request.index, tuple(row.bad), note)
            row.let_go()
        else:
            self._replace(row, reason)

    def _replace(self, row: _Row, reason: str) -> None:
        """Continue with the next request of a row whose video is unreadable."""
        row.let_go()
        row.bad.append((row.request.index, reason))
        request = next(row.requests, None)
        if request is None:
            row.batch.readings[row.place] = Reading(None, tuple(row.bad))
        else:
            row.request, row.has_lost_worker = request, False
            self._ask(row, first=True)  # before rows of later batches

    def _finish(self) -> None:
        """Hand over the oldest batches that are complete, as long as there is room."""
        while self.open and self.num_finished < _FINISHED_BATCHES:
            batch = self.open[0]
            readings = [came for came in batch.readings if came is not None]
            if len(readings) < len(batch.readings):
                return
            self.open.popleft()
            out = self._rows_of(batch)
            for row, came in zip(out, readings, strict=True):
                if came.index is None:
                    row[:] = 0
            self.finished.put((out, readings))
            self.num_finished += 1
            self._open_more()
            self._fetch()
            self._submit()

    def _rows_of(self, batch: _Batch) -> torch.Tensor:
        """The rows of a complete batch: its memory itself, or a copy if too much is lent."""
        while self.returned:
            self.free.append(self.returned.popleft())
            self.lent -= 1
        rows = self.slots[batch.slot, : len(batch.readings)]
        if self.lends and self.lent < _LENT_BATCHES:
            self.lent += 1
            rows = rows[:]  # a new array object, finalized after the last tensor that refers to it
            end = weakref.finalize(rows, self.returned.append, batch.slot)
            end.atexit = False
            return torch.from_numpy(rows)
        pin_memory = self.cuda_device is not None
        out = torch.empty(rows.shape, dtype=torch.uint8, pin_memory=pin_memory)
        # Copy with NumPy: PyTorch would start a thread pool for this thread alone
        out.numpy()[:] = rows
        self.free.append(batch.slot)
        return out


def why_given_up(error: ItemTimeout | WorkerDied) -> str:
    """The reason for a video whose reader timed out or died."""
    if isinstance(error, ItemTimeout):
        reason = f"reading took longer than data.decode_timeout_s ({error.timeout_s:g})"
    elif error.exitcode == -signal.SIGKILL:
        reason = "its reader was killed (SIGKILL), probably out of memory"
    elif error.exitcode is not None and error.exitcode < 0:
        reason = f"its reader crashed ({signal.Signals(-error.exitcode).name})"
    else:
        reason = f"its reader ended (exit code {error.exitcode})"
    return GIVEN_UP + reason


class _RowReader:
    """The workers' function: reads a video into a row of the shared memory."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.rows: torch.Tensor | None = None

    def __call__(self, item: tuple[Request, int], file: int) -> tuple[str | None, str | None]:
        """Return why the video is unreadable (None if it is not), and `Video.note`."""
        if self.rows is None:
            torch.set_num_threads(1)
            self.rows = _rows_of(file, self.reader.shape)
        request, place = item
        try:
            with reading(request.path):
                return None, self.reader.read(request, self.rows[place])
        except VideoReadError as error:
            return error.reason, None


def _shared_file(size: int) -> Any:
    """An anonymous file in memory, freed when the last process closes it.

    It does not count towards /dev/shm, which in containers is often too small for a batch.
    """
    if hasattr(os, "memfd_create"):
        file = os.fdopen(os.memfd_create("hpm-video batches"), "r+b")
    else:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.truncate(size)
    return file


def _rows_of(file: int, shape: Sequence[int]) -> torch.Tensor:
    """The memory of a file as rows (number of rows, *shape), uint8."""
    return torch.frombuffer(mmap.mmap(file, 0), dtype=torch.uint8).view(-1, *shape)
