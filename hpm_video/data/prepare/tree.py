"""The content of a folder of videos: its files, and the path of a named one.

A folder of frames counts as a video like a file, unless single images are requested.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

from hpm_video.data.lists.rows import is_video_name, shown
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.readers.frame_folder import (
    FPS_FILE,
    frames_among,
    is_image_name,
    num_missing,
)

Images = Literal["frames", "stills"]
# Endings of possible lists; frames of videos, which may be millions, are not remembered
_TEXT_SUFFIXES = (".csv", ".json", ".txt")
_ENDING = re.compile(r"(\.\w+)?")  # without characters that shells expand
_MOST_SHOWN = 5
_MOST_LOOKED_AT = 5_000  # entries of folders, to find videos elsewhere


class VideoTree:
    """The videos and lists below a folder, found in one walk, without hidden files."""

    def __init__(self, folder: str | Path, *, images: Images | None = None) -> None:
        """Walk the folder.

        ``images``: whether the numbered images in a folder are the frames of a video, or each image
        is a still video. By default they are frames if at least half of the numbers exist.

        Raises FileNotFoundError if it does not exist, or ValueError if it is not a folder, or one
        below it cannot be read.
        """
        self.folder = str(folder)
        self.is_sure = images == "frames"
        self.videos: list[str] = []  # paths, joined to the folder, sorted by name
        self.texts: list[str] = []  # the same for csv, json and txt files
        self.num_others = 0  # other files
        self.some_others: list[str] = []  # the first of them
        self.other_endings: dict[str, str] = {}  # of some other files, each with its first file
        self.num_folders = 0  # folders of frames among the videos
        self.num_images = 0  # other files that are images, but not frames
        self.no_frames: list[tuple[str, str]] = []  # folders of images that are not videos, and why
        self.dangling: list[str] = []  # links named like videos, to missing files
        if not os.path.exists(folder):
            raise FileNotFoundError(f"{folder} does not exist (expected a folder of videos)")
        if not os.path.isdir(folder):
            raise ValueError(f"{folder} must be a folder of videos")
        for place, files in _folders_below(self.folder):
            why_not = "" if images == "stills" else _why_no_frames(files, sure=images == "frames")
            if why_not:
                self.no_frames.append((place, why_not))
            if has_frames := why_not is None:
                self.videos.append(place)
                self.num_folders += 1
            for path, is_there in files:
                if is_video_name(path) or (images == "stills" and is_image_name(path)):
                    (self.videos if is_there else self.dangling).append(path)
                elif os.path.basename(path) == FPS_FILE or (has_frames and is_image_name(path)):
                    continue
                elif path.lower().endswith(_TEXT_SUFFIXES):
                    self.texts.append(path)
                else:
                    self.num_others += 1
                    self.some_others += [path][: _MOST_SHOWN - len(self.some_others)]
                    self.num_images += is_image_name(path)
                    ending = os.path.splitext(path)[1]
                    if len(self.other_endings) < _MOST_SHOWN and _ENDING.fullmatch(ending):
                        self.other_endings.setdefault(ending, path)
        self._by_stem: dict[str, list[str]] = {}
        for path in self.videos:
            self._by_stem.setdefault(_stem(path), []).append(path)

    @property
    def folders_without_videos(self) -> list[str]:
        """The names of direct subfolders without videos, and of broken links."""
        start = len(os.path.join(self.folder, ""))
        used = {path[start:].split(os.sep)[0] for path in (*self.videos, *self.dangling)}
        return sorted(
            entry.name
            for entry in _entries(self.folder)
            if entry.name not in used and (_is(entry.is_dir) or _is_dangling(entry))
        )

    def find(self, name: str, *, folder: str = "") -> str | None:
        """Return the path of a video with this name, in any folder and with any ending, or None.

        If several match, one in a folder named ``folder`` comes first (ignoring case, and
        characters that are not letters or digits), then the first by path.
        """
        found = self._by_stem.get(_stem(name), ())
        wanted = _plain(folder)
        in_folder = (p for p in found if _plain(os.path.basename(os.path.dirname(p))) == wanted)
        return next(in_folder, found[0] if found else None)


def folders_beside(folder: str, *, depth: int) -> Iterator[str]:
    """Yield the folders beside a folder that have videos, at most ``depth`` folders down.

    Looks at a limited number of entries, so it may miss some. Paths are relative if ``folder`` is.
    """
    own, look = os.path.abspath(folder), _Look()
    for place in look(os.path.dirname(own))[1]:
        if place != own and look.finds_videos(place, depth):
            yield place if os.path.isabs(folder) else os.path.relpath(place)


def has_videos(folder: str) -> bool:
    """Whether one of the first entries of a folder is a video file."""
    return _Look().finds_videos(folder, 0)


class _Look:
    """Looks into folders without walking all of a large one."""

    def __init__(self) -> None:
        self._left = _MOST_LOOKED_AT

    def __call__(self, folder: str) -> tuple[bool, list[str]]:
        """Whether a folder has video files, and the folders in it."""
        try:
            with os.scandir(folder) as entries:
                seen = list(islice(entries, self._left))
        except OSError:  # it is only for a hint
            return False, []
        self._left -= len(seen)
        seen = [entry for entry in seen if not entry.name.startswith(".")]
        is_found = any(is_video_name(entry.name) and _is(entry.is_file) for entry in seen)
        return is_found, sorted(entry.path for entry in seen if _is(entry.is_dir))

    def finds_videos(self, folder: str, depth: int) -> bool:
        is_found, below = self(folder)
        return is_found or (depth > 0 and any(self.finds_videos(one, depth - 1) for one in below))


def _stem(path: str) -> str:
    """A video's name without folder and ending, so that sets re-encoded to mp4 are found too."""
    name = os.path.basename(path)
    return os.path.splitext(name)[0] if is_video_name(name) else name


