"""What the first bytes and the tables of a file say about which decoder reads it right.

Opening a file with FFmpeg only to ask would cost as much as a tenth of decoding a clip.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

HEAD_BYTES = 4096
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MATROSKA = b"\x1a\x45\xdf\xa3"
# Left to torchcodec: frames there have times of their own, which it goes by
_TIMED = ("mp4", "matroska", "gif")
# Codecs decord's FFmpeg (of 2018) decodes; it has no AV1
_DECORD_MP4 = (b"avc1", b"avc3", b"hvc1", b"hev1", b"mp4v", b"vp09", b"jpeg", b"mjpa")
_DECORD_MATROSKA = (b"V_VP8", b"V_VP9")
_MOST_INDEX_BYTES = 64 * 2**20
_MOST_SAMPLES = 10**7
_Box = dict[bytes, memoryview]  # what is in a box by its name; the last one of several


def kind(head: bytes) -> str:
    """Return "mp4" (or QuickTime), "matroska" (or WebM), "gif" or "other" for the first bytes."""
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    if head.startswith(_MATROSKA):
        return "matroska"
    return "gif" if head.startswith(b"GIF8") else "other"


def why_not_torchcodec(head: bytes) -> str | None:
    """Why torchcodec may return other frames of this file than those asked for, else None."""
    return None if kind(head) in _TIMED else "neither mp4 nor Matroska"


def why_not_decord(file: BinaryIO, head: bytes) -> str | None:
    """Why decord does not read this file, or may return other frames than asked for; else None.

    It counts frames from the keyframe before, which goes wrong where frames that follow a keyframe
    in the file are shown before it, or where an edit list hides some.

    Args:
        file: open for reading bytes.
        head: its first 4096 bytes.
    """
    match kind(head):
        case "mp4":
            return _why_not_mp4(file)
        case "matroska":
            fit = any(codec in head for codec in _DECORD_MATROSKA)
            return None if fit else "Matroska, but neither VP8 nor VP9"
    return "neither mp4 nor WebM"


def lacks_index(file: BinaryIO) -> bool:
    """Whether a file of kind "mp4" was cut off before its index, without which it is unreadable."""
    return not any(name in (b"moov", b"moof") for name, _, _ in _top_boxes(file))


def _why_not_mp4(file: BinaryIO) -> str | None:
    for name, start, size in _top_boxes(file):
        if name == b"moov" and size <= _MOST_INDEX_BYTES:
            file.seek(start)
            moov = memoryview(file.read(size))
            try:
                return _why_not_index(moov, file.seek(0, 2))
            except (ValueError, struct.error, KeyError, IndexError):
                return "mp4 with an unusual index"
        if name == b"moof":
            break
    return "mp4 in fragments or without an index"


def _why_not_index(moov: memoryview, file_bytes: int) -> str | None:
    movie = _children(moov)
    if b"mvex" in movie:
        return "mp4 in fragments"
    for name, content in _boxes(moov):
        if name == b"trak":
            track = _children(content)
            media = _children(track[b"mdia"])
            if bytes(media[b"hdlr"][8:12]) == b"vide":
                return _why_not_track(movie, track, media, file_bytes)
    return "mp4 without a video"


def _why_not_track(movie: _Box, track: _Box, media: _Box, file_bytes: int) -> str | None:
    table = _children(_children(media[b"minf"])[b"stbl"])
    codec = bytes(table[b"stsd"][12:16])
    if codec not in _DECORD_MP4:
        return f"mp4 with {codec.decode('latin-1').strip()}"
    if _last_chunk(table) >= file_bytes:
        return "mp4 that is cut off"
    times = _presentation_times(table)
    if _hides_frames(movie, track, media, times):
        return "mp4 whose edit list hides frames"
    if b"stss" in table and b"ctts" in table:
        # QuickTime lists keyframes that need care apart
        lists = [table[name] for name in (b"stss", b"stps") if name in table]
        keys = np.concatenate([_numbers(numbers[8:], 1)[:, 0] for numbers in lists]) - 1
        # The earliest time that comes from each sample on: a keyframe's own, in a closed group
        earliest = np.minimum.accumulate(times[::-1])[::-1]
        if (earliest[keys] < times[keys]).any():
            return "open groups of pictures"
    return None


def _last_chunk(table: _Box) -> int:
    """Where the last run of samples begins in the file."""
    if b"co64" in table:
        return int(np.frombuffer(table[b"co64"][8:], ">u8").max(initial=0))
    return int(np.frombuffer(table[b"stco"][8:], ">u4").max(initial=0))


def _presentation_times(table: _Box) -> npt.NDArray[np.int64]:
    """When each sample is shown, (N,) in the file's order, in units of the track."""
    steps = _repeated(_numbers(table[b"stts"][8:], 2))
    times = np.cumsum(steps) - steps
    if b"ctts" in table:
        offsets = _repeated(_numbers(table[b"ctts"][8:], 2))
        # Unsigned at first, signed since: what would be huge is negative
        times += np.where(offsets >= 2**31, offsets - 2**32, offsets)
    return times


def _repeated(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The values of rows (how often, value), one after the other."""
    if runs[:, 0].sum() > _MOST_SAMPLES:
        raise ValueError("more samples than a video has")
    return np.repeat(runs[:, 1], runs[:, 0])


def _hides_frames(movie: _Box, track: _Box, media: _Box, times: npt.NDArray[np.int64]) -> bool:
    """Whether an edit list shows less than all frames."""
    if b"edts" not in track or len(times) == 0:
        return False
    edits = _children(track[b"edts"])[b"elst"]
    if edits[0] != 0:  # 64-bit times: rare
        return True
    shown = [(length, start) for length, start, _ in _numbers(edits[8:], 3) if start != 2**32 - 1]
    if len(shown) != 1:
        return True
    ((length, start),) = shown
    scale = _timescale(media[b"mdhd"]) / _timescale(movie[b"mvhd"])
    # Nothing before the first frame nor after the last one begins, up to rounding
    return bool(start > times.min() or start + (length + 1) * scale < times.max())


def _timescale(header: memoryview) -> int:
    (units,) = struct.unpack_from(">I", header, 20 if header[0] == 1 else 12)
    return int(units)


def _numbers(entries: memoryview, columns: int) -> npt.NDArray[np.int64]:
    """The rows of a table, of 32-bit numbers; `entries` begins behind its count."""
    count = len(entries) // (4 * columns) * columns
    return np.frombuffer(entries, ">u4", count).astype(np.int64).reshape(-1, columns)


def _children(content: memoryview) -> _Box:
    return dict(_boxes(content))


def _boxes(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The (name, content) of the boxes in a box."""
    place = 0
    while place + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, place)
        if size < 8:
            return
        yield name, content[place + 8 : place + size]
        place += size


def _top_boxes(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """The (name, start of content, size of content) of a file's boxes."""
    place = 0
    while True:
        file.seek(place)
        header = file.read(16)
        if len(header) < 8:
            return
        size, name = struct.unpack_from(">I4s", header)
        skip = 8
        if size == 1 and len(header) == 16:
            (size,) = struct.unpack_from(">Q", header, 8)
            skip = 16
        elif size == 0:
            size = file.seek(0, 2) - place
        if size < skip:
            return
        yield name, place + skip, size - skip
        place += size
