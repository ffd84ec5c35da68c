"""What the name and the first bytes of a file say, without a decoder.

Sizes in them may be any: nothing is read that the file does not hold.
"""

import os
import re
from collections.abc import Iterator
from typing import BinaryIO

from hpm_video.data.video.source import open_bytes
from hpm_video.runtime.reading import open_regular

# In the name of one image, FFmpeg takes these for a pattern of the names of others
_PATTERNS = re.compile(r"[%*?{]")
_EBML = b"\x1aE\xdf\xa3"  # with which Matroska and WebM begin
_MOST_BOXES = 2**20  # of an mp4, which are looked at one after the other


def has_plain_name(path: str) -> bool:
    """Whether FFmpeg takes a name for that of one file, as it is."""
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return False
    return not _PATTERNS.search(path)


def is_playlist(path: str) -> bool:
    """Whether a file names others, which FFmpeg would open, from anywhere."""
    try:
        with open_bytes(path) as file:
            head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    return head.startswith((b"#EXTM3U", b"ffconcat")) or b"<MPD" in head


def is_animation(path: str) -> bool:
    """Whether a PNG or WebP file holds more than one picture."""
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
    """Whether every FFmpeg takes a file for the mp4 or Matroska file that its table calls it.

    That is where it begins with the mark of one: text, of which playlists and scripts are made,
    must not. Other mp4 files, of old cameras, may well be what they are called.
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
    """Whether an mp4 lacks the box without which nothing in it can be found."""
    with open_bytes(path) as file:
        if file.read(8)[4:] not in (b"ftyp", b"mdat", b"wide", b"free"):
            return False
        return not any(name in (b"moov", b"moof") for name in _boxes(file))


def num_mp4s(path: str) -> int:
    """How many mp4 files lie in one, one after the other: FFmpeg reads the first."""
    with open_bytes(path) as file:
        return sum(name == b"ftyp" for name in _boxes(file))


def num_missing_bytes(path: str) -> int:
    """How many bytes of an AVI or Matroska file are missing, 0 where its header does not tell."""
    with open_bytes(path) as file:
        head, size = file.read(256), file.seek(0, os.SEEK_END)
    end = size
    if head.startswith(b"RIFF") and head[4:8] != b"\xff" * 4:  # which a stream begins with
        end = 8 + int.from_bytes(head[4:8], "little")
    elif head.startswith(_EBML):
        start, length = _ebml_size(head, len(_EBML))  # of the header, which the segment follows
        segment = start + (length or 0)
        start, length = _ebml_size(head, segment + 4)
        if head[segment : segment + 4] == b"\x18S\x80g" and length is not None:
            end = start + length
    return max(0, end - size)


def _ebml_size(head: bytes, place: int) -> tuple[int, int | None]:
    """Where an element's data begin, and their length, None where it is left open."""
    width = 9 - int.from_bytes(head[place : place + 1], "big").bit_length()
    value = int.from_bytes(head[place : place + width], "big")
    most = (1 << 7 * width) - 1
    return place + width, None if value & most == most else value & most


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of an mp4's boxes, as many as fit into it."""
    place, end = 0, file.seek(0, os.SEEK_END)
    for _ in range(_MOST_BOXES):
        if place >= end:  # perhaps past what a place in a file can be
            return
        file.seek(place)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if len(header) < 8:
            return
        yield header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # the last one, or no box
            return
        place += size
