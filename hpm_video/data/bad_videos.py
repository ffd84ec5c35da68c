"""The record of videos that could not be read: each named once, all bounded."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from hpm_video.data.manifest import Manifest


class UnreadableDataError(RuntimeError):
    """More videos are unreadable than a run may replace."""


class BadVideos:
    """Collects unreadable videos of a run and keeps them in bad_videos.csv of its folder.

    A run that continues reads the file first, so that nothing is named twice.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, max_fraction: float) -> None:
        file = folder / "bad_videos.csv"
        self._file = file
        self._manifest = manifest
        self._max_fraction = max_fraction
        self._known: set[str] = set()
        self._fresh: list[tuple[int, str]] = []
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                self._known = {row["path"] for row in csv.DictReader(lines)}

    def __len__(self) -> int:
        return len(self._known)

    def note(self, bad: Iterable[tuple[int, str]]) -> None:
        """Remember (manifest index, reason) pairs that came with a batch."""
        self._fresh += bad

    def take_fresh(self) -> list[tuple[int, str]]:
        """What was noted since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def report(self, bad: Iterable[tuple[int, str]], *, write: bool) -> list[str]:
        """Add the pairs of all processes, write the new ones, return a line for each of those.

        Raises UnreadableDataError when the known ones exceed the allowed share.
        """
        lines = []
        for index, reason in bad:
            path = self._manifest.path(index)
            if path in self._known:
                continue
            self._known.add(path)
            lines.append(f"unreadable video, replaced by another: {path}: {reason}")
            if write:
                self._append(path, reason)
        share = len(self._known) / len(self._manifest)
        if share > self._max_fraction:
            raise UnreadableDataError(
                f"{len(self._known)} of {len(self._manifest)} videos are unreadable ({share:.1%}): "
                f"more than data.max_bad_fraction ({self._max_fraction:g}) allows; "
                f"they are listed in {self._file}"
            )
        return lines

    def _append(self, path: str, reason: str) -> None:
        is_new = not self._file.exists()
        with self._file.open("a", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines)
            if is_new:
                writer.writerow(["path", "reason"])
            writer.writerow([path, reason])
