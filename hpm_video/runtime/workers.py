"""Killable worker processes for native code that may hang or crash.

Neither a signal handler nor a thread can stop native code that loops while holding the GIL; only
SIGKILL can. So such code runs in separate processes, which a run can lose without harm:

    this process -- fork server -- worker
                               \\- worker

The fork server is a new process (not forked: this one may have threads and CUDA). It imports what
its workers need and forks them in milliseconds, so workers share the memory of imports. It ends its
workers when this process ends in any way, and the kernel ends them with the server: nothing is left
behind. Server and workers have no network, if the kernel supports that. A second server, for
workers that fetch files, has one.
"""

import atexit
import contextlib
import gc
import math
import os
import pickle
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from hpm_video.runtime.replies import read_reply, write_reply
from hpm_video.runtime.sandbox import Limits, confine, leave_network
from hpm_video.runtime.screen import Relay
from hpm_video.runtime.signals import end_with

Item = TypeVar("Item")
Value = TypeVar("Value")

_WAIT_S = 1.0  # per poll; one second more means that this process was suspended
# Signals that a terminal or SLURM sends to all processes of a job. Workers ignore them: the parent
# decides, and may still want results.
_LEFT_TO_THE_TOP = (
    signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_KILL_WAIT_S = 1.0  # a process inside the kernel, as on a dead network drive, dies later
_ORPHAN_CHECK_S = 1.0


class ItemTimeout(Exception):  # noqa: N818 - an outcome, not an error
    """An item took longer than ``timeout_s``; its process was killed."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return f"no result within {self.timeout_s:g} s"


class WorkerDied(Exception):  # noqa: N818 - an outcome, not an error
    """The process ended during an item. ``exitcode``: -N for signal N, None if unknown."""

    def __init__(self, exitcode: int | None) -> None:
        super().__init__(exitcode)
        self.exitcode = exitcode

    def __str__(self) -> str:
        if self.exitcode is None:
            return "its process ended"
        if self.exitcode < 0:
            return f"its process was killed by {signal.Signals(-self.exitcode).name}"
        return f"its process ended with exit code {self.exitcode}"


class KillableWorker:
    """A process that runs `function(item, *files)` on one item after another.

    Results come in order of the items. A process that hangs or dies is replaced, and continues with
    the items after the culprit. Use it from one thread at a time. Results are parsed as data (see
    `replies`), so code that a malicious file runs in the process cannot escape through them.

    Args:
        function: picklable, so not from the script that is run as main. The fork server imports
            what it needs.
        files: file descriptors, passed as further arguments (with other numbers).
        limits: restrictions of the process; None: none but the missing network.
        has_network: whether it has network access.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        files: Sequence[int] = (),
        limits: Limits | None = None,
        has_network: bool = False,
    ) -> None:
        self._function, self._has_network = pickle.dumps(function), has_network
        self._files, self._limits = tuple(files), limits
        self._items: deque[tuple[Any, float | None]] = deque()  # with their time limits
        self._server: ForkServer | None = None  # the process's parent
        self._connection: Connection | None = None
        self.pid: int | None = None  # of the process, if it is running
        self.deadline: float | None = None  # by time.monotonic; None: no limit

    def __len__(self) -> int:
        """Number of items whose result has not been taken."""
        return len(self._items)

    def fileno(self) -> int:
        """A descriptor that becomes readable with a result or when the process dies."""
        assert self._connection is not None, "no item was submitted"
        return self._connection.fileno()

    def submit(self, item: Any, timeout_s: float | None = None) -> None:
        """Submit an item with a time limit in seconds (None: no limit)."""
        self._items.append((item, timeout_s))
        if self._connection is None:
            self._start()
        else:
            self._send(item)
        if len(self._items) == 1:
            self._restart_clock()

    def is_ready(self) -> bool:
        """Whether `result` would return or raise immediately."""
        assert self._items
        return self.is_late(time.monotonic()) or self._has_reply()

    def is_late(self, now: float) -> bool:
        """Whether the oldest item has exceeded its time limit; ``now`` from time.monotonic()."""
        return self.deadline is not None and now >= self.deadline

    def result(self) -> Any:
        """Wait for the result of the oldest item. Raises the function's own error, ItemTimeout, or
        WorkerDied if the process crashed, exited or was killed."""
        assert self._connection is not None and self._items
        while not self.is_ready():
            wait_for_workers([self])
        timeout_s = self._items[0][1]
        reply: tuple[bool, Any] | None = None
        is_late = not self._has_reply()
        if not is_late:
            # The process ended, perhaps within a reply, or sent something else
            with contextlib.suppress(EOFError, OSError, ValueError):
                most = None if self._limits is None else self._limits.memory_bytes
                reply = _opened(read_reply(self._connection.recv_bytes(most)))
        exitcode = self._end() if reply is None else None
        self._items.popleft()
        if self._items and reply is None:
            self._start()
        self._restart_clock()
        if is_late:
            assert timeout_s is not None
            raise ItemTimeout(timeout_s)
        if reply is None:
            raise WorkerDied(exitcode)
        is_value, value = reply
        if is_value:
            return value
        error, where = value
        raise error from RuntimeError(f"raised in a worker process:\n{where}")

    def kill(self) -> None:
        """End the process and forget its items; a further `submit` starts a new one."""
        self._end()
        self._items.clear()
        self.deadline = None

    def _has_reply(self) -> bool:
        return bool(_readable([self.fileno()], 0))

    def _start(self) -> None:
        self._server = fork_server(has_network=self._has_network)
        self._connection, self.pid = self._server.start(self._function, self._files, self._limits)
        for item, _ in self._items:
            self._send(item)

    def _send(self, item: Any) -> None:
        assert self._connection is not None
        message = pickle.dumps(item)
        with contextlib.suppress(ConnectionError):  # it has died; `result` will notice
            self._connection.send_bytes(message)

    def _end(self) -> int | None:
        """Kill the process and return its exit code, if known."""
        if self._server is None or self._connection is None or self.pid is None:
            return None
        exitcode = self._server.end(self.pid)
        self._connection.close()
        self._server = self._connection = self.pid = None
        return exitcode

    def _restart_clock(self) -> None:
        timeout_s = self._items[0][1] if self._items else None
        self.deadline = None if timeout_s is None else time.monotonic() + timeout_s


