"""Processes that can be killed while they work: for native code that may hang or crash.

No signal handler and no thread ends native code that loops while it holds the interpreter's lock;
only SIGKILL does. So such code runs in a process of its own, which costs a run nothing to lose:

    this process -- nursery -- worker
                           \\- worker

See `nursery` for how workers start and end; nothing is left behind.
"""

from __future__ import annotations

import contextlib
import pickle
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from hpm_video.runtime.nursery import Nursery, this_nursery

Item = TypeVar("Item")
Value = TypeVar("Value")

_WAIT_S = 1.0  # at a time: what takes a second longer means that this process was stopped


class ItemTimeout(Exception):  # noqa: N818 - it is the outcome of an item, not a mistake
    """An item took longer than it may; its process was killed.

    Attributes:
        timeout_s: how long it was given.
    """

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no result within {self.timeout_s:g} s"


class WorkerDied(Exception):  # noqa: N818 - it is the outcome of an item, not a mistake
    """The process ended while it worked on an item.

    Attributes:
        exitcode: its exit code, -N for signal N, None where it is not known.
    """

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(exitcode)
        self.exitcode = exitcode

    def __str__(self) -> str:
        if self.exitcode is None:
            return "its process ended"
        if self.exitcode < 0:
            return f"its process was ended by {signal.Signals(-self.exitcode).name}"
        return f"its process ended with exit code {self.exitcode}"


