"""Finds the videos in a WebDataset tar from its headers alone.

Files of one sample share their name up to its first dot, and are adjacent: ``KEY.mp4``,
``KEY.json``, ``KEY.txt``, ``KEY.cls``. Tars may come from anyone, so list them in a process that
may hang or crash.
"""

from __future__ import annotations

import os
import re
import tarfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import open_regular, parse_json
from hpm_video.runtime.replies import answer

CLASS = "cls"  # WebDataset's ending for the class of a sample
# Endings of videos
VIDEO_SUFFIX = (
    r"\.(?:3g2|3gp|asf|avi|divx|f4v|flv|gif|h264|hevc|m2ts|m2v|m4v|mjpeg|mjpg|mkv|mov|mp4|mpe|mpeg"
    r"|mpg|mts|mxf|ogg|ogm|ogv|qt|rm|rmvb|ts|vob|webm|wmv|y4m)"
)
_VIDEO = re.compile(rf".*{VIDEO_SUFFIX}", re.IGNORECASE | re.DOTALL)
# A sample's key and a file's ending, as webdataset splits a name; hidden files have neither
_NAME = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)
_COMPRESSED = {
    b"\x1f\x8b": "gzip -d", b"BZh": "bzip2 -d", b"\xfd7zXZ\0": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d", b"\x04\x22\x4d\x18": "lz4 -d", b"PK\3\4": "unzip",
}  # fmt: skip
_BLOCK = 512
_MOST_TOLD = 2**20  # bytes of a label file
_MOST_AFTER = 2**20  # bytes checked after the end of a tar


class Source(Protocol):
    """The bytes of a tar, as an open file."""

    def read(self, count: int, /) -> bytes: ...
    def seek(self, place: int, /) -> int: ...
    def tell(self) -> int: ...


@answer
@dataclass(frozen=True)
class Listing:
    """The videos in a tar, in tar order."""

    num_bytes: int  # of the tar, with its modification time
    mtime_ns: int
    num_without: int  # samples without a video
    names: list[str]
    starts: npt.NDArray[np.uint64]  # (number of videos,) offset, and size in bytes
    sizes: npt.NDArray[np.uint64]
    labels: list[str]  # of each video's sample, "" for none


def list_tar(tar: str, label: str = CLASS) -> Listing | str:
    """Find the videos in a tar, or return a line that says why it cannot be used.

    ``label``: source of labels, either an ending (``cls``, ``txt``) or ``json.FIELD``.
    """
    try:
        with open_regular(tar) as file:
            status = os.fstat(file.fileno())
            return list_source(file, status.st_size, status.st_mtime_ns, label)
    except OSError as error:
        return f"{tar} cannot be read: {error.strerror}"
    except (tarfile.TarError, ValueError, OverflowError) as error:
        text = str(error)
        return text if text.startswith(tar) else f"{tar} {text}"


def list_source(file: Source, num_bytes: int, mtime_ns: int, label: str = CLASS) -> Listing:
    """See `list_tar`. Raises TarError, ValueError or OverflowError, without naming the tar."""
    ending, _, path = label.partition(".")
    samples = _Samples()
    for member in _members(file, num_bytes):
        # GNU tar adds this prefix when it packs a folder
        name = member.name.removeprefix("./")
        if (found := _NAME.fullmatch(name)) is None:
            continue
        samples.add(name, found[1], member)
        if found[2] == ending:
            if member.size > _MOST_TOLD:
                raise ValueError(f"must have labels of at most 1 MiB: {_shown(name)} is larger")
            file.seek(member.offset_data)
            samples.labels[-1] = _label(name, file.read(member.size), path)
    if not samples.names:
        raise ValueError("has no videos (files that end in .mp4, .webm or the like)")
    return Listing(
        num_bytes,
        mtime_ns,
        len(set(range(len(samples.labels))).difference(samples.of)),
        samples.names,
        np.array(samples.starts, dtype=np.uint64),
        np.array(samples.sizes, dtype=np.uint64),
        [samples.labels[sample] for sample in samples.of],
    )


