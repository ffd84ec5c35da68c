"""The record of unreadable videos: each is reported once, and their number is limited."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.batches import GIVEN_UP
from hpm_video.data.video.frames import NO_SUCH_FILE
from hpm_video.runtime.files import write_csv


class UnreadableDataError(RuntimeError):
    """More videos are unreadable than a run may replace."""

    def __init__(self, message: str, bad: Sequence[tuple[int, str]] = ()) -> None:
        super().__init__(message)
        self.bad = tuple(bad)  # (manifest index, reason) since the last batch


def none_readable(bad: Sequence[tuple[str, str]]) -> UnreadableDataError:
    """The error for a list without any readable video; ``bad``: (path, reason) of all of them."""
    path, reason = bad[0]
    return UnreadableDataError(f"none of {len(bad)} videos can be read, e.g. {path}: {reason}")


def _rows(file: Path, lines: Iterable[str]) -> list[dict[str, str]]:
    reader = csv.DictReader(lines)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"{file}:{reader.line_num}: malformed CSV: {error}") from error
    columns = {"path", "reason"}
    if any(not columns <= row.keys() or None in map(row.get, columns) for row in rows):
        raise ValueError(f"{file} must have the columns path,reason in every row")
    return rows


class BadVideos:
    """Collects unreadable videos of a run and stores them in bad_videos.csv in its folder.

    A resumed run reads the file first, so that no video is reported twice. It forgets videos that
    were missing: the data may have been restored, and checking again costs little.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, max_fraction: float) -> None:
        file = self._file = folder / "bad_videos.csv"
        self._manifest = manifest
        self._max_fraction = max_fraction
        self._known: dict[str, str] = {}  # path -> reason
        self._is_stale = False  # whether the file has rows that were forgotten
        self._fresh: list[tuple[int, str]] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
                rows = _rows(file, lines)
            self._known = {r["path"]: r["reason"] for r in rows if r["reason"] != NO_SUCH_FILE}
            self._is_stale = len(self._known) < len(rows)

    def __len__(self) -> int:
        return len(self._known)

    @property
    def given_up(self) -> dict[str, str]:
        """Path -> reason of the videos that must not be tried again."""
        return {p: reason for p, reason in self._known.items() if reason.startswith(GIVEN_UP)}

    def note(self, bad: Iterable[tuple[int, str]]) -> None:
        """Record (manifest index, reason) pairs that came with a batch."""
        self._fresh += bad

    def take_fresh(self) -> list[tuple[int, str]]:
        """The pairs recorded since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def report(self, bad: Iterable[tuple[int, str]], *, write: bool) -> list[str]:
        """Add the pairs of all ranks, write the new ones, and return a line for each of these.

        Raises UnreadableDataError if the number of bad videos exceeds the allowed share.
        """
        new = self.keep(bad, write=write)
        share = len(self._known) / len(self._manifest)
        if share > self._max_fraction:
            raise UnreadableDataError(
                f"{len(self._known)} of {len(self._manifest)} videos are unreadable ({share:.1%}): "
                f"more than data.max_bad_fraction ({self._max_fraction:g}) allows; "
                f"they are listed in {self._file}"
            )
        return [f"unreadable video, replaced by another: {p}: {why}" for p, why in new.items()]

    def keep(self, bad: Iterable[tuple[int, str]], *, write: bool) -> dict[str, str]:
        """Add pairs to the record and write the file; returns the new ones, path -> reason."""
        found = {self._manifest.path(index): reason for index, reason in bad}
        new = {path: reason for path, reason in found.items() if path not in self._known}
        self._known |= new
        if write and (new or self._is_stale):
            write_csv(self._file, ("path", "reason"), self._known.items())
            self._is_stale = False
        return new
