"""Packs encoded videos into tars in `webdataset` format: ``KEY.mp4``, ``.json``, ``.cls``.

Videos are encoded into a hidden folder. Once all videos of a tar exist, the tar is written and they
are deleted, so there are never many small files.
"""

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hpm_video.data.prepare.verdict import Verdict
from hpm_video.data.video.source import open_bytes
from hpm_video.data.video.tar_index import keep_index
from hpm_video.data.video.tar_listing import list_tar
from hpm_video.runtime.files import whole_file

_STAGED = ".staged"
_FOUND = ("num_frames", "fps", "width", "height")  # fields of a verdict stored in the JSON


@dataclass(frozen=True)
class Packed:
    """A video for a tar."""

    path: str  # current path: a file, or a member of the existing tar
    name: str  # in the tar
    row: Mapping[str, str]  # of the list
    verdict: Verdict


@dataclass(frozen=True)
class Shards:
    """Assigns videos to tars: a fixed number each, in list order."""

    folder: Path
    stem: str  # prefix of their names
    size: int  # videos per tar

    def staged(self, names: Sequence[str]) -> list[str]:
        """Where videos are encoded, relative to the folder; equal names are one video."""
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        return [os.path.join(_STAGED, f"{numbers[name]:09d}.mp4") for name in names]

    def shard(self, staged: str) -> int:
        """The number of the tar for a video."""
        return int(Path(staged).stem) // self.size

    def tar(self, number: int) -> Path:
        return self.folder / f"{self.stem}-{number:05d}.tar"

    def name(self, staged: str) -> str:
        """The path of a video in its tar, relative to the folder."""
        return f"{self.tar(self.shard(staged)).name}/{os.path.basename(staged)}"

    def pack(self, number: int, videos: Iterable[Packed]) -> None:
        """Write or replace a tar, delete it if it has no videos, and delete the staged files.

        Raises ValueError if it cannot be written.
        """
        videos, path = list(videos), self.tar(number)
        if videos:
            with whole_file(path) as temporary, tarfile.open(temporary, "w") as tar:
                for video in videos:
                    _add(tar, video)
            listing = list_tar(str(path))
            if isinstance(listing, str):
                raise ValueError(listing)
            keep_index(str(path), listing)
        else:
            path.unlink(missing_ok=True)
        for video in videos:
            with suppress(FileNotFoundError):
                os.unlink(self.folder / _STAGED / video.name)

    def finish(self) -> None:
        """Remove the folder of staged files if it is empty."""
        with suppress(OSError):  # another part of the job may still use it
            (self.folder / _STAGED).rmdir()


def _add(tar: tarfile.TarFile, video: Packed) -> None:
    key, label = Path(video.name).stem, video.row.get("label", "").strip()
    found = {name: getattr(video.verdict, name) for name in _FOUND}
    about = {"source": video.row["path"], "label": label or None, **found}
    with open_bytes(video.path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        _add_file(tar, video.name, file, size)
    _add_text(tar, f"{key}.json", json.dumps(about))
    if label.isdecimal():  # webdataset expects a number
        _add_text(tar, f"{key}.cls", label)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    _add_file(tar, name, io.BytesIO(text.encode()), len(text.encode()))


def _add_file(tar: tarfile.TarFile, name: str, file: IO[bytes], size: int) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = size, 0o644
    tar.addfile(about, file)
