"""Stop signals as a flag for loops, and ending with a parent process."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_PR_SET_PDEATHSIG = 1  # option of prctl(2)
_stopped_by: str | None = None


class StopFlag:
    """Set by a signal that ends jobs; the loop reads it at the end of a step."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextmanager
def stop_on_signal(*, is_alone: bool, says_so: bool = False) -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts at once.

    ``says_so``: print a line at the first signal, as the step may take long.

    If one of several ranks (not ``is_alone``) fails, SIGTERM stays ignored: `torchrun` sends it to
    the other ranks, which may just be reporting that they lost one.
    """
    note_stop(None)
    flag = StopFlag()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def handler(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        is_first = not flag
        flag.name = signal.Signals(number).name
        if says_so and is_first:
            _say_now(f"{flag.name}: the run stops and saves after this step{_again(number)}")

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    except Exception:
        says_so = False  # nothing is saved any more
        if not is_alone:
            del before[signal.SIGTERM]
        raise
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _again(number: int) -> str:
    return "; a second Ctrl-C ends it at once, without saving" if number == signal.SIGINT else ""


def _say_now(line: str) -> None:
    """Print a line from a signal handler, which may have interrupted a print."""
    with suppress(OSError, ValueError):  # closed, no file, or its reader is gone
        stdout = sys.stdout.fileno()
        # On a terminal, erase the progress bar, which is drawn again below
        start = "\r\x1b[2K" if os.isatty(stdout) else ""
        os.write(stdout, f"{start}{line}\n".encode())


def note_stop(name: str | None) -> None:
    """Record that a run was saved and stopped by a signal to one of its ranks."""
    global _stopped_by  # noqa: PLW0603 - a job's exit code alone cannot tell this from a failure
    _stopped_by = name


def stopped_by() -> str | None:
    """The signal that stopped the latest run, on all ranks; None if none did."""
    return _stopped_by


def end_with(parent: int) -> None:
    """End this process when its parent ends in any way; at once if it has already ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the option took effect
        os._exit(1)
