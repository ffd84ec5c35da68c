"""The frame table of a file: the number of its frames, their times, and where decoding can start.

Frame n is the n-th picture, in display order, that decoding the whole file gives, of the track that
FFmpeg considers best. A file is regular if each packet holds one frame and the packet's time
identifies it. Then any frame can be decoded from the preceding keyframe and recognized. In any
other file, frames are counted from the start of the file or from verified start points.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.limits import MOST_PACKETS, MOST_PIXELS
from hpm_video.data.video.orientation import Orientation
from hpm_video.data.video.source import locate
from hpm_video.data.video.tar_index import is_same
from hpm_video.runtime.reading import parse_json

Numbers = npt.NDArray[np.int64]
NEW_PARAMETERS = "codec parameters that change midway"  # see `FrameTable.irregular`
_MOST_BYTES = 2**26  # limit for an unpacked table: 22 hours of keyframes only, or 78 with few
NO_TIMES = "frames without their own timestamps"
DECODING_TIMES = "frames with decoding times instead of display times"
OTHER_ORDER = "frames out of timestamp order"
# What tables that exist already call them
_FORMER = {
    "frames without times of their own": NO_TIMES,
    "frames with the times at which they are decoded": DECODING_TIMES,
    "frames in another order than that of their times": OTHER_ORDER,
    "parameters that change on the way": NEW_PARAMETERS,
    "pictures of several sizes": "frames of several sizes",
    "times that start again": "timestamps that restart",
}
WITHOUT_TIMES = (NO_TIMES, DECODING_TIMES, OTHER_ORDER)  # display times are unknown
FRAMES, IMAGE = "folder of frames", "image"  # containers of images instead of video files
VERSION = 1  # tables of other versions are ignored


def _none() -> Numbers:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Starts:
    """Packets at which decoding can start, in file order; each array has one value per packet."""

    packets: Numbers = field(default_factory=_none)
    times: Numbers = field(default_factory=_none)  # display times
    dts: Numbers = field(default_factory=_none)  # decoding times
    bytes: Numbers = field(default_factory=_none)  # byte offsets in the file, -1: unknown
    frames: Numbers = field(default_factory=_none)  # first frame decoded from there

    def __len__(self) -> int:
        return len(self.packets)


@dataclass(frozen=True, eq=False)
class FrameTable:
    """The facts about one file.

    ``times`` and ``places`` are empty if the file is irregular. Packets are counted from 0 in file
    order; times are in units of ``time_base``.
    """

    num_bytes: int  # size and modification time of the file; the table is not valid for others
    mtime_ns: int
    num_frames: int
    container: str  # FFmpeg's name, such as "mov,mp4,m4a,3gp,3g2,mj2"
    codec: str
    pix_fmt: str
    height: int  # of the first frame, as stored
    width: int
    fps: float  # on average, 0 if unknown
    time_base: tuple[int, int]  # in seconds, as a fraction
    irregular: str = ""  # why frames must be counted, in a few words; "" for a regular file
    is_decoded: bool = False  # whether the whole file was decoded, not only its packets read
    orientation: Orientation | None = None  # None: unknown without decoding
    start_time: int | None = None  # of the file, in microseconds
    last_lasts: int = 0  # duration of the last frame, 0 if unknown
    num_damaged: int = 0  # frames that decode with errors
    num_lost: int = 0  # packets whose frames cannot be decoded
    num_lost_first: int = 0  # of these, before the first frame, as in cut streams
    other_sizes: bool = False  # whether frame sizes differ
    is_interlaced: bool = False
    is_tilted: bool = False  # whether players rotate by other than quarter turns
    has_leading: bool = False  # whether frames are displayed before the keyframe they follow
    has_false_starts: bool = False  # whether some packets are falsely marked as keyframes
    has_hidden: bool = False  # whether an edit list hides frames, which are still decoded
    num_tracks: int = 1  # number of video tracks
    codecs: tuple[str, ...] = ()  # of all tracks, including sound
    files: str = ""  # name pattern of a folder of frames: see `FrameFiles`; numbers are in `places`
    times: Numbers = field(default_factory=_none)  # (num_frames,) ascending
    places: Numbers = field(default_factory=_none)  # (num_frames,) packet of each frame
    starts: Starts = field(default_factory=Starts)

    @property
    def is_regular(self) -> bool:
        """Whether packet times identify frames."""
        return not self.irregular

    @property
    def has_starts(self) -> bool:
        """Whether decoding can start anywhere else than at the start of the file."""
        return len(self.starts) > 1

    @property
    def is_timed(self) -> bool:
        """Whether frames have times of their own, unlike images."""
        return self.is_regular and self.container not in (FRAMES, IMAGE)

    def fits(self, path: str) -> bool:
        """Whether the file is unchanged since the table was made."""
        try:
            return self.fits_identity(*locate(path).identity)
        except (OSError, ValueError):
            return False

    def fits_identity(self, num_bytes: int, mtime_ns: int) -> bool:
        """Whether a file of this size and modification time is the table's file."""
        return is_same((num_bytes, mtime_ns), (self.num_bytes, self.mtime_ns))

    def to_bytes(self) -> bytes:
        """Return the table in a compact form: some hundred bytes for a clip of ten seconds."""
        plain: dict[str, Any] = {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("times", "places", "starts")
            and value != getattr(type(self), name, ...)  # not the default
        }
        parts = [json.dumps(plain, separators=(",", ":")).encode()]
        for numbers in self._arrays():  # differences, which repeat and so compress well
            steps = np.diff(numbers, prepend=np.int64(0))
            small = bool(len(steps) < 2 or np.abs(steps[1:]).max() < 2**31)
            first, rest = steps[:1].tobytes(), steps[1:].astype(np.int32 if small else np.int64)
            parts.append(bytes([small]) + first + rest.tobytes())
        lengths = struct.pack(f"<{len(parts)}I", *map(len, parts))
        return bytes([VERSION]) + zlib.compress(lengths + b"".join(parts), 9)

    def _arrays(self) -> tuple[Numbers, ...]:
        starts = self.starts
        of_starts = starts.packets, starts.times, starts.dts, starts.bytes, starts.frames
        return self.times, self.places, *of_starts

    @classmethod
    def from_bytes(cls, data: bytes) -> FrameTable | None:
        """Return the table stored in these bytes, or None if it is of another version.

        Raises ValueError if the bytes are damaged.
        """
        if data[:1] != bytes([VERSION]):
            return None
        try:
            unpacking = zlib.decompressobj()
            content = unpacking.decompress(data[1:], _MOST_BYTES)
            if not unpacking.eof:
                raise ValueError("a table of frames is damaged: it is cut off, or too long")
            lengths = struct.unpack_from("<8I", content)
            ends = 4 * len(lengths) + np.cumsum(lengths)
            plain, *packed = (
                content[end - size : end] for size, end in zip(lengths, ends, strict=True)
            )
            values = parse_json(plain)
            if "orientation" in values:
                values["orientation"] = Orientation(*values["orientation"])
            if (former := values.get("irregular")) in _FORMER:
                values["irregular"] = _FORMER[former]
            for name in ("time_base", "codecs"):
                values[name] = tuple(values.get(name, ()))
            times, places, *of_starts = map(_unpacked, packed)
            table = cls(**values, times=times, places=places, starts=Starts(*of_starts))
        except (
            zlib.error, struct.error, TypeError, LookupError, AttributeError, RecursionError,
        ) as error:  # fmt: skip
            raise ValueError(f"a table of frames is damaged: {error}") from error
        if not table._is_possible():
            raise ValueError("a table of frames is damaged: its values do not fit together")
        return table

    def _is_possible(self) -> bool:
        """Whether the values are plausible: an index may come from anyone."""
        kinds: dict[Any, Any] = {"int": int, "str": str, "bool": bool, "float": int | float}
        if not all(
            isinstance(getattr(self, f.name), kinds.get(f.type, object)) for f in fields(self)
        ):
            return False
        numbers, starts = self._arrays(), self.starts
        return (
            [type(value) for value in self.time_base] == [int, int]
            and self.time_base[1] > 0
            and all(isinstance(codec, str) for codec in self.codecs)
            and isinstance(self.start_time, int | None)
            and isinstance(self.orientation, Orientation | None)
            and math.isfinite(self.fps)
            and min(self.height, self.width) > 0
            and self.height * self.width <= MOST_PIXELS
            and 0 < self.num_frames <= MOST_PACKETS
            and len(starts) > 0
            and starts.packets[0] == 0
            and all(len(array) == len(starts) for array in numbers[2:])
            and all(len(a) == self.num_frames * self.is_regular for a in numbers[:2])
            and all((np.diff(array) > 0).all() for array in (self.times, starts.packets))
        )

    def seconds(self) -> npt.NDArray[np.float64]:
        """When each frame appears and, last, when the final one disappears: (num_frames + 1,).

        In seconds from the start of the file, as in players. Frames without times are spaced by the
        frame rate; NaN if that is unknown too.
        """
        step = 1 / self.fps if self.fps else np.nan
        if not self.is_timed:
            return np.arange(self.num_frames + 1, dtype=np.float64) * step
        unit = self.time_base[0] / self.time_base[1]
        times = self.times * unit
        start = (self.start_time or 0) / 1e6
        if abs(times[0] - start) < 2e-6:  # the video's own start, rounded
            start = times[0]
        return np.asarray(
            np.append(times, times[-1] + (self.last_lasts * unit or step)) - start, np.float64
        )


def fitting_table(data: bytes | None, path: str) -> FrameTable | None:
    """The table in an index (`FrameTable.to_bytes`) if it matches the file as it is now."""
    try:
        table = FrameTable.from_bytes(data) if data is not None else None
    except ValueError:
        return None
    return table if table is not None and table.fits(path) else None


def _unpacked(part: bytes) -> Numbers:
    rest = np.frombuffer(part[9:], np.int32 if part[0] else np.int64)
    first = np.frombuffer(part[1:9], np.int64)
    return np.cumsum(np.concatenate([first, rest]), dtype=np.int64)
