"""Checks a file's name and first bytes, without a decoder.

Sizes in headers may have any value: nothing is read beyond the end of the file.
"""

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from hpm_video.data.video.source import open_bytes
from hpm_video.runtime.reading import open_regular

# FFmpeg interprets these in the name of an image as a pattern for other names
_PATTERNS = re.compile(r"[%*?{]")
_EBML = b"\x1aE\xdf\xa3"  # start of Matroska and WebM files
_MOST_BOXES = 2**20  # of an mp4, which are scanned one by one


def has_plain_name(path: str) -> bool:
    """Whether FFmpeg takes a name literally, for one file."""
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return False
    return not _PATTERNS.search(path)


def is_playlist(path: str) -> bool:
    """Whether a file refers to others, which FFmpeg would open from anywhere."""
    try:
        with open_bytes(path) as file:
            head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    return head.startswith((b"#EXTM3U", b"ffconcat")) or b"<MPD" in head


def is_animation(path: str) -> bool:
    """Whether a PNG or WebP file contains more than one picture."""
    try:
        with open_regular(path) as file:
            head = file.read(4096)
    except (OSError, ValueError):
        return False
    if head.startswith(b"\x89PNG"):
        return b"acTL" in head.partition(b"IDAT")[0]
    is_extended = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and len(head) > 20
    return is_extended and bool(head[20] & 2)


def begins_as(path: str, container: str) -> bool:
    """Whether every FFmpeg version detects a file as the mp4 or Matroska file that its table says.

    That requires the format's signature at the start, as playlists and scripts are text. Files of
    old cameras may be valid mp4 without it.
    """
    with open_bytes(path) as file:
        head = file.read(256)
    if container.startswith("mov"):
        return head[:1] == b"\0" and head[4:8] == b"ftyp"
    if container.startswith("matroska") and head.startswith(_EBML):
        start, length = _ebml_size(head, len(_EBML))
        kinds = head[start : start + (length or 0)]
        return b"matroska" in kinds or b"webm" in kinds
    return False


def lacks_index(path: str) -> bool:
    """Whether an mp4 lacks the box that locates its content."""
    with open_bytes(path) as file:
        if file.read(8)[4:] not in (b"ftyp", b"mdat", b"wide", b"free"):
            return False
        return not any(name in (b"moov", b"moof") for name in _boxes(file))


def num_mp4s(path: str) -> int:
    """How many mp4 files are concatenated in one; FFmpeg reads only the first."""
    with open_bytes(path) as file:
        return sum(name == b"ftyp" for name in _boxes(file))


def num_missing_bytes(path: str) -> int:
    """How many bytes an AVI or Matroska file lacks at its end; 0 if its header does not say."""
    with open_bytes(path) as file:
        head, size = file.read(256), file.seek(0, os.SEEK_END)
    end = size
    if head.startswith(b"RIFF") and head[4:8] != b"\xff" * 4:  # the size in streams
        end = 8 + int.from_bytes(head[4:8], "little")
    elif head.startswith(_EBML):
        start, length = _ebml_size(head, len(_EBML))  # the header; the segment follows it
        segment = start + (length or 0)
        start, length = _ebml_size(head, segment + 4)
        if head[segment : segment + 4] == b"\x18S\x80g" and length is not None:
            end = start + length
    return max(0, end - size)


def _ebml_size(head: bytes, place: int) -> tuple[int, int | None]:
    """The offset of an element's data and its length, None if that is unknown."""
    width = 9 - int.from_bytes(head[place : place + 1], "big").bit_length()
    value = int.from_bytes(head[place : place + width], "big")
    most = (1 << 7 * width) - 1
    return place + width, None if value & most == most else value & most


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of an mp4's boxes, up to the end of the file."""
    place, end = 0, file.seek(0, os.SEEK_END)
    for _ in range(_MOST_BOXES):
        if place >= end:  # may exceed any valid file offset
            return
        file.seek(place)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if len(header) < 8:
            return
        yield header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # the last box, or invalid data
            return
        place += size
