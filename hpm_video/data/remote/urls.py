"""Names of lists and videos that are elsewhere: ``s3://bucket/train.csv``, ``https://host/a.mp4``.

They are kept as they are written: `pathlib` and `os.path` would make ``s3:/bucket`` of them.
"""

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from hpm_video.data.video.source import IN_TAR

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://.", re.DOTALL)
_QUERY = re.compile(r"(https?://[^?#]*)[?#].*", re.DOTALL | re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Whether a path is elsewhere, for fsspec to fetch."""
    return isinstance(path, str) and _URL.match(path) is not None


def joined(folder: str, name: str) -> str:
    """The path of a list's ``name``, either of which may be a URL."""
    if is_url(name):
        return name
    if is_url(folder) and "./" in name:  # object stores know no ".."
        scheme, _, rest = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}"
    return os.path.join(folder, name)


def without_query(url: str) -> str:
    """A URL without what a web server is asked beside the file."""
    match = _QUERY.fullmatch(url)
    return url if match is None else match[1]


def folder_of(url: str) -> str:
    """The URL of the folder of a URL."""
    return without_query(url).rpartition("/")[0]


def name_of(url: str) -> str:
    """The name of the file of a URL."""
    return without_query(url).rpartition("/")[2]


def split_tar(url: str) -> tuple[str, str] | None:
    """The tar of a URL and the name of a video in it, "" for the tar's index; None for others."""
    if url.endswith("/"):
        return url[:-1], ""
    match = IN_TAR.search(without_query(url))
    return None if match is None else (url[: match.end() - 1], url[match.end() :])


def check_is_local(list_: str | Path, videos: Iterable[str] = (), *, job: str) -> None:
    """Raise ValueError where a list or a video that a job works on is a URL."""
    if is_url(list_):
        raise ValueError(
            f"list ({list_}) must be on this machine for {job}: copy it (aws s3 cp, curl -O); "
            f"--root {folder_of(str(list_))} says where its videos are"
        )
    for url in filter(is_url, videos):
        raise ValueError(
            f"video ({url}) must be on this machine for {job}: copy all (aws s3 sync, wget), and "
            "name their folder by --root"
        )


def system_of(url: str) -> tuple[str, type]:
    """The scheme of a URL and what fsspec has for it, of which no instance is made: some connect.

    Raises ValueError: none of that name is known, or its package is not installed.
    """
    from fsspec import get_filesystem_class  # noqa: PLC0415 - only where there are URLs

    match = _URL.match(url)
    assert match is not None
    try:
        return match[1], get_filesystem_class(match[1])
    except ImportError as error:
        raise ValueError(
            f"{match[1]}:// must have its package for {url}: {error}; pip install "
            "'hpm_video[remote]' has those for s3://, gs:// and https://"
        ) from error
    except ValueError as error:
        raise ValueError(f"{match[1]}:// must be one that fsspec knows for {url}") from error
