"""Terminals that people look at, and what other processes of a job write to them."""

import os
import sys
import threading
from contextlib import suppress
from typing import Literal, TextIO

# Variables of continuous integration and of notebooks, whose terminals keep every redrawn line
_KEEP_REDRAWN_LINES = ("CI", "JPY_PARENT_PID")


def is_for_people(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which lines can be redrawn, and a person looks at it."""
    try:
        is_terminal = os.isatty(stream.fileno())  # a stream that stands in for one may not know
    except (OSError, ValueError):
        return False
    return (
        is_terminal
        and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        and not any(os.environ.get(name) for name in _KEEP_REDRAWN_LINES)
    )


class Relay:
    """Writes to our own stdout or stderr, line by line, what child processes write to theirs.

    Where this process draws a bar on a terminal, lines of others would tear it. Elsewhere nothing
    is relayed: children write for themselves, and nothing is lost with this process.

    child_end: descriptor for the children, or None where they have that of this process.
    """

    def __init__(self, name: Literal["stdout", "stderr"]) -> None:
        self.child_end: int | None = None
        self._thread: threading.Thread | None = None
        if not is_for_people(getattr(sys, name)):
            return
        reading, self.child_end = os.pipe()
        self._thread = threading.Thread(target=_relay, args=(reading, name), daemon=True)
        self._thread.start()

    def are_started(self) -> None:
        """Let go of the children's end, so that it ends with them."""
        if self.child_end is not None:
            os.close(self.child_end)

    def wait(self) -> None:
        """After the children's end: until their last lines are written."""
        if self._thread is not None:
            self._thread.join(timeout=1)


def _relay(reading: int, name: str) -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            with suppress(OSError, ValueError):  # nobody reads it any more
                getattr(sys, name).write(line)  # what it is now: a bar stands in for it
                getattr(sys, name).flush()
