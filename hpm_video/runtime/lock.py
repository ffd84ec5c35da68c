"""Locks of run folders, with heartbeats: one process at a time may use a folder."""

import fcntl
import itertools
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from hpm_video.runtime.files import own_file, printable
from hpm_video.runtime.reading import open_regular

_BEAT_S = 10.0  # interval of heartbeats
_PATIENCE_S = 60.0  # without a heartbeat, after which the holder counts as dead
_MOST_BYTES = 1000

# Open lock files, and the event that stops each one's heartbeat thread
_locks: dict[Path, tuple[int, threading.Event, threading.Thread]] = {}


class FolderInUse(Exception):  # noqa: N818 - an answer, not an error
    """Another process uses the folder; the message says which one, and where it runs."""


def lock_folder(folder: Path) -> None:
    """Lock run.lock for this process until `unlock_folder` or its end. Raises FolderInUse.

    The first guard is a POSIX record lock. The kernel drops it when the process ends, and forked
    processes, which may outlive a killed parent, do not inherit it. Not every network drive
    supports locks between machines. So the holder also writes its identity and, every few seconds,
    a higher number. A process that finds a holder on another machine watches for a minute whether
    the number rises, which needs no synchronised clocks.
    """
    if folder.resolve() in _locks:
        return
    file = folder / "run.lock"
    descriptor, is_locked, holder = _open(file)
    if not _is_dead(holder, is_locked=is_locked):
        os.close(descriptor)  # closing any descriptor of the file releases a POSIX lock
        _wait_for_a_beat(file, holder)
        descriptor, is_locked, now = _open(file)
        if now not in (holder, ""):
            os.close(descriptor)
            raise FolderInUse(_who(now))
    try:
        _beat(descriptor, 0)
    except OSError:
        os.close(descriptor)
        raise
    ended = threading.Event()
    thread = threading.Thread(target=_beat_on, args=(descriptor, ended), daemon=True)
    thread.start()
    _locks[folder.resolve()] = (descriptor, ended, thread)


def running_process(folder: Path) -> str | None:
    """The process that uses the folder, as far as can be told without its lock; None for no one.

    A holder counts as dead without a recent heartbeat, or if it ran here and no longer does.
    """
    file = folder / "run.lock"
    try:
        # Closing any descriptor of the file would release a lock of this process
        if (held := _locks.get(folder.resolve())) is not None:
            holder = os.pread(held[0], _MOST_BYTES, 0).decode(errors="replace")
        else:
            with open_regular(file) as opened:
                holder = opened.read(_MOST_BYTES).decode(errors="replace")
        age_s = time.time() - file.stat().st_mtime
    except (OSError, ValueError):
        return None
    found = re.match(r"process (\d+) on ([^\s,]+)", holder)
    if found is None or age_s > _PATIENCE_S:
        return None
    is_here = found[2] == socket.gethostname()
    return None if is_here and not _is_process(int(found[1])) else _who(holder)


def unlock_folder(folder: Path) -> None:
    """Release the folder; no effect if this process did not lock it.

    The file stays, empty: another start may just have opened it.
    """
    if held := _locks.pop(folder.resolve(), None):
        descriptor, ended, thread = held
        ended.set()
        thread.join()
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _beat_on(descriptor: int, ended: threading.Event) -> None:
    """Write heartbeats until the event is set."""
    for number in itertools.count(1):
        if ended.wait(_BEAT_S):
            return
        with suppress(OSError):  # a network drive may come back
            _beat(descriptor, number)


def _beat(descriptor: int, number: int) -> None:
    job = os.environ.get("SLURM_JOB_ID")
    of_job = f", SLURM job {job}" if job else ""
    line = f"process {os.getpid()} on {socket.gethostname()}{of_job}, beat {number:09d}\n"
    os.pwrite(descriptor, line.encode(), 0)
    if number == 0:
        os.ftruncate(descriptor, len(line))
    os.fsync(descriptor)  # makes it visible to other machines


def _open(file: Path) -> tuple[int, bool, str]:
    """Open the file and, if the file system can, lock it; returns what its last holder wrote."""
    descriptor = own_file(file, os.O_RDWR | os.O_CREAT)
    refusal: OSError | None = None
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        refusal = error
    holder = os.pread(descriptor, _MOST_BYTES, 0).decode(errors="replace")
    if isinstance(refusal, BlockingIOError | PermissionError):
        os.close(descriptor)
        raise FolderInUse(_who(holder)) from refusal
    return descriptor, refusal is None, holder


def _is_dead(holder: str, *, is_locked: bool) -> bool:
    """Whether the process that a lock file names has certainly ended, or none is named."""
    found = re.match(r"process (\d+) on ([^\s,]+)(?:, SLURM job (\d+))?", holder)
    if found is None:
        return True
    process, host, job = found.groups()
    if host == socket.gethostname() and (is_locked or not _is_process(int(process))):
        return True
    # A requeued job restarts only after all its processes have ended
    return job is not None and (job == os.environ.get("SLURM_JOB_ID") or _is_gone(job))


def _is_process(number: int) -> bool:
    try:
        os.kill(number, 0)
    except (OSError, OverflowError) as error:
        return isinstance(error, PermissionError)
    return True


def _is_gone(job: str) -> bool:
    """Whether SLURM reports that a job has ended; False if SLURM is not available."""
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%T"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    if done.returncode:
        return "Invalid job id" in done.stderr
    return not done.stdout.strip()


def _wait_for_a_beat(file: Path, holder: str) -> None:
    """Raise FolderInUse at the holder's next heartbeat; return if there is none, or if it lets
    go."""
    sys.stderr.write(
        f"{file} is held by {_who(holder)}: waiting up to {_PATIENCE_S:g} s to see whether it "
        "still runs\n"
    )
    give_up = time.monotonic() + _PATIENCE_S
    while time.monotonic() < give_up:
        time.sleep(min(_BEAT_S / 4, 1))
        # Reopen each time, so that a network drive asks its server
        with open_regular(file) as opened:
            now = opened.read(_MOST_BYTES).decode(errors="replace")
        if not now:
            return
        if now != holder:
            raise FolderInUse(_who(holder))


def _who(holder: str) -> str:
    return printable(holder.split(", beat", maxsplit=1)[0].strip())
