"""What lies in a folder of videos: which files there are, and where a named one is.

A folder of frames is a video here as a file is, unless single images are asked for.
"""

import os
from collections.abc import Callable, Iterator, Sequence
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

# What a list of videos may be; frames of videos, by the million, are not remembered
Images = Literal["frames", "stills"]
_TEXT_SUFFIXES = (".csv", ".json", ".txt")


class VideoTree:
    """The videos and lists below a folder, found by one walk. Hidden files are no part of it."""

    def __init__(self, folder: str | Path, *, images: Images | None = None) -> None:
        """Walk the folder.

        ``images``: whether numbered images are the frames of a video, a folder each, or each image
        is a still video. By default they are frames where at least half of the numbers are there.

        Raises FileNotFoundError: it does not exist; ValueError: it is no folder, or one below it
        cannot be read.
        """
        self.folder = str(folder)
        self.is_sure = images == "frames"
        self.videos: list[str] = []  # paths, joined to the folder, in the order of their names
        self.texts: list[str] = []  # the same of csv, json and txt files
        self.num_others = 0  # files of other kinds
        self.num_folders = 0  # of frames, among the videos
        self.num_images = 0  # of these, images that are taken for no frames
        self.no_frames: list[tuple[str, str]] = []  # folders of images that are no video, and why
        self.dangling: list[str] = []  # links named like videos, to files that are not there
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
                    self.num_images += is_image_name(path)
        self._by_stem: dict[str, list[str]] = {}
        for path in self.videos:
            self._by_stem.setdefault(_stem(path), []).append(path)

    @property
    def folders_without_videos(self) -> list[str]:
        """The names of folders right in this one, and of links to nothing, that hold no video."""
        start = len(os.path.join(self.folder, ""))
        used = {path[start:].split(os.sep)[0] for path in (*self.videos, *self.dangling)}
        return sorted(
            entry.name
            for entry in _entries(self.folder)
            if entry.name not in used and (_is(entry.is_dir) or _is_dangling(entry))
        )

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


def _why_no_frames(files: Sequence[tuple[str, bool]], *, sure: bool) -> str | None:
    """Why files of one folder are not the frames of a video, None where they are; "" where nobody
    takes them for such: a single image, or files of video beside them."""
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
    return f"{missing} of the numbers between its {len(frames)} images are missing"


def _folders_below(folder: str) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Yield each folder with its regular files and True, its links to nothing and False.

    Each folder is gone through once, even where links make a loop: under its own name where it has
    one here, else under that of the first link to it.
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
    """What lies in a folder, apart from hidden files, in the order of the names."""
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise ValueError(f"{shown(folder)} cannot be read: {error.strerror}") from error
    return sorted(found, key=lambda entry: entry.name)


def _is(kind: Callable[[], bool]) -> bool:
    """Whether an entry is of a kind: none, where its link leads to itself, or where nobody may
    look."""
    try:
        return kind()
    except OSError:
        return False


def _is_dangling(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)
