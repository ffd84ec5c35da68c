"""What the first bytes and the tables of a file say about which decoder reads it right.

Opening a file with FFmpeg only to ask would cost as much as a tenth of decoding a clip.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.readers import h264

HEAD_BYTES = 4096
_MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_MATROSKA = b"\x1a\x45\xdf\xa3"
# What decord and torchcodec are trusted with
_MP4_CODECS = (b"avc1", b"avc3", b"hvc1", b"hev1", b"mp4v", b"vp09", b"av01", b"jpeg", b"mjpa")
_MATROSKA_CODECS = (b"V_VP8", b"V_VP9", b"V_AV1")
_MOST_INDEX_BYTES = 64 * 2**20
_MOST_SAMPLES = 10**7
_UPRIGHT = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)  # matrix of a track
_KEYFRAME_BYTES = 4096  # enough to tell what kind it is
_Box = dict[bytes, memoryview]  # what is in a box by its name; the last one of several


def kind(head: bytes) -> str:
    """Return "mp4" (or QuickTime), "matroska" (or WebM) or "other" for the first bytes."""
    if head[4:8] in _MP4_BOXES:
        return "mp4"
    return "matroska" if head.startswith(_MATROSKA) else "other"


def why_not(file: BinaryIO, head: bytes, *, turns: bool = True) -> str | None:
    """Why decord and torchcodec do not read this file, or may return other frames than asked for.

    Frames without times of their own are counted, from a keyframe that is found by time. That goes
    wrong where frames that follow a keyframe in the file are shown before it, where an edit list
    hides or delays some, and where what is called a keyframe is none.

    ``file`` is open for reading bytes, and ``head`` its first 4096; ``turns``: whether the reader
    turns pictures as an mp4 asks for.
    Returns a few words, the same for all files of the sort, or None for one that is read right.
    """
    match kind(head):
        case "mp4":
            return _why_not_mp4(file, turns)
        case "matroska":
            fit = any(codec in head for codec in _MATROSKA_CODECS)
            return None if fit else "Matroska with a codec that WebM has not"
    return "neither mp4 nor WebM"


def lacks_index(file: BinaryIO) -> bool:
    """Whether a file of kind "mp4" was cut off before its index, without which it is unreadable."""
    return not any(name in (b"moov", b"moof") for name, _, _ in _top_boxes(file))


def _why_not_mp4(file: BinaryIO, turns: bool) -> str | None:
    for name, start, size in _top_boxes(file):
        if name == b"moov" and size <= _MOST_INDEX_BYTES:
            file.seek(start)
            moov = memoryview(file.read(size))
            try:
                return _why_not_index(file, moov, turns)
            except (ValueError, struct.error, KeyError, IndexError):
                return "mp4 with an unusual index"
        if name == b"moof":
            break
    return "mp4 in fragments or without an index"


def _why_not_index(file: BinaryIO, moov: memoryview, turns: bool) -> str | None:
    movie = _children(moov)
    if b"mvex" in movie:
        return "mp4 in fragments"
    for name, content in _boxes(moov):
        if name == b"trak":
            track = _children(content)
            media = _children(track[b"mdia"])
            if bytes(media[b"hdlr"][8:12]) == b"vide":
                table = _children(_children(media[b"minf"])[b"stbl"])
                codec = bytes(table[b"stsd"][12:16])
                if codec not in _MP4_CODECS:
                    return f"mp4 with {codec.decode('latin-1').strip()}"
                if not turns and bytes(track[b"tkhd"][-44:-8]) != _UPRIGHT:
                    return "mp4 with turned pictures"
                times = _presentation_times(table)
                if _is_edited(movie, track, media, times):
                    return "mp4 with an edit list"
                return _why_not_samples(file, table, times)
    return "mp4 without a video"


def _why_not_samples(file: BinaryIO, table: _Box, times: npt.NDArray[np.int64]) -> str | None:
    places = _places(table)
    if len(places) == 0 or places[-1] >= file.seek(0, 2):
        return "mp4 that is cut off"
    if b"stss" not in table:
        return None  # all are keyframes
    # QuickTime lists those that need care apart
    lists = [table[name] for name in (b"stss", b"stps") if name in table]
    keys = np.concatenate([_numbers(numbers[8:], 1)[:, 0] for numbers in lists]) - 1
    # The earliest time that comes from each sample on: a keyframe's own, in a closed group
    earliest = np.minimum.accumulate(times[::-1])[::-1]
    if (earliest[keys] < times[keys]).any():
        return "open groups of pictures"
    description = table[b"stsd"]
    if bytes(description[12:14]) == b"av":  # H.264
        configuration = bytes(_children(description[16 + 78 :])[b"avcC"])
        for place in places[keys[1:]].tolist():
            file.seek(place)
            if not h264.is_clean_start(file.read(_KEYFRAME_BYTES), configuration):
                return "keyframes that are not whole"
    return None


def _places(table: _Box) -> npt.NDArray[np.int64]:
    """Where each sample begins in the file, (N,)."""
    wide = b"co64" in table
    chunks = np.frombuffer(table[b"co64" if wide else b"stco"][8:], ">u8" if wide else ">u4")
    chunks = chunks.astype(np.int64)
    same_size, count = struct.unpack_from(">II", table[b"stsz"], 4)
    if count > _MOST_SAMPLES:
        raise ValueError("more samples than a video has")
    sizes = np.full(count, same_size) if same_size else _numbers(table[b"stsz"][12:], 1)[:, 0]
    # Rows (first chunk, samples in each chunk, description) hold up to the next row
    runs = _numbers(table[b"stsc"][8:], 3)
    lengths = np.diff(runs[:, 0], append=len(chunks) + 1)
    samples_of = np.repeat(runs[:, 1], lengths)  # of each chunk
    first = np.cumsum(samples_of) - samples_of
    if samples_of.sum() != len(sizes) or len(samples_of) != len(chunks):
        raise ValueError("tables that do not agree")
    before = np.cumsum(sizes) - sizes
    return np.repeat(chunks - before[first], samples_of) + before


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


def _is_edited(movie: _Box, track: _Box, media: _Box, times: npt.NDArray[np.int64]) -> bool:
    """Whether an edit list does anything but show all frames from the start."""
    if b"edts" not in track or len(times) == 0:
        return False
    edits = _children(track[b"edts"])[b"elst"]
    if edits[0] != 0:  # 64-bit times: rare
        return True
    rows = _numbers(edits[8:], 3)
    if len(rows) != 1:  # several parts, or a wait before the first frame
        return True
    length, start, _ = rows[0]
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
