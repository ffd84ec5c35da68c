"""What becomes of one file when all of it is decoded, in words that a user can act on.

A video is `ok` where all of its frames decode, `damaged` where some decode with errors or not at
all, and `bad` where nothing can be read of it. What is unusual about an ok one is said, too.
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
USED = (OK, DAMAGED)  # by training
_QUICK_FRAMES = 8  # read at the head, at the tail and at each random place
_QUICK_PLACES = 2
_SEVERAL_SIZES = "has pictures of several sizes, all scaled to the first, {} x {}"
_MOST_NAMED = 3  # frames of a folder that cannot be decoded
_LONG = 300  # frames, which take a while to decode for one clip
_DEEP_GREY = re.compile(r"gray(\d+)([lb]e)")  # formats of more than 8 bits


@answer
@dataclass(frozen=True)
class Verdict:
    """What was found out about one file; what is not known is None."""

    status: str  # `ok`, `damaged` or `bad`
    reason: str = ""  # why, or what is unusual about an ok one, in one line
    num_frames: int | None = None  # that decode
    damaged: int | None = None  # frames that decode with errors, and frames that are lost
    fps: float | None = None  # average frames per second
    width: int | None = None  # in pixels, as displayed
    height: int | None = None
    num_bytes: int | None = None  # size of the file
    mtime_ns: int | None = None  # when the file was last changed
    table: bytes | None = None  # `FrameTable.to_bytes`

    @property
    def duration_s(self) -> float | None:
        """How long the frames last, where their number and rate are known."""
        return self.num_frames / self.fps if self.num_frames is not None and self.fps else None

    def to_entry(self) -> dict[str, Any]:
        """Return this as an entry of a journal."""
        table = self.table and base64.b64encode(self.table).decode()
        return {**vars(self), "table": table}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any]) -> "Verdict":
        """Return what became an entry; of older versions' entries, what these knew. ValueError for
        an entry that others made."""
        known = {field.name: entry[field.name] for field in fields(cls) if field.name in entry}
        for name, value in known.items():
            is_text = name in ("status", "reason") or (name == "table" and value is not None)
            if not isinstance(value, str if is_text else int | float | None):
                raise ValueError(f"{name} ({value}) is not of its type")
        if known.get("status") not in (OK, DAMAGED, BAD):
            raise ValueError("status is none")
        if table := known.get("table"):
            known["table"] = base64.b64decode(table)
        return cls(**known)


def file_identity(path: str) -> tuple[int | None, int | None]:
    """Size in bytes and time of the last change in ns of a file, or of all in a folder, which tell
    it from a changed one.

    Both None where there is no file that could be asked.
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
    """Decode a video and say what became of it; never raises for a file, whatever is wrong.

    It may crash or never return, as decoders do: run it where it can be killed.

    Args:
        path: the file.
        quick: decode only the head, the tail and a few places between, always the same ones, if
            what comes out is what the file's packets say.
        table: for `quick`, its table in an index, which holds if the file has not changed.
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
    """The verdict on a file with this table; `size`: height and width, where they are known."""
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
        f"grey with 16 bits, of which {used} are used: the upper 8 are read": used,
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
    """In words, how many frames are damaged."""
    lost, shown = table.num_lost - table.num_lost_first, table.num_frames
    parts = []
    if table.num_damaged:
        parts.append(f"decoding errors in {table.num_damaged} of {shown} frames")
    if lost:
        parts.append(f"{lost} of {shown + lost} frames lost")
    return ", ".join(parts)


def _unusual(path: str, table: FrameTable, size: tuple[int, int]) -> list[str]:
    """What a user may want to know of a video, or change, although it can be read."""
    found = []
    shown = f"{size[1]} x {size[0]}"
    if table.num_lost_first:
        found.append(f"cut from a stream: its first {table.num_lost_first} frames do not decode")
    if table.num_tracks > 1:
        found.append(f"has {table.num_tracks} tracks of video, of which that of {shown} is read")
    if table.num_frames == 1:
        found.append("is a single picture")
    if table.container.startswith("mov") and (more := headers.num_mp4s(path) - 1) > 0:
        found.append(f"{more} more mp4 appended to it, of which nothing is read")
    if missing := headers.num_missing_bytes(path):
        found.append(f"is cut off: its last {missing:,} bytes are missing")
    if table.is_tilted:
        found.append("is to be turned by an angle that is no quarter, which is not done")
    if table.other_sizes:
        found.append(_SEVERAL_SIZES.format(size[1], size[0]))
    if table.is_interlaced:
        found.append("is interlaced")
    if match := _DEEP_GREY.fullmatch(table.pix_fmt):
        used = _used_bits(path, "<u2" if match[2] == "le" else ">u2")
        found.append(f"grey with {match[1]} bits, of which {used} are used: the upper 8 are read")
    if table.irregular and not table.has_starts and table.num_frames >= _LONG:
        found.append(f"slow to read, from its start for each clip ({table.irregular})")
    return found


def _used_bits(path: str, dtype: str) -> int:
    """How many bits the largest value of all grey pictures takes."""
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
    """What a few places tell; what all of the file does where these are not as told."""
    reader = PyavReader(path, fitting_table(data, path))
    try:
        for indices in _places(reader.num_frames):
            _, height, width, _ = reader.read(indices).shape
    except UnreadableError:
        return _verdict(path, decoded_table(path))
    return _verdict(path, reader.table, (height, width))


def _places(num_frames: int) -> list[range]:
    """The frames that are read for a quick check."""
    if num_frames <= (2 + _QUICK_PLACES) * _QUICK_FRAMES:
        places = list(range(0, num_frames, _QUICK_FRAMES))
    else:
        last = num_frames - _QUICK_FRAMES
        between = np.random.default_rng(num_frames).integers(_QUICK_FRAMES, last, _QUICK_PLACES)
        places = [0, *sorted(between.tolist()), last]
    return [range(place, min(place + _QUICK_FRAMES, num_frames)) for place in places]


def silence() -> None:
    """Send what native code of this process complains about on stderr nowhere.

    A line of ffmpeg for every broken file would drown ours, which give the reason.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
