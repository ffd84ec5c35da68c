"""Starts and ends worker processes, in milliseconds, and never leaves one behind.

The nursery is a process of its own, started afresh (not forked: there may be threads and CUDA
here). It imports what its workers need and then does nothing but fork them, so a worker shares the
memory of what is imported. It ends its workers as soon as this process is gone, however that ended,
and the kernel ends them with the nursery.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any

# What a terminal or SLURM sends to all processes of a job. What to do about it is the business of
# the process at the top, which may still want results.
_LEFT_TO_THE_TOP = (
    signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2,
)  # fmt: skip
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_KILL_WAIT_S = 1.0  # a process inside the kernel, say on a dead network drive, dies later
_ORPHAN_CHECK_S = 1.0


class Nursery:
    """This process's end of the nursery."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair()
        self._requests = Connection(os.dup(self._socket.fileno()))
        code = (
            f"import sys; sys.path[:] = {sys.path!r}; "
            f"from {__name__} import run_nursery; run_nursery({theirs.fileno()}, {self.owner})"
        )
        # Blocked on its way, as a signal may come before it can ignore it
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_TOP)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        theirs.close()

    def start(self, function: bytes, files: Sequence[int]) -> tuple[Connection, int]:
        """Start a worker for a pickled function; returns a connection to it and its process id."""
        ours, theirs = Pipe()
        try:
            with theirs, self._lock:
                self._requests.send(("start", function, sys.path, os.getcwd(), 1 + len(files)))
                reduction.sendfds(self._socket, [theirs.fileno(), *files])
                return ours, self._requests.recv()
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("worker processes cannot be started (see above)") from error

    def end(self, pid: int) -> int | None:
        """Kill a worker, which may be dead already; returns its exit code, if it is known."""
        try:
            with self._lock:
                self._requests.send(("end", pid))
                return self._requests.recv()
        except (EOFError, OSError):  # closed, perhaps, by who started another one
            return None  # the nursery is gone, and its workers with it

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it and all its workers, and wait for that."""
        self._requests.close()
        self._socket.close()
        if self.owner == os.getpid():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)


_current: Nursery | None = None
_current_lock = threading.Lock()


def this_nursery() -> Nursery:
    """The nursery of this process, started when it is first needed, or when it has died."""
    global _current  # noqa: PLW0603 - one a process, as what it imports takes time and memory
    with _current_lock:
        if _current is None or _current.owner != os.getpid() or not _current.is_alive():
            if _current is not None:
                _current.close()
            _current = Nursery()
        return _current


@atexit.register
def _close_nursery() -> None:
    if _current is not None and _current.owner == os.getpid():
        _current.close()


def run_nursery(descriptor: int, parent: int) -> None:
    """Start and end workers as the process `parent` asks for, until it is gone."""
    for number in _LEFT_TO_THE_TOP:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _LEFT_TO_THE_TOP)
    channel = socket.socket(fileno=descriptor)
    requests = Connection(os.dup(descriptor))
    workers: set[int] = set()
    try:
        # A process that the parent forked may hold the connection open beyond its end
        while os.getppid() == parent:
            if not requests.poll(_ORPHAN_CHECK_S):
                continue
            kind, *arguments = requests.recv()
            if kind == "end":
                requests.send(_end(*arguments))
                workers.difference_update(arguments)
                continue
            function, sys.path[:], folder, num_files = arguments
            connection, *files = reduction.recvfds(channel, num_files)
            # For what it imports. Whatever is wrong with it, the worker meets it too and reports it
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # our parent, which imported it too, has said it
                pickle.loads(function)
            gc.freeze()  # collections in workers then leave the shared pages alone
            pid = os.fork()
            if pid == 0:
                try:
                    channel.close()
                    requests.close()
                    _work(Connection(connection), function, files, folder)
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
    os._exit(0)  # what was frozen above would be called a leak


def _end(pid: int) -> int | None:
    # It has not been waited for, so nobody else has got its number yet
    os.kill(pid, signal.SIGKILL)
    give_up = time.monotonic() + _KILL_WAIT_S
    while time.monotonic() < give_up:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    return None


def _work(connection: Connection, pickled: bytes, files: Sequence[int], folder: str) -> None:
    """The life of a worker: item after item."""
    if sys.platform == "linux":
        nursery = os.getppid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != nursery:  # it died before it could have told us
            os._exit(1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected: no file of it
    os.chdir(folder)
    function: Callable[..., Any] | None = None
    while True:
        try:
            message = connection.recv_bytes()
        except (EOFError, ConnectionError):
            os._exit(0)
        try:
            if function is None:
                function = pickle.loads(pickled)
            reply = pickle.dumps((True, function(pickle.loads(message), *files)))
        except Exception as error:  # noqa: BLE001 - raised again where the result is asked for
            reply = _pickled_error(error)
        connection.send_bytes(reply)


def _pickled_error(error: Exception) -> bytes:
    where = traceback.format_exc()
    try:
        error.add_note(f"raised by another process:\n{where}")
        reply = pickle.dumps((False, error))
        pickle.loads(reply)
    except Exception:  # noqa: BLE001 - whatever an error that cannot be pickled raises then
        return pickle.dumps((False, RuntimeError(where)))
    return reply
