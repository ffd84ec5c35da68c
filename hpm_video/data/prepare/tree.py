"""What lies in a folder of videos: which files there are, and where a named one is."""

import os
from collections.abc import Iterator
from pathlib import Path

from hpm_video.data.lists.rows import is_video_name, shown

# What a list of videos may be; frames of videos, by the million, are not remembered
_TEXT_SUFFIXES = (".csv", ".json", ".txt")


class VideoTree:
    """The videos and lists below a folder, found by one walk. Hidden files are no part of it."""

    def __init__(self, folder: str | Path) -> None:
        """Walk the folder.

        Raises FileNotFoundError: it does not exist; ValueError: it is no folder, or one below it
        cannot be read.
        """
        self.folder = str(folder)
        self.videos: list[str] = []  # paths, joined to the folder, in the order of their names
        self.texts: list[str] = []  # the same of csv, json and txt files
        self.num_others = 0  # files of other kinds
        if not os.path.exists(folder):
            raise FileNotFoundError(f"{folder} does not exist (expected a folder of videos)")
        if not os.path.isdir(folder):
            raise ValueError(f"{folder} must be a folder of videos")
        for path in _files_below(self.folder):
            if is_video_name(path):
                self.videos.append(path)
            elif path.lower().endswith(_TEXT_SUFFIXES):
                self.texts.append(path)
            else:
                self.num_others += 1
        self._by_stem: dict[str, list[str]] = {}
        for path in self.videos:
            self._by_stem.setdefault(_stem(path), []).append(path)

    def find(self, name: str, *, folder: str = "") -> str | None:
        """Return the path of a video whatever its folder and kind, or None.

        Where several have that name, one in a folder named ``folder`` comes first (apart from
        case, and from characters that are no letters or digits), then the first by path.
        """
        found = self._by_stem.get(_stem(name), ())
        wanted = _plain(folder)
        in_folder = (p for p in found if _plain(os.path.basename(os.path.dirname(p))) == wanted)
        return next(in_folder, found[0] if found else None)


def _stem(path: str) -> str:
    """A video's name without folder and kind: sets re-encoded to mp4 are found, too."""
    name = os.path.basename(path)
    return os.path.splitext(name)[0] if is_video_name(name) else name


def _plain(text: str) -> str:
    # Copies of Kinetics have "tying_knot_(not_on_a_tie)", "tying knot (not on a tie)", ...
    return "".join(filter(str.isalnum, text)).casefold()


def _files_below(folder: str) -> Iterator[str]:
    """Yield regular files, links followed, each folder once even where links make a loop."""
    visited: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                shown_entries = [e for e in entries if not e.name.startswith(".")]
        except OSError as error:
            raise ValueError(f"{shown(current)} cannot be read: {error.strerror}") from error
        shown_entries.sort(key=lambda entry: entry.name)
        waiting += [entry.path for entry in reversed(shown_entries) if entry.is_dir()]
        yield from (entry.path for entry in shown_entries if entry.is_file())
