"""A journal of finished work, so that a killed job repeats nothing."""

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hpm_video.runtime.files import own_file, writing
from hpm_video.runtime.reading import open_regular, parse_json

_SYNC_EVERY_S = 5.0


class Entries(Mapping[str, dict[str, Any]]):
    """The last entry of each key of a journal; only their file offsets are in memory."""

    def __init__(self, path: Path) -> None:
        self._file = open_regular(path)  # stays open
        self._places: dict[str, int] = {}
        self.num_bytes = 0  # up to a truncated line
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                key, entry = parse_json(line)
            except (ValueError, TypeError):  # left by a failing disk
                break
            if not (isinstance(key, str) and isinstance(entry, dict)):
                break
            self.note(key, len(line))

    def note(self, key: str, num_bytes: int) -> None:
        """Record that a line of this many bytes was appended to the file."""
        self._places[key] = self.num_bytes
        self.num_bytes += num_bytes

    def __getitem__(self, key: str) -> dict[str, Any]:
        self._file.seek(self._places[key])
        entry: dict[str, Any] = parse_json(self._file.readline())[1]
        return entry

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Entries:
    """The entries of a journal, while another process may be appending to it."""
    return Entries(path)


class Journal(AbstractContextManager["Journal"]):
    """An append-only file of JSON lines (key, entry), opened by one process at a time.

    A truncated last line is dropped when the journal is next opened. Entries survive a kill of the
    process immediately, and a failure of the machine after some seconds.

    Attributes:
        entries: key -> its last entry, including those of earlier processes.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal. Raises ValueError if another process has it open, or if it is
        not writable."""
        self.path = path
        with writing(path):
            self._file = open(  # noqa: SIM115 - closed by __exit__
                path, "ab", buffering=0, opener=own_file
            )
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.close()
            raise ValueError(f"{path} is in use: the same command is already running") from error
        self.entries = Entries(path)
        self._file.truncate(self.entries.num_bytes)
        self._synced = time.monotonic()

    def add(self, key: str, entry: dict[str, Any]) -> None:
        """Append an entry. Raises ValueError if it cannot be written."""
        # ASCII only, since file names need not be valid Unicode
        line = json.dumps([key, entry]).encode("ascii") + b"\n"
        with writing(self.path):
            self._file.write(line)
            if time.monotonic() - self._synced > _SYNC_EVERY_S:
                os.fsync(self._file.fileno())
                self._synced = time.monotonic()
        self.entries.note(key, len(line))

    def remove(self) -> None:
        """Delete the file, once its contents have been stored elsewhere."""
        self.path.unlink(missing_ok=True)

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.entries.close()
