"""Signals that end jobs, as a flag that a loop reads, and the end of a parent process."""

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PR_SET_PDEATHSIG = 1  # of prctl(2)
_stopped_by: str | None = None


class StopFlag:
    """True once a signal came that ends jobs; the loop reads it at the end of a step."""

    name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextmanager
def stop_on_signal(*, is_alone: bool) -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts at once.

    After an error of one process of several (not ``is_alone``), SIGTERM stays without effect: once
    one has ended, `torchrun` sends it to the others, which may be about to say that they lost that
    one.
    """
    note_stop(None)
    flag = StopFlag()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def handler(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield flag
    except Exception:
        if not is_alone:
            del before[signal.SIGTERM]
        raise
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def note_stop(name: str | None) -> None:
    """Note that a run was stopped by a signal to one of its processes, and saved."""
    global _stopped_by  # noqa: PLW0603 - a job's exit code alone cannot tell this from a failure
    _stopped_by = name


def stopped_by() -> str | None:
    """The signal that stopped the latest run, on all of its processes; None if none did."""
    return _stopped_by


def end_with(parent: int) -> None:
    """End this process when its parent ends, however that is; at once if it has ended already."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could have told us
        os._exit(1)
