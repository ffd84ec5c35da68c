"""Lists at URLs: local copies, with the index and class names beside them.

They are fetched anew each time, as lists may change, and deleted when this process ends.
"""

import os
import tempfile
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hpm_video.data.remote.cache import Cache
from hpm_video.data.remote.fetching import NOT_FETCHED, fetch_each
from hpm_video.data.remote.urls import folder_of, name_of
from hpm_video.data.video.frames import NO_SUCH_FILE
from hpm_video.runtime.files import write_csv

_MOST_BYTES = 2**36  # limit for a list and each file beside it


def copy_list(url: str, rows: Iterable[Mapping[str, str]] | None = None) -> Path:
    """Make a local copy of a list. ``rows``: its content, if the URL names tars.

    Raises FileNotFoundError or ValueError, naming the URL.
    """
    name = name_of(url)
    wanted = [f"{folder_of(url)}/classes.txt"]
    if rows is None:
        wanted = [url, f"{folder_of(url)}/{name}.index", *wanted]
    folder = Path(tempfile.mkdtemp(dir=_copies().name))
    own = Cache(folder, _MOST_BYTES)
    for found in fetch_each(wanted, str, own=own):
        if found.held is not None:
            os.replace(found.held.path, folder / name_of(found.item))
            found.held.close()
        elif found.item != url and not found.reason.startswith(NOT_FETCHED):
            continue  # S3 reports missing files as forbidden to users who may not list
        elif found.reason == NO_SUCH_FILE:
            raise FileNotFoundError(f"{url} does not exist (expected a list of videos)")
        else:
            raise ValueError(f"{found.item} {found.reason}")
    if rows is None:
        return folder / name
    written = folder / f"{name}.csv"
    write_csv(written, ("path", "label"), ((row["path"], row["label"]) for row in rows))
    return written


def name_urls(text: Any, copies: Iterable[tuple[str, Path]]) -> str:
    """A message with the paths of copies replaced by the URLs of the lists."""
    text = str(text)
    for url, copy in copies:
        text = text.replace(str(copy), url)
        text = text.replace(str(copy.parent), folder_of(url))
    return text


@cache
def _copies() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="hpm_video_lists_")