def _plain(text: str) -> str:
    # Copies of Kinetics have "tying_knot_(not_on_a_tie)", "tying knot (not on a tie)", ...
    return "".join(filter(str.isalnum, text)).casefold()


def _why_no_frames(files: Sequence[tuple[str, bool]], *, sure: bool) -> str | None:
    """Why the files of a folder are not the frames of a video; None if they are.

    "" if nobody would expect frames: a single image, or video files beside them.
    """
    images = sum(is_image_name(path) for path, _ in files)
    if images < 2 or any(is_video_name(path) for path, _ in files):
        return ""
    try:
        frames = frames_among(os.path.basename(path) for path, is_there in files if is_there)
    except UnreadableError as error:
        return str(error)
    if len(frames) < 2:
        return ""
    missing = num_missing(frames.numbers)
    if sure or len(frames) >= missing:
        return None
    return f"{missing} numbers between those of its {len(frames)} images are missing"


def _folders_below(folder: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield each folder with its files, as (path, True), and broken links, as (path, False).

    Each folder is visited once, even if links form a loop: under its own name if it is below the
    folder, else under that of the first link to it.
    """
    visited: set[tuple[int, int]] = set()
    waiting, links = [folder], list[str]()
    while waiting or links:
        current = waiting.pop() if waiting else links.pop(0)
        status = os.stat(current)
        if (status.st_dev, status.st_ino) in visited:
            continue
        visited.add((status.st_dev, status.st_ino))
        entries = _entries(current)
        folders = [entry for entry in entries if _is(entry.is_dir)]
        waiting += [entry.path for entry in reversed(folders) if not entry.is_symlink()]
        links += [entry.path for entry in folders if entry.is_symlink()]
        kinds = ((entry, _is(entry.is_file)) for entry in entries)
        yield current, [(e.path, there) for e, there in kinds if there or _is_dangling(e)]


def _entries(folder: str) -> list[os.DirEntry[str]]:
    """The entries of a folder except hidden ones, sorted by name."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda entry: entry.name)


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind; False if its link leads to itself or access is denied."""
    try:
        return kind()
    except OSError:
        return False


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
