"""Interactive terminals, and the output of child processes on them."""

import os
import sys
import threading
from contextlib import suppress
from typing import Literal, TextIO

# Variables of CI systems and notebooks, whose terminals keep every redrawn line
_KEEP_REDRAWN_LINES = ("CI", "JPY_PARENT_PID")


def is_for_people(stream: TextIO) -> bool:
    """Whether a stream is an interactive terminal on which lines can be redrawn."""
    try:
        is_terminal = os.isatty(stream.fileno())  # a replaced stream may lack isatty()
    except (OSError, ValueError):
        return False
    return (
        is_terminal
        and os.environ.get("TERM", "dumb") not in ("", "dumb", "unknown")
        and not any(os.environ.get(name) for name in _KEEP_REDRAWN_LINES)
    )


class Relay:
    """Copies the output of child processes to our own stdout or stderr, line by line.

    Only on a terminal, where their lines would break up a progress bar. Elsewhere children write
    directly, so that nothing is lost with this process.

    child_end: descriptor for the children; None if they inherit this process's.
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
        """Close our copy of the children's end, so that it closes with them."""
        if self.child_end is not None:
            os.close(self.child_end)

    def wait(self) -> None:
        """After the children's end, wait until their last lines are written."""
        if self._thread is not None:
            self._thread.join(timeout=1)


def _relay(reading: int, name: str) -> None:
    with open(reading, encoding="utf-8", errors="backslashreplace") as lines:
        for line in lines:
            with suppress(OSError, ValueError):  # the reader is gone
                getattr(sys, name).write(line)  # looked up now: a bar may have replaced it
                getattr(sys, name).flush()
