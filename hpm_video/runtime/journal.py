"""A journal: what is done already, kept so that a killed job does nothing twice."""

import fcntl
import json
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpm_video.runtime.files import writing

_SYNC_EVERY_S = 5.0


def read_journal(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a journal that another process may be adding to."""
    return _parse(path)[0]


class Journal(AbstractContextManager["Journal"]):
    """A file of JSON lines (key, entry), appended to; opened by one process at a time.

    A line that a kill cut short is dropped when the journal is next opened. What was added survives
    a kill of this process at once, and a failure of the machine after some seconds.

    Attributes:
        entries: key -> the last entry added for it, those of earlier processes included.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal. Raises ValueError where another process has it open, or it
        cannot be written."""
        self.path = path
        with writing(path):
            self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed by __exit__
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"{path} is in use: the same command is running already") from error
        self.entries, num_bytes = _parse(path)
        self._file.truncate(num_bytes)
        self._synced = time.monotonic()

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Append an entry. Raises ValueError if it cannot be written."""
        # ASCII only: the name of a file need not be valid Unicode
        line = json.dumps([key, entry]).encode("ascii") + b"\n"
        with writing(self.path):
            self._file.write(line)
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.entries[key] = entry

    def remove(self) -> None:
        """Delete the file: everything in it has arrived where it belongs."""
        self.path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _parse(path: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Return the entries, and how many bytes they take before a line cut short."""
    entries: dict[str, dict[str, Any]] = {}
    num_bytes = 0
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            try:
                key, entry = json.loads(line)
            except ValueError:  # what a failing disk left
                break
            entries[key] = entry
            num_bytes += len(line)
    return entries, num_bytes