def wait_for_workers(
    workers: Iterable[KillableWorker], *others: Connection
) -> list[KillableWorker]:
    """Wait until some workers are ready, and return these; idle workers are ignored.

    Also returns, possibly with an empty list, when another connection is readable and after a
    second. Time during which this process, and so its workers, was suspended does not count.
    """
    busy = [worker for worker in workers if len(worker)]
    assert busy or others
    start = time.monotonic()
    deadline = min((w.deadline for w in busy if w.deadline is not None), default=None)
    timeout_s = None if deadline is None else min(max(deadline - start, 0), _WAIT_S)
    readable = _readable([*(worker.fileno() for worker in busy), *(o.fileno() for o in others)],
                         timeout_s)  # fmt: skip
    now = time.monotonic()
    waited_s = now - start
    if timeout_s is not None and waited_s - timeout_s > 1:  # far more than scheduling delays
        for worker in busy:
            if worker.deadline is not None:
                worker.deadline += waited_s
    return [worker for worker in busy if worker.fileno() in readable or worker.is_late(now)]


def _readable(descriptors: Iterable[int], timeout_s: float | None) -> set[int]:
    """Wait for descriptors that are readable or closed at the other end, up to the time limit.

    Like `multiprocessing.connection.wait` in a tenth of the time; it is called for every video.
    """
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    timeout_ms = None if timeout_s is None else math.ceil(timeout_s * 1000)
    return {descriptor for descriptor, _ in poll.poll(timeout_ms)}


def run_killable(
    function: Callable[[Item], Value],
    items: Iterable[Item],
    *,
    num_workers: int,
    timeout_s: float | None,
    limits: Limits | None = None,
) -> Generator[tuple[Item, Value | ItemTimeout | WorkerDied]]:
    """Yield items with their results from num_workers processes, in the order of completion.

    An item that exceeds timeout_s seconds (above 0; None: no limit) comes with an `ItemTimeout`. If
    the process dies, the item is tried once more, as it may not be the cause, and then comes with a
    `WorkerDied`. Errors of the function are raised here. Items are taken lazily, a few in advance.
    ``limits``: see `KillableWorker`.
    """
    assert num_workers > 0
    waiting = ((item, False) for item in items)  # with whether its process has died before
    again: list[tuple[Item, bool]] = []
    workers = [KillableWorker(function, limits=limits) for _ in range(num_workers)]
    under_way: dict[KillableWorker, tuple[Item, bool]] = {}
    try:
        while True:
            for worker in workers:
                if worker not in under_way:
                    entry = again.pop() if again else next(waiting, None)
                    if entry is not None:
                        under_way[worker] = entry
                        worker.submit(entry[0], timeout_s)
            if not under_way:
                return
            for worker in wait_for_workers(under_way):
                item, has_died = under_way.pop(worker)
                try:
                    outcome = worker.result()
                except (ItemTimeout, WorkerDied) as error:
                    if isinstance(error, WorkerDied) and not has_died:
                        again.append((item, True))
                        continue
                    outcome = error
                yield item, outcome
    finally:
        for worker in workers:
            worker.kill()


