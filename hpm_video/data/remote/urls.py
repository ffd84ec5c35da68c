"""Names of remote lists and videos: ``s3://bucket/train.csv``, ``https://host/a.mp4``.

They are kept as strings: `pathlib` and `os.path` would turn them into ``s3:/bucket``.
"""

import os
import posixpath
import re
from collections.abc import Iterable
from pathlib import Path

from hpm_video.data.video.part import IN_TAR

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://.", re.DOTALL)
_QUERY = re.compile(r"(https?://[^?#]*)[?#].*", re.DOTALL | re.IGNORECASE)


def is_url(path: str | Path) -> bool:
    """Whether a path is a URL, to be fetched with fsspec."""
    return isinstance(path, str) and _URL.match(path) is not None


def joined(folder: str, name: str) -> str:
    """Join a folder and a list's ``name``, either of which may be a URL."""
    if is_url(name):
        return name
    if is_url(folder) and "./" in name:  # object stores do not resolve ".."
        scheme, _, rest = folder.partition("://")
        return f"{scheme}://{posixpath.normpath(posixpath.join(rest, name))}"
    return os.path.join(folder, name)


def without_query(url: str) -> str:
    """A URL without its query."""
    match = _QUERY.fullmatch(url)
    return url if match is None else match[1]


def folder_of(url: str) -> str:
    """The URL of the folder of a URL's file."""
    return without_query(url).rpartition("/")[0]


def name_of(url: str) -> str:
    """The file name in a URL."""
    return without_query(url).rpartition("/")[2]


def split_tar(url: str) -> tuple[str, str] | None:
    """The tar of a URL and the name of a video in it ("": the tar's index); None for other URLs."""
    if url.endswith("/"):
        return url[:-1], ""
    match = IN_TAR.search(without_query(url))
    return None if match is None else (url[: match.end() - 1], url[match.end() :])


def check_is_local(list_: str | Path, videos: Iterable[str] = (), *, job: str) -> None:
    """Raise ValueError if a list or video is a URL, which ``job`` does not support."""
    if is_url(list_):
        raise ValueError(
            f"list ({list_}) must be on this machine for {job}; copy it (aws s3 cp, curl -O), and "
            f"give the folder of its videos with --root {folder_of(str(list_))}"
        )
    for url in filter(is_url, videos):
        raise ValueError(
            f"video ({url}) must be on this machine for {job}; copy all videos (aws s3 sync, "
            "wget), and give their folder with --root"
        )


def system_of(url: str) -> tuple[str, type]:
    """The scheme of a URL and its fsspec class. No instance is created, as some connect at once.

    Raises ValueError if the scheme is unknown or its package is not installed.
    """
    from fsspec import get_filesystem_class  # noqa: PLC0415 - only where there are URLs

    match = _URL.match(url)
    assert match is not None
    try:
        return match[1], get_filesystem_class(match[1])
    except ImportError as error:
        raise ValueError(
            f"{match[1]}:// needs a package for {url}: {error}; for s3://, gs:// and https:// run "
            "`pip install 'hpm_video[remote]'`"
        ) from error
    except ValueError as error:
        raise ValueError(f"{match[1]}:// ({url}) must be a protocol that fsspec knows") from error
