"""Finds videos that are not where their list says, and how to correct the list.

Absolute paths stop leading to the videos when these are moved, or on another machine.
"""

import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.remote.urls import is_url
from hpm_video.data.video.tar_listing import VIDEO_SUFFIX
from hpm_video.runtime.files import shell_path

_MOST_FOLDERS = 100  # searched inside each folder
_MOST_ENTRIES = 10_000  # of a folder, in which folders are looked for
_NUM_TRIED = 3  # videos whose places are searched; the others only confirm a place
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_ENDS_LIKE_A_VIDEO = re.compile(rf".*{VIDEO_SUFFIX}", re.IGNORECASE | re.DOTALL)


class Moved(NamedTuple):
    """``new`` in place of ``old`` (both with a final separator) leads to ``found`` videos."""

    old: str
    new: str
    found: int
    also: str = ""  # another folder that would do


def is_absolute(name: str) -> bool:
    """Whether a list's path starts at a root, be it that of a Windows machine."""
    return os.path.isabs(name) or _WINDOWS.match(name) is not None


def root_of(names: Sequence[str], root: str) -> str | None:
    """A folder that contains one of these files, above or beside a root or the working folder."""
    above = Path(root).parents
    near = _folders_near([Path.cwd(), Path(root), Path(root).parent], above)
    return next((folder for folder in near if any(_is_in(folder, name) for name in names)), None)


def find_moved(names: Sequence[str], root: str) -> Moved | None:
    """Where most of these absolute paths lead if the start of each is replaced; None if nowhere."""
    if is_url(root):
        return None
    tried = names[:: -(-len(names) // _NUM_TRIED)]
    places: dict[tuple[str, str], int] = {}
    for folder in _folders_near([Path.cwd(), Path(root)]):
        for name in tried:
            ends = [m.end() for m in re.finditer(r"[/\\]+" if _WINDOWS.match(name) else "/+", name)]
            end = next((end for end in ends if _is_in(folder, name[end:])), None)
            if end is not None:
                old, new = _without_shared_end(name[:end], os.path.join(folder, ""))
                mapped = (name[len(old) :] for name in names if name.startswith(old))
                places[old, new] = sum(_is_in(new, rest) for rest in mapped)
    (old, new), found = max(places.items(), key=lambda item: item[1], default=(("", ""), 0))
    if not found or 2 * found < len(names):
        return None
    also = (other for (_, other), number in places.items() if number == found and other != new)
    return Moved(old, new, found, next(also, ""))


def way_to_missing(file: str | Path, names: Sequence[str], root: str) -> str:
    """The same for a checked list of which no video exists; relative paths may need another root.

    Empty if there is no advice.
    """
    if is_absolute(names[0]):
        return way_to_moved(file, names, root, is_checked=True)
    if (found := root_of(names, root)) is None:
        return ""
    return f"hpm-video data check {shell_path(file)} --root {shell_path(found)}"


def way_to_moved(
    file: str | Path, names: Sequence[str], root: str, *, is_checked: bool = False
) -> str:
    """What to do about a list whose absolute paths ``names`` do not exist, as the end of a message.

    ``is_checked``: the list says that its videos are missing, so it must be checked again.
    """
    moved = find_moved(names, root)
    if moved is None:
        return (
            "they were not found near the list or the current folder; correct the paths, or make a "
            "new list with hpm-video data list"
        )
    also = f" (and below {moved.also})" if moved.also else ""
    counts = f"{moved.found} of {len(names)}"
    said = f"found {counts} below {moved.new}{also} instead of {moved.old}: "
    if not _can_be_replaced(moved, names):
        return f"{said}replace that in the list"
    output = _free_name(Path(file))
    pattern = re.sub(r"[.\[()*+?{^$|\\#]", r"\\\g<0>", moved.old)
    text = re.sub(r"[\\&#]", r"\\\g<0>", moved.new)
    # Only where a path starts: /data/ is also a part of /mnt/data/
    script = shlex.quote(rf"""s#(^|[",;[:blank:]]){pattern}#\1{text}#""")
    command = f"sed -E {script} {shell_path(file)} > {shell_path(output)}"
    return f"{said}{command}" + f" && hpm-video data check {shell_path(output)}" * is_checked


def _is_in(folder: str, name: str) -> bool:
    return bool(name) and os.path.exists(as_on_disk(folder, name))


def _folders_near(near: Sequence[Path], others: Sequence[Path] = ()) -> Iterator[str]:
    """These folders and then those inside the first ones, each once."""
    seen: set[str] = set()
    inside = chain.from_iterable(map(_folders_in, near))
    for folder in chain(map(str, (*near, *others)), inside):
        if (real := os.path.realpath(folder)) not in seen:
            seen.add(real)
            yield folder


def _folders_in(folder: Path) -> Iterator[str]:
    with suppress(OSError), os.scandir(folder) as entries:
        some = islice(entries, _MOST_ENTRIES)
        shown = (entry.path for entry in some if entry.name[0] != "." and entry.is_dir())
        yield from sorted(islice(shown, _MOST_FOLDERS))


def _without_shared_end(old: str, new: str) -> tuple[str, str]:
    """The folders above those that have the same names at the end of both."""
    match = re.fullmatch(r"(.+[/\\])([^/\\]+)[/\\]+", old, re.DOTALL)
    above, last = os.path.split(new.rstrip("/"))
    if match is None or match[2] != last or above == "/":
        return old, new
    return _without_shared_end(match[1], os.path.join(above, ""))


def _can_be_replaced(moved: Moved, names: Sequence[str]) -> bool:
    """Whether replaced text keeps rows readable, whatever the list's format and quotes."""
    if not f"{moved.old}{moved.new}".isprintable() or '"' in moved.old:
        return False
    added = set(moved.new) - set(moved.old)
    if " " in added and not all(map(_ENDS_LIKE_A_VIDEO.fullmatch, names)):
        return False  # only a video's ending tells where a path with spaces ends
    return not added & set(',;"')


def _free_name(file: Path) -> Path:
    names = (f"{file.stem}_here{number or ''}{file.suffix}" for number in count())
    return next(other for name in names if not (other := file.with_name(name)).exists())
