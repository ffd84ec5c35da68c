"""A run folder belongs to one running process at a time: locks, and signs of life."""

from __future__ import annotations

import fcntl
import os
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

_BEAT_S = 10.0  # from one sign of life to the next
_PATIENCE_S = 60.0  # who gives none for so long is dead
_MOST_BYTES = 1000

_locks: dict[Path, _Lock] = {}


class FolderInUse(Exception):  # noqa: N818 - it is an answer
    """Another process runs here; its message says which one, and where."""


def lock_folder(folder: Path) -> None:
    """Lock run.lock for this process until `unlock_folder`, or its end. Raises FolderInUse.

    The first guard is a POSIX record lock: the kernel drops it with the process, however that ends,
    and forked processes, which may outlive a killed parent, do not inherit it. But not every
    network drive has locks, or has them between machines. So the holder also writes who it is, and
    every few seconds a higher number; who finds one that may be alive on another machine looks for
    a minute whether that still happens, which needs no clocks that agree.
    """
    if folder.resolve() in _locks:
        return
    file = folder / "run.lock"
    descriptor, is_locked, holder = _open(file)
    if not _is_dead(holder, is_locked=is_locked):
        os.close(descriptor)  # as every other descriptor of it: closing one ends the lock
        _wait_for_a_beat(file, holder)
        descriptor, is_locked, now = _open(file)
        if now not in (holder, ""):
            os.close(descriptor)
            raise FolderInUse(_who(now))
    try:
        _locks[folder.resolve()] = _Lock(descriptor)
    except OSError:
        os.close(descriptor)
        raise


def unlock_folder(folder: Path) -> None:
    """Let other processes lock the folder; nothing happens where this one did not."""
    if lock := _locks.pop(folder.resolve(), None):
        lock.release()


class _Lock:
    """What this process holds: the open file, and a thread that shows it is alive."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._ended = threading.Event()
        self._beat(0)
        self._thread = threading.Thread(target=self._beat_on, name="run.lock", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Leave an empty file, which nobody holds. It is never removed: another start may just
        have opened it."""
        self._ended.set()
        self._thread.join()
        os.ftruncate(self._descriptor, 0)
        os.close(self._descriptor)

    def _beat_on(self) -> None:
        number = 0
        while not self._ended.wait(_BEAT_S):
            number += 1
            try:
                self._beat(number)
            except OSError:
                continue  # a network drive that comes back

    def _beat(self, number: int) -> None:
        job = os.environ.get("SLURM_JOB_ID")
        of_job = f", SLURM job {job}" if job else ""
        line = f"process {os.getpid()} on {socket.gethostname()}{of_job}, beat {number:09d}\n"
        os.pwrite(self._descriptor, line.encode(), 0)
        if number == 0:
            os.ftruncate(self._descriptor, len(line))
        os.fsync(self._descriptor)  # so that other machines see it


def _open(file: Path) -> tuple[int, bool, str]:
    """Open and, where the file system can, lock the file; returns what its last holder wrote."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    is_locked = True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        holder = os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace")
        os.close(descriptor)
        raise FolderInUse(_who(holder)) from error
    except OSError:
        is_locked = False
    return descriptor, is_locked, os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace")


def _is_dead(holder: str, *, is_locked: bool) -> bool:
    """Whether the process that a lock file names is certainly gone, or there is none."""
    found = re.match(r"process (\d+) on ([^\s,]+)(?:, SLURM job (\d+))?", holder)
    if found is None:
        return True
    process, host, job = found.groups()
    if host == socket.gethostname() and (is_locked or not _is_process(int(process))):
        return True
    # A requeued job starts again when all its processes have ended
    return job is not None and (job == os.environ.get("SLURM_JOB_ID") or _is_gone(job))


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_gone(job: str) -> bool:
    """Whether SLURM says that a job is over; False where it cannot be asked."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        return "Invalid job id" in done.stderr
    return not done.stdout.strip()


def _wait_for_a_beat(file: Path, holder: str) -> None:
    """Raise FolderInUse as soon as the holder gives a sign of life; return if it gives none, or
    lets go."""
    sys.stderr.write(
        f"{file} is held by {_who(holder)}: looking for {_PATIENCE_S:g} s whether it is alive\n"
    )
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up:
        time.sleep(min(_BEAT_S / 4, 1))
        # Opened anew each time: only then does a network drive ask its server
        now = file.read_text(encoding="utf-8", errors="replace")
        if not now:
            return
        if now != holder:
            raise FolderInUse(_who(holder))


def _who(holder: str) -> str:
    return holder.split(", beat", maxsplit=1)[0].strip()