class KillableWorker:
    """A process that runs `function(item, *files)` on one item after the other.

    Results come in the order of the items. A process that hangs or dies is replaced, and goes on
    with the items that were waiting behind the culprit. Used from one thread at a time.

    Args:
        function: anything that can be pickled, so nothing of a script that is run itself. The
            nursery imports what it needs.
        files: file descriptors to hand over, as further arguments of the function (where they may
            have other numbers).
    """

    def __init__(self, function: Callable[..., Any], *, files: Sequence[int] = ()) -> None:
        self._function = pickle.dumps(function)
        self._files = tuple(files)
        self._items: deque[tuple[Any, float | None]] = deque()  # with their time limits
        self._nursery: Nursery | None = None  # that of the process
        self._connection: Connection | None = None
        self._pid: int | None = None
        self.deadline: float | None = None  # on time.monotonic's clock, None: no limit

    def __len__(self) -> int:
        """The number of items whose result has not been taken."""
        return len(self._items)

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one now."""
        return self._pid

    def fileno(self) -> int:
        """A descriptor that can be read when there is a result, or the process has died."""
        assert self._connection is not None, "no item was submitted"
        return self._connection.fileno()

    def submit(self, item: Any, timeout_s: float | None = None) -> None:
        """Hand over an item, to be worked on for timeout_s seconds at most (None: no limit)."""
        self._items.append((item, timeout_s))
        if self._connection is None:
            self._start()
        else:
            self._send(item)
        if len(self._items) == 1:
            self._restart_clock()

    def is_ready(self) -> bool:
        """Whether `result` returns or raises at once."""
        assert self._connection is not None and self._items
        is_late = self.deadline is not None and time.monotonic() >= self.deadline
        return is_late or self._connection.poll()

    def result(self) -> Any:
        """Wait for the oldest item's result, and return it.

        Raises:
            ItemTimeout: it took longer than it may.
            WorkerDied: the process crashed, exited or was killed.
            Exception: whatever the function raised.
        """
        assert self._connection is not None and self._items
        while not self.is_ready():
            wait_for_workers([self])
        timeout_s = self._items[0][1]
        error: Exception
        if self._connection.poll():
            try:
                reply = self._connection.recv_bytes()
            except (EOFError, OSError):  # the process has ended, perhaps in the middle of a reply
                error = WorkerDied(self._end())
            else:
                self._items.popleft()
                self._restart_clock()
                is_value, value = pickle.loads(reply)
                if is_value:
                    return value
                raise value
        else:
            assert timeout_s is not None
            self._end()
            error = ItemTimeout(timeout_s)
        self._items.popleft()
        if self._items:
            self._start()
        self._restart_clock()
        raise error

    def kill(self) -> None:
        """End the process and forget its items; a further `submit` starts a new one."""
        self._end()
        self._items.clear()
        self.deadline = None

    def _start(self) -> None:
        self._nursery = this_nursery()
        self._connection, self._pid = self._nursery.start(self._function, self._files)
        for item, _ in self._items:
            self._send(item)

    def _send(self, item: Any) -> None:
        assert self._connection is not None
        message = pickle.dumps(item)
        with contextlib.suppress(ConnectionError):  # it has died: `result` finds out
            self._connection.send_bytes(message)

    def _end(self) -> int | None:
        """Kill the process and return its exit code, if it is known."""
        exitcode = None
        if self._nursery is not None and self._connection is not None and self._pid is not None:
            exitcode = self._nursery.end(self._pid)
            self._connection.close()
        self._nursery = self._connection = self._pid = None
        return exitcode

    def _restart_clock(self) -> None:
        timeout_s = self._items[0][1] if self._items else None
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s


def wait_for_workers(
    workers: Iterable[KillableWorker], *others: Connection
) -> list[KillableWorker]:
    """Wait until some of the workers are ready, and return these; idle ones are left out.

    Also returns, perhaps with nothing, when one of the other connections can be read, and after a
    second. Where this process was stopped meanwhile, its workers were as well: that time counts
    for none of their limits.
    """
    busy = [worker for worker in workers if len(worker)]
    assert busy or others
    start = time.monotonic()
    deadline = min((w.deadline for w in busy if w.deadline is not None), default=None)
    timeout_s = None if deadline is None else min(max(deadline - start, 0), _WAIT_S)
    wait([*(worker.fileno() for worker in busy), *others], timeout_s)
    waited_s = time.monotonic() - start
    if timeout_s is not None and waited_s - timeout_s > 1:  # the scheduler's own delays: far below
        for worker in busy:
            if worker.deadline is not None:
                worker.deadline += waited_s
    return [worker for worker in busy if worker.is_ready()]


def run_killable(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    num_workers: int,
    timeout_s: float | None,
) -> Generator[tuple[Item, Value | ItemTimeout | WorkerDied]]:
    """Yield every item with its result as they come, in any order, from num_workers processes.

    An item that takes longer than timeout_s seconds (None: no limit) comes with an `ItemTimeout`.
    One whose process died is tried once more, as that may have had nothing to do with it, before
    it comes with a `WorkerDied`. What the function raises is raised here.

    Args:
        function: see `KillableWorker`.
        items: taken as they are needed, a few in advance.
        num_workers: at least 1.
        timeout_s: in seconds, above 0.
    """
    assert num_workers > 0
    waiting = ((item, False) for item in items)  # and whether its process has died before
    workers = [KillableWorker(function) for _ in range(num_workers)]
    under_way: list[tuple[Item, bool] | None] = [None] * num_workers
    again: list[tuple[Item, bool]] = []
    try:
        while True:
            for place, worker in enumerate(workers):
                if under_way[place] is None:
                    entry = again.pop() if again else next(waiting, None)
                    under_way[place] = entry
                    if entry is not None:
                        worker.submit(entry[0], timeout_s)
            if not any(len(worker) for worker in workers):
                return
            for worker in wait_for_workers(workers):
                place = workers.index(worker)
                entry = under_way[place]
                assert entry is not None
                under_way[place] = None
                item, has_died = entry
                try:
                    outcome = worker.result()
                except ItemTimeout as error:
                    outcome = error
                except WorkerDied as error:
                    if not has_died:
                        again.append((item, True))
                        continue
                    outcome = error
                yield item, outcome
    finally:
        for worker in workers:
            worker.kill()
