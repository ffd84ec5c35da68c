"""Decodes a whole file and reports the result in words that a user can act on.

A video is `ok` if all of its frames decode, `damaged` if some decode with errors or not at all, and
`bad` if nothing can be read. Unusual properties of ok videos are reported too.
"""

import base64
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any

import numpy as np

from hpm_video.data.video.frame_table import FrameTable, fitting_table
from hpm_video.data.video.frames import VideoReadError, check_is_file
from hpm_video.data.video.readers import UnreadableError, demux, headers, why
from hpm_video.data.video.readers.frame_folder import gaps, is_pictures
from hpm_video.data.video.readers.pictures import PictureReader
from hpm_video.data.video.readers.pyav import PyavReader
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.data.video.source import locate
from hpm_video.runtime.replies import answer

OK, DAMAGED, BAD = "ok", "damaged", "bad"
USED = (OK, DAMAGED)  # used by training
_QUICK_FRAMES = 8  # frames read at the head, at the tail and at each random place
_QUICK_PLACES = 2
_SEVERAL_SIZES = "has frames of several sizes, all scaled to the first, {} x {}"
_GREY = "is {0}-bit grey that uses {1} bits: the upper 8 of {0} are read"
_MOST_NAMED = 3  # broken frames of a folder named in a reason
_LONG = 300  # frames, which take a while to decode for one clip
_DEEP_GREY = re.compile(r"gray(\d+)([lb]e)")  # formats of more than 8 bits


@answer
@dataclass(frozen=True)
class Verdict:
    """The findings about one file; unknown values are None."""

    status: str  # `ok`, `damaged` or `bad`
    reason: str = ""  # why, or what is unusual about an ok video, in one line
    num_frames: int | None = None  # frames that decode
    damaged: int | None = None  # frames that decode with errors or are lost
    fps: float | None = None  # average frames per second
    width: int | None = None  # in pixels, as displayed
    height: int | None = None
    num_bytes: int | None = None  # size of the file
    mtime_ns: int | None = None  # modification time of the file
    table: bytes | None = None  # `FrameTable.to_bytes`

    @property
    def duration_s(self) -> float | None:
        """The duration of the frames, if their number and rate are known."""
        return self.num_frames / self.fps if self.num_frames is not None and self.fps else None

    def to_entry(self) -> dict[str, Any]:
        """Return the verdict as an entry of a journal."""
        table = self.table and base64.b64encode(self.table).decode()
        return {**vars(self), "table": table}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "Verdict":
        """Return the verdict in an entry; older versions' entries may lack values.

        Raises ValueError for an entry that we did not write.
        """
        known = {field.name: entry[field.name] for field in fields(cls) if field.name in entry}
        for name, value in known.items():
            is_text = name in ("status", "reason") or (name == "table" and value is not None)
            if not isinstance(value, str if is_text else int | float | None):
                raise ValueError(f"{name} ({value}) has the wrong type")
        if known.get("status") not in (OK, DAMAGED, BAD):
            raise ValueError(f"status must be {OK}, {DAMAGED} or {BAD}")
        if table := known.get("table"):
            known["table"] = base64.b64decode(table)
        return cls(**known)


def file_identity(path: str) -> tuple[int | None, int | None]:
    """Size in bytes and modification time in ns of a file or folder, to detect changes.

    For a folder they cover all of its files. Both are None if the path does not exist.
    """
    try:
        place = locate(path)
        if stat.S_ISDIR(place.mode):
            with os.scandir(path) as entries:
                each = [entry.stat() for entry in entries if entry.is_file()]
            times = (one.st_mtime_ns for one in each)
            return sum(one.st_size for one in each), max(place.mtime_ns, *times, 0)
        return place.identity
    except (OSError, ValueError):
        return None, None


def inspect_video(path: str, *, quick: bool = False, table: bytes | None = None) -> Verdict:
    """Decode a video and report the result; never raises, whatever is wrong with the file.

    Decoders may crash or hang, so run this in a process that can be killed.

    Args:
        path: the file.
        quick: decode only the head, the tail and a few fixed places between, if the result matches
            the file's packets.
        table: for `quick`, its frame table from an index, used if the file has not changed.
    """
    before = file_identity(path)
    try:
        check_is_file(path)
        if is_pictures(path):
            verdict = _verdict_of_pictures(path, quick=quick)
        else:
            verdict = _quick_verdict(path, table) if quick else _verdict(path, decoded_table(path))
    except VideoReadError as error:
        verdict = Verdict(BAD, error.reason)
    except Exception as error:  # noqa: BLE001 - no file may stop the check of all others
        verdict = Verdict(BAD, why(error))
    if (after := file_identity(path)) != before:
        gone = "disappeared" if after[0] is None else "changed"
        verdict = Verdict(BAD, f"{gone} while it was read")
    return replace(verdict, num_bytes=before[0], mtime_ns=before[1])


def _verdict(path: str, table: FrameTable, size: tuple[int, int] | None = None) -> Verdict:
    """The verdict on a file with this table; `size`: height and width, if known."""
    lost = table.num_lost - table.num_lost_first
    damaged = table.num_damaged + lost
    if size is None:
        turned = table.orientation is not None and table.orientation.transposed
        size = (table.width, table.height) if turned else (table.height, table.width)
    reasons = [damage_of(table)] if damaged else []
    return Verdict(
        DAMAGED if damaged else OK,
        "; ".join([*reasons, *_unusual(path, table, size)]),
        num_frames=table.num_frames,
        damaged=damaged,
        fps=table.fps or None,
        height=size[0],
        width=size[1],
        table=table.to_bytes(),
    )


