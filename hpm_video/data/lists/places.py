"""Paths of lists: files, tars, patterns for several tars, and URLs. Imports nothing slow."""

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from hpm_video.data.remote.urls import folder_of, is_url, without_query
from hpm_video.runtime.files import shell_path

_SHARDS = re.compile(
    r".*\.(tar|tgz|tbz2?|txz)(\.(gz|bz2|xz|zst|lz4|Z))?", re.IGNORECASE | re.DOTALL
)
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_shards(path: str | Path) -> bool:
    """Whether a list's path is a tar, or a pattern for several."""
    return _SHARDS.fullmatch(without_query(os.fspath(path))) is not None


def list_root(path: str | Path, root: str | Path | None) -> str:
    """The absolute folder or URL of a list's relative paths: ``root``, else the folder of the list.

    For tars it is always their own folder.
    """
    if is_shards(path):
        first = str(path).split("{")[0]
        return folder_of(first) if is_url(path) else os.path.abspath(os.path.dirname(first))
    if root is None and is_url(path):
        return folder_of(str(path))
    start = root if root is not None else Path(path).parent
    return str(start) if is_url(start) else os.path.abspath(start)


def list_exists(path: str | Path) -> bool:
    """Whether a list, or the first tar of a pattern, exists; always true for URLs."""
    if is_url(path):
        return True
    return (
        os.path.exists(next(expanded(os.fspath(path)))) if is_shards(path) else Path(path).exists()
    )


def folder_as_list(path: str | Path) -> str:
    """Refusal of a folder where a list of videos is expected."""
    name = Path(os.path.abspath(path)).name or "videos"
    return (
        f"{path} is a folder, not a list of videos: hpm-video data list --folder "
        f"{shell_path(path)} -o {shell_path(f'{name}.csv')} makes one"
    )


def list_stem(path: str | Path) -> str:
    """The name of a list without its ending, and without the numbers of a tar pattern."""
    stem = Path(path).stem
    return (_BRACES.sub("", stem).strip("-_. ") or "shards") if is_shards(path) else stem


def expanded(pattern: str) -> Iterator[str]:
    """The shell's brace expansion of {a,b} and {000..123}."""
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    if span := _RANGE.fullmatch(match[1]):
        first, last = map(int, span.groups())
        width = max(map(len, span.groups())) if "0" in (span[1][0], span[2][0]) else 0
        step = 1 if first <= last else -1
        texts: Iterable[str] = (f"{n:0{width}}" for n in range(first, last + step, step))
    elif "," in match[1]:
        texts = match[1].split(",")
    else:
        raise ValueError(f"{pattern} must have ranges or commas in braces, as in {{0000..0123}}")
    for text in texts:
        yield from expanded(f"{pattern[: match.start()]}{text}{pattern[match.end() :]}")