@dataclass
class _Samples:
    """The samples of a tar, collected file by file."""

    names: list[str] = field(default_factory=list)  # of videos
    starts: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    of: array[int] = field(default_factory=lambda: array("Q"))  # sample of each video
    labels: list[str] = field(default_factory=list)  # label of each sample
    _keys: set[str] = field(default_factory=set)
    _key: str | None = None  # of the current sample
    _files: set[str] = field(default_factory=set)

    def add(self, name: str, key: str, member: tarfile.TarInfo) -> None:
        """Add a file, which belongs to the current sample or starts a new one."""
        if key == self._key and name in self._files:
            raise ValueError(f"must have each name once, but {_shown(name)} occurs again")
        if key != self._key:
            if key in self._keys:
                raise ValueError(
                    f"must have the files of a sample side by side, but {_shown(name)} is apart "
                    "from the others, or occurs again; pack the folder with `tar --sort=name`"
                )
            self._keys.add(key)
            self._key, self._files = key, set()
            self.labels.append("")
        self._files.add(name)
        if _VIDEO.fullmatch(name):
            self.names.append(name)
            self.starts.append(member.offset_data)
            self.sizes.append(member.size)
            self.of.append(len(self.labels) - 1)


def _members(file: Source, num_bytes: int) -> Iterator[tarfile.TarInfo]:
    """The files in a tar. Raises ValueError if it is no tar, truncated, or names paths outside."""
    head = file.read(_BLOCK)
    file.seek(0)
    for mark, command in _COMPRESSED.items():
        if head.startswith(mark):
            raise ValueError(f"is compressed, but must be a plain tar; unpack it with `{command}`")
    try:
        tar = tarfile.TarFile(
            fileobj=cast("IO[bytes]", file), encoding="utf-8", errors="surrogateescape"
        )
    except tarfile.ReadError as error:
        raise ValueError("is empty" if not num_bytes else "is not a tar") from error
    place = -1
    while True:
        try:
            member = tar.next()
        except tarfile.ReadError as error:
            raise ValueError(_cut_off(tar.offset, num_bytes)) from error
        if member is None:
            break
        tar.members.clear()  # type: ignore[attr-defined]  # it would keep all of them
        if tar.offset <= place:  # negative size: the loop would never end
            raise ValueError(_cut_off(tar.offset, num_bytes))
        place = tar.offset
        _check(member, num_bytes)
        if member.isreg():
            yield member
    # tarfile takes anything but a header for the end
    file.seek(tar.offset)
    if file.read(_BLOCK) != bytes(_BLOCK):
        raise ValueError(_cut_off(tar.offset, num_bytes))
    if file.read(_MOST_AFTER).strip(b"\0"):
        raise ValueError(
            f"must end at its end mark, at byte {tar.offset}, but more follows, as in joined tars"
        )


def _check(member: tarfile.TarInfo, num_bytes: int) -> None:
    """Raise ValueError for an entry that is truncated or may point to another file."""
    name, shown = member.name, _shown(member.name)
    if is_outside(name):
        raise ValueError(f"must only have names inside its own folder, but {shown} leads outside")
    if member.issparse() or not (member.isreg() or member.isdir()):
        raise ValueError(
            f"must have regular files only, but {shown} is "
            f"{'sparse' if member.issparse() else 'a link'}; pack the targets of links with "
            "`tar --dereference --hard-dereference`"
        )
    if member.size < 0 or member.offset_data + member.size > num_bytes:
        raise ValueError(_cut_off(member.offset_data, num_bytes))


def is_outside(name: str) -> bool:
    """Whether a name in a tar leads outside of it."""
    return name.startswith("/") or ".." in name.split("/")


def _label(name: str, content: bytes, path: str) -> str:
    """The label in a file; for JSON, the field at ``path``, with names separated by dots."""
    if not path:
        return content.decode("utf-8", "surrogateescape").strip()
    try:
        value: Any = parse_json(content)
    except ValueError as error:
        raise ValueError(f"must have JSON in {_shown(name)}: {error}") from error
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(
            f"must have a text or a number as {path} of {_shown(name)}, but has several"
        )
    return "" if value is None else str(value).strip()


def _cut_off(place: int, num_bytes: int) -> str:
    return f"is cut off or damaged at byte {place} of {num_bytes}; create it again"


def _shown(name: str) -> str:
    return printable(name)[:160]