def _verdict_of_pictures(path: str, *, quick: bool) -> Verdict:
    """The verdict on a folder of frames or an image."""
    reader = PictureReader(path)
    places = _places(reader.num_frames) if quick else [range(reader.num_frames)]
    looked = reader.look(chain(*places))
    if quick and looked.broken:
        return _verdict_of_pictures(path, quick=False)
    num_broken, count = len(looked.broken), reader.num_frames
    if num_broken == count:
        return Verdict(BAD, reader.none(looked.broken[0]))
    table = replace(reader.table, is_decoded=not quick, num_damaged=num_broken)
    more = ", ..." if num_broken > _MOST_NAMED else ""
    named = f"{', '.join(looked.broken[:_MOST_NAMED])}{more}"
    used, strays = looked.largest_grey.bit_length(), reader.files.num_strays
    said = {
        f"{damage_of(table)} ({named})": num_broken,
        "is a single picture": count == 1,
        gaps(reader.files.numbers): gaps(reader.files.numbers),
        _SEVERAL_SIZES.format(table.width, table.height): table.other_sizes,
        _GREY.format(16, used): used,
        f"{strays} other images in the folder are left out": strays,
    }
    return Verdict(
        DAMAGED if num_broken else OK,
        "; ".join(text for text, holds in said.items() if holds),
        num_frames=count,
        damaged=num_broken,
        fps=table.fps or None,
        height=table.height,
        width=table.width,
        table=table.to_bytes(),
    )


def damage_of(table: FrameTable) -> str:
    """A description of how many frames are damaged."""
    lost, shown = table.num_lost - table.num_lost_first, table.num_frames
    parts = []
    if table.num_damaged:
        parts.append(f"decoding errors in {table.num_damaged} of {shown} frames")
    if lost:
        parts.append(f"{lost} of {shown + lost} frames lost")
    return ", ".join(parts)


def _unusual(path: str, table: FrameTable, size: tuple[int, int]) -> list[str]:
    """Properties that a user may want to know or change, although the video can be read."""
    found = []
    shown = f"{size[1]} x {size[0]}"
    if table.num_lost_first:
        found.append(f"cut from a stream: its first {table.num_lost_first} frames do not decode")
    if table.num_tracks > 1:
        found.append(f"has {table.num_tracks} video tracks, of which the one of {shown} is read")
    if table.num_frames == 1:
        found.append("is a single picture")
    if table.container.startswith("mov") and (more := headers.num_mp4s(path) - 1) > 0:
        found.append(f"has {more} more mp4 appended to it, which readers ignore")
    if missing := headers.num_missing_bytes(path):
        found.append(f"is cut off: its last {missing:,} bytes are missing")
    if table.is_tilted:
        found.append("has a rotation that is not a multiple of 90 degrees and is not applied")
    if table.other_sizes:
        found.append(_SEVERAL_SIZES.format(size[1], size[0]))
    if table.is_interlaced:
        found.append("is interlaced")
    if match := _DEEP_GREY.fullmatch(table.pix_fmt):
        used = _used_bits(path, "<u2" if match[2] == "le" else ">u2")
        found.append(_GREY.format(match[1], used))
    if table.irregular and not table.has_starts and table.num_frames >= _LONG:
        found.append(
            f"slow to read: each clip is decoded from the file's start ({table.irregular})"
        )
    return found


def _used_bits(path: str, dtype: str) -> int:
    """The number of bits of the largest grey value in all pictures."""
    container, stream = demux.open_video(path)
    largest = 0
    with container:
        for packet in chain(demux.packets(container, stream), [None]):
            for frame in demux.decode(stream.codec_context, packet) or []:
                plane = frame.planes[0]
                lines = np.frombuffer(memoryview(plane), dtype).reshape(frame.height, -1)
                largest = max(largest, int(lines[:, : frame.width].max()))
    return max(1, largest.bit_length())


def _quick_verdict(path: str, data: bytes | None) -> Verdict:
    """The verdict from a few places or, if these do not match the table, from the whole file."""
    reader = PyavReader(path, fitting_table(data, path))
    try:
        for indices in _places(reader.num_frames):
            _, height, width, _ = reader.read(indices).shape
    except UnreadableError:
        return _verdict(path, decoded_table(path))
    return _verdict(path, reader.table, (height, width))


def _places(num_frames: int) -> list[range]:
    """The frames that a quick check reads."""
    if num_frames <= (2 + _QUICK_PLACES) * _QUICK_FRAMES:
        places = list(range(0, num_frames, _QUICK_FRAMES))
    else:
        last = num_frames - _QUICK_FRAMES
        between = np.random.default_rng(num_frames).integers(_QUICK_FRAMES, last, _QUICK_PLACES)
        places = [0, *sorted(between.tolist()), last]
    return [range(place, min(place + _QUICK_FRAMES, num_frames)) for place in places]


def silence() -> None:
    """Discard what native code in this process writes to stderr.

    ffmpeg's message for every broken file would drown our own messages, which give the reason.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