class ForkServer:
    """Client of the fork server in this process."""

    def __init__(self, *, has_network: bool = False) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        self._requests = Connection(os.dup(self._socket.fileno()))
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import serve; serve({theirs.fileno()}, {self.owner}, {has_network})"
        )
        # Block signals until the server can ignore them
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TOP)
        self._relays = stdout, stderr = Relay("stdout"), Relay("stderr")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=stdout.child_end,
                stderr=stderr.child_end,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            for relay in self._relays:
                relay.are_started()
        theirs.close()

    def start(
        self, function: bytes, files: Sequence[int], limits: Limits | None = None
    ) -> tuple[Connection, int]:
        """Start a worker for a pickled function; returns its connection and process id."""
        ours, theirs = Pipe()
        try:
            with theirs, self._lock:
                place = sys.path, os.getcwd()
                self._requests.send(("start", function, *place, 1 + len(files), limits))
                reduction.sendfds(self._socket, [theirs.fileno(), *files])
                return ours, self._requests.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("worker processes cannot be started (see above)") from error

    def end(self, pid: int) -> int | None:
        """Kill a worker, which may have died already; returns its exit code, if known."""
        try:
            with self._lock:
                self._requests.send(("end", pid))
                return self._requests.recv()
        except (EOFError, OSError):  # the server was closed or replaced
            return None  # it is gone, and its workers with it

    def is_offline(self) -> bool:
        """Whether its workers have no network."""
        with self._lock:
            self._requests.send(("is offline",))
            return bool(self._requests.recv())

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the server and all its workers, and wait for their end."""
        self._requests.close()
        self._socket.close()
        if self.owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
                for relay in self._relays:
                    relay.wait()


# One server without network and one with it; each takes time and memory for imports
_current: dict[bool, ForkServer] = {}
_current_lock = threading.Lock()


def fork_server(*, has_network: bool = False) -> ForkServer:
    """This process's server, started on first use and after its death."""
    with _current_lock:
        server = _current.get(has_network)
        if server is None or server.owner != os.getpid() or not server.is_alive():
            if server is not None:
                server.close()
            server = _current[has_network] = ForkServer(has_network=has_network)
        return server


@atexit.register
def _close_servers() -> None:
    for server in _current.values():
        if server.owner == os.getpid():
            server.close()


def serve(descriptor: int, parent: int, has_network: bool) -> None:
    """Main loop of the server: start and end workers at the request of `parent`, until it ends."""
    for number in _LEFT_TO_THE_TOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_TOP)
    is_offline = not has_network and leave_network()
    channel = socket.socket(fileno=descriptor)
    requests = Connection(os.dup(descriptor))
    workers: set[int] = set()
    try:
        # Check the parent: a process that it forked may keep the connection open
        while os.getppid() == parent:
            if not requests.poll(_ORPHAN_CHECK_S):
                continue
            kind, *arguments = requests.recv()
            if kind == "end":
                requests.send(_end(*arguments))
                workers.difference_update(arguments)
                continue
            if kind == "is offline":
                requests.send(is_offline)
                continue
            function, sys.path[:], folder, num_files, limits = arguments
            connection, *files = reduction.recvfds(channel, num_files)
            # Unpickle for its imports; the worker will meet and report any error
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the parent imported it too and showed them
                pickle.loads(function)
            gc.freeze()  # garbage collection in workers then leaves shared pages alone
            pid = os.fork()
            if pid == 0:
                try:
                    channel.close()
                    requests.close()
                    _work(Connection(connection), function, files, folder, limits)
                finally:
                    os._exit(1)
            for file in (connection, *files):
                os.close(file)
            workers.add(pid)
            requests.send(pid)
    except (EOFError, ConnectionError):
        pass
    finally:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)
    os._exit(0)  # skip destructors, which would report frozen objects as leaks


def _end(pid: int) -> int | None:
    # Not yet waited for, so its process id cannot have been reused
    os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def _work(
    connection: Connection,
    pickled: bytes,
    files: Sequence[int],
    folder: str,
    limits: Limits | None,
) -> None:
    """Main loop of a worker."""
    end_with(os.getppid())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # crashes are expected: no core dumps
    os.chdir(folder)
    if limits is not None:
        confine(limits, files)
    function: Callable[..., Any] | None = None
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            os._exit(0)
        try:
            if function is None:
                function = pickle.loads(pickled)
            reply = write_reply((True, function(pickle.loads(message), *files)))
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            reply = _reply_of(error)
        connection.send_bytes(reply)


def _reply_of(error: Exception) -> bytes:
    what, where = traceback.format_exception_only(error)[-1].strip(), traceback.format_exc()
    try:
        reply = write_reply((False, (error, where)))
        read_reply(reply)
    except Exception:  # noqa: BLE001 - whatever an error that cannot be sent raises then
        return write_reply((False, (RuntimeError(what), where)))
    return reply


def _opened(reply: Any) -> tuple[bool, Any]:
    """Parse a reply: (True, value) or (False, (error, traceback)). Raises ValueError for others."""
    match reply:
        case (True, _) | (False, (Exception(), str())):
            return reply
    raise ValueError("invalid reply")
