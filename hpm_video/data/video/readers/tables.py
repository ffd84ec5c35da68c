"""Makes the frame table of a file: from its packets alone, or by decoding all of it.

Packets nearly always suffice. If they may not, `scan` says why, and the file must be decoded from
start to end, which `data check` does with every file.
"""

import zlib
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, pairwise

import av
import numpy as np

from hpm_video.data.video.frame_table import (
    DECODING_TIMES,
    NEW_PARAMETERS,
    NO_TIMES,
    OTHER_ORDER,
    FrameTable,
    Numbers,
    Starts,
)
from hpm_video.data.video.limits import MOST_PACKETS
from hpm_video.data.video.orientation import Orientation
from hpm_video.data.video.readers import UnreadableError, demux, h264
from hpm_video.data.video.source import locate

# Packets of files up to this size stay in memory after the first pass; others are read again
_MOST_KEPT_BYTES = 64 * 2**20
# Codecs whose pictures refer to earlier ones, except keyframes: a container that marks all of them
# as keyframes has lost its index. (H.264 pictures are inspected, see `_is_start`)
_REFERRING = (
    "hevc", "vp8", "libvpx", "vp9", "libvpx-vp9", "av1", "libdav1d", "libaom-av1",
    "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "h263", "flv1", "svq3",
    "mpeg1video", "mpeg2video", "theora", "vp6", "vp6f", "rv30", "rv40", "cinepak",
)  # fmt: skip
_PARAMETERS = ("new_extradata", "param_change", "palette")
# Decoders that detect damage, and whose keyframes need nothing before them
_SAY_ERRORS = ("h264", "hevc", "vp9", "av1", "libdav1d")
_UNHARMFUL = ("mmco:",)  # messages that do not concern the current frame
_MOST_TRIED = 1000  # start points per file; in longer files every second, third, ... is tried
_MOST_ROUNDS = 4  # after which only the start of the file is used
_MOST_SEARCHED = 2048  # frames searched for those of a group; a start without a match is dropped
_Mark = tuple[int | None, int]  # display time of a frame, and a checksum of its pixels
_MOST_TABLES = 1024  # of decoded files, cached in each process


@dataclass
class _Packets:
    """The metadata of a file's packets, in file order."""

    times: list[int | None] = field(default_factory=list)  # display times
    dts: list[int | None] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)  # byte offsets, -1: unknown
    starts: list[int] = field(default_factory=list)  # packets at which decoding can start
    shown: list[int] = field(default_factory=list)  # packets of displayed frames
    last_lasts: dict[int, int] = field(default_factory=dict)  # packet -> duration
    num_keys: int = 0  # packets marked as keyframes
    has_hidden: bool = False  # whether some are decoded but not displayed
    trouble: str = ""  # why packets do not suffice

    def add(
        self, packet: av.Packet, fields: h264.FieldTest | None, context: av.VideoCodecContext
    ) -> None:
        """Add a packet. Raises UnreadableError if it is encrypted, or exceeds the limit."""
        kinds = [data.data_type for data in packet.iter_sidedata()]
        if "encryption_info" in kinds:
            raise UnreadableError(demux.ENCRYPTED)
        place = len(self.times)
        if place >= MOST_PACKETS:
            raise UnreadableError(f"frames must be at most {MOST_PACKETS:,}: cut it into parts")
        self.times.append(packet.pts)
        self.dts.append(packet.dts)
        self.bytes.append(-1 if packet.pos is None else packet.pos)
        if packet.is_keyframe:
            self.num_keys += 1
            if _is_start(context, packet):
                self.starts.append(place)
        self.has_hidden |= packet.is_discard
        if not packet.is_discard and not _is_helper(context.name, packet):
            self.shown.append(place)
            self.last_lasts[place] = packet.duration or 0
        if self.trouble:
            return
        if fields is not None and fields.is_field(memoryview(packet)):
            self.trouble = "two packets per frame (fields)"
        elif packet.is_corrupt:
            self.trouble = "damaged packets"
        elif any(kind in _PARAMETERS for kind in kinds):
            self.trouble = NEW_PARAMETERS


def scan(
    path: str,
    container: av.container.InputContainer,
    stream: av.VideoStream,
) -> tuple[FrameTable, list[av.Packet] | None]:
    """Read the packets of an open file; returns its table, and the packets if they are few.

    The table is irregular if packets do not suffice. Raises UnreadableError if there are none.
    """
    context = stream.codec_context
    fields = h264.FieldTest(context.extradata or b"") if context.name == "h264" else None
    noted = _Packets()
    kept: list[av.Packet] | None = []
    size = 0
    for packet in demux.packets(container, stream):
        noted.add(packet, fields, context)
        size += packet.size
        if size > _MOST_KEPT_BYTES:
            kept = None
        elif kept is not None:
            kept.append(packet)
    if not noted.shown:
        raise UnreadableError("has no frames")
    return _table_of(path, container, stream, noted), kept


def _table_of(
    path: str, container: av.container.InputContainer, stream: av.VideoStream, noted: _Packets
) -> FrameTable:
    """The table as far as packets alone determine it."""
    context, place = stream.codec_context, locate(path)
    unit, rate = stream.time_base, stream.average_rate
    known = FrameTable(
        num_bytes=place.size,
        mtime_ns=place.mtime_ns,
        num_frames=len(noted.shown),
        container=container.format.name,
        codec=context.name,
        pix_fmt=context.pix_fmt or "",
        height=context.height,
        width=context.width,
        fps=float(rate) if rate else 0.0,
        time_base=(unit.numerator, unit.denominator) if unit else (0, 1),
        start_time=container.start_time,
        has_false_starts=len(noted.starts) < noted.num_keys or _has_false_index(stream, noted),
        has_hidden=noted.has_hidden,
        codecs=demux.codecs_of(container),
        num_tracks=sum(not _is_picture(track) for track in container.streams.video),
    )
    if why := _why_irregular(known, context, noted):
        return replace(known, irregular=why)
    times = np.array([time or 0 for time in noted.times], dtype=np.int64)
    shown = np.array(noted.shown)
    places = shown[np.argsort(times[shown], kind="stable")]
    starts = np.array(noted.starts, dtype=np.int64)
    # The earliest time from each packet on: in a closed group, it is the keyframe's own
    earliest = np.minimum.accumulate(times[::-1])[::-1]
    return replace(
        known,
        fps=_likely_fps(known, times[places]),
        last_lasts=noted.last_lasts[int(places[-1])],
        has_leading=bool((earliest[starts] < times[starts]).any()),
        times=times[places],
        places=places,
        starts=_starts(noted, starts, np.searchsorted(times[places], times[starts])),
    )


def _likely_fps(table: FrameTable, times: Numbers) -> float:
    """The frame rate of the header, unless the ascending ``times`` contradict it.

    Some headers have none, the rate of their clock, or that of fields.
    """
    seconds = float(times[-1] - times[0]) * table.time_base[0] / table.time_base[1]
    between = (len(times) - 1) / seconds if seconds > 0 else 0.0
    is_likely = not between or between / 1.5 < table.fps < between * 1.5
    return table.fps if is_likely else between


def _starts(noted: _Packets, packets: Numbers, frames: Numbers) -> Starts:
    """The data of the packets at which decoding can start."""
    times = [noted.times[place] or 0 for place in packets]
    dts = [noted.dts[place] for place in packets]
    return Starts(
        packets,
        np.array(times, dtype=np.int64),
        np.array([b if a is None else a for a, b in zip(dts, times, strict=True)], dtype=np.int64),
        np.array([noted.bytes[place] for place in packets], dtype=np.int64),
        frames,
    )


def _why_irregular(known: FrameTable, context: av.VideoCodecContext, noted: _Packets) -> str:  # noqa: PLR0911
    """Why the packets' times do not identify the frames; "" if they do."""
    if noted.trouble:
        return noted.trouble
    times = [noted.times[place] for place in noted.shown]
    if None in times or len(set(times)) < len(times):
        return NO_TIMES
    # AVI has no times; FFmpeg's guesses are correct if frames are stored in display order
    if known.container == "avi" and context.has_b_frames:
        return NO_TIMES
    decoded = [time for time in noted.dts if time is not None]
    if any(after < before for before, after in pairwise(decoded)):
        return "timestamps that restart"
    if noted.starts[:1] != [0]:
        return "a start inside a group of pictures"
    first = noted.times[0]
    known_times = [time for time in times if time is not None]
    if first is not None and min(known_times) < first:
        return "a start inside a group of pictures"
    rising = all(before < after for before, after in pairwise(known_times))
    if not context.has_b_frames and not rising:
        return OTHER_ORDER
    if context.has_b_frames and rising and context.name in ("h264", "hevc"):
        return DECODING_TIMES
    if known.codec in _REFERRING and noted.num_keys == len(noted.times) > 1:
        return "only keyframes, some of them perhaps falsely marked"
    return ""


def _has_false_index(stream: av.VideoStream, noted: _Packets) -> bool:
    """Whether an mp4's index marks other packets as keyframes too, e.g. all of them."""
    if not stream.container.format.name.startswith("mov"):
        return False  # indices of other containers are partial
    return sum(entry.is_keyframe for entry in stream.index_entries) > noted.num_keys


def _num_beyond(stream: av.VideoStream, num_bytes: int) -> int:
    """How many packets of an mp4's index lie beyond the end of the truncated file."""
    if not stream.container.format.name.startswith("mov"):
        return 0
    return sum(entry.pos >= num_bytes for entry in stream.index_entries)


def _is_start(context: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether decoding can start at a keyframe."""
    if packet.is_corrupt:  # decoders fill its gaps from the previous frame
        return False
    if context.name != "h264":
        return True
    return h264.is_clean_start(memoryview(packet), context.extradata or b"")


def _is_helper(codec: str, packet: av.Packet) -> bool:
    """Whether a packet has no displayed frame.

    It has a hidden reference frame (VP8), or only headers (Theora, in concatenated streams).
    """
    if codec == "theora":
        return bool(memoryview(packet)[0] & 0x80)
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10


def _is_picture(track: av.VideoStream) -> bool:
    return bool(track.disposition & av.stream.Disposition.attached_pic)


@dataclass
class _Decoded:
    """The results of decoding a file from its start."""

    times: list[int | None] = field(default_factory=list)  # of each frame
    sizes: set[tuple[int, int]] = field(default_factory=set)
    first_size: tuple[int, int] | None = None
    orientation: Orientation | None = None
    is_interlaced: bool = False
    is_tilted: bool = False
    damaged: set[int] = field(default_factory=set)  # times of frames and packets with errors
    num_failed: int = 0  # packets that could not be decoded


def decoded_table(path: str, *, find_starts: bool = True) -> FrameTable:
    """Decode a whole file, once and in order, and return its table.

    An irregular file is decoded again to find start points: those that give the same pixels as
    decoding from the start of the file. Without `find_starts`, only that start is used.

    Raises UnreadableError if it has no video, or nothing can be decoded.
    """
    container, stream = demux.open_video(path)
    with container:
        return _decoded_table(path, container, stream, find_starts=find_starts)


def _decoded_table(
    path: str,
    container: av.container.InputContainer,
    stream: av.VideoStream,
    *,
    find_starts: bool,
) -> FrameTable:
    context = stream.codec_context
    fields = h264.FieldTest(context.extradata or b"") if context.name == "h264" else None
    noted, out = _Packets(), _Decoded()
    with demux.complaints() as complaints:
        for packet in demux.packets(container, stream):
            noted.add(packet, fields, context)
            if context.name == "theora" and _is_helper(context.name, packet):
                continue
            _note_frames(out, demux.decode(context, packet), packet.pts)
            if _take(complaints):
                out.damaged.add(-1 if packet.pts is None else packet.pts)
        _note_frames(out, demux.decode(context, None), None)
    if out.first_size is None:
        raise UnreadableError(
            "none of its frames can be decoded" if noted.times else "has no frames"
        )
    table = _table_of(path, container, stream, noted)
    height, width = out.first_size
    why = table.irregular
    if not why:
        if out.num_failed or len(out.times) < table.num_frames:
            why = "frames that cannot be decoded"
        elif out.damaged:
            why = "frames that decode with errors"
        elif out.times != table.times.tolist():
            why = OTHER_ORDER
        elif len(out.sizes) > 1 or (height, width) != (table.height, table.width):
            why = "frames of several sizes"
    first = out.times[0]
    if first is not None and why != "timestamps that restart":
        # Ignore errors of frames before the first one that counts
        out.damaged = {time for time in out.damaged if time == -1 or time >= first}
    before = [t for t in noted.times if t is not None and first is not None and t < first]
    lost = max(0, table.num_frames - len(out.times)) if "fields" not in why else out.num_failed
    lost += _num_beyond(stream, table.num_bytes)
    starts_again = why == "timestamps that restart"
    shown = [time for time in out.times if time is not None]
    if why and why != NO_TIMES and all(one < other for one, other in pairwise(shown)):
        table = replace(table, fps=_likely_fps(table, np.array(shown, dtype=np.int64)))
    table = replace(
        table,
        is_decoded=True,
        irregular=why,
        num_frames=len(out.times),
        height=height,
        width=width,
        orientation=out.orientation,
        num_damaged=len(out.damaged),
        num_lost=lost,
        num_lost_first=0 if starts_again else min(lost, len(before)),
        other_sizes=len(out.sizes) > 1,
        is_interlaced=out.is_interlaced,
        is_tilted=out.is_tilted,
    )
    if not why and (not find_starts or table.codec in _SAY_ERRORS):
        return table
    # Gaps in such pictures show old memory content, which repeats only when decoding in order
    leftovers = table.codec == "mjpeg" and table.num_damaged > 0
    found = _tried_starts(path, noted, table) if find_starts and not leftovers else {0: 0}
    if not why:
        told = zip(table.starts.packets.tolist(), table.starts.frames.tolist(), strict=True)
        if found == dict(told):
            return table
        table = replace(table, irregular="frames that decode differently after a seek")
    starts = np.array(list(found), dtype=np.int64)
    return replace(
        table,
        times=np.zeros(0, dtype=np.int64),
        places=np.zeros(0, dtype=np.int64),
        starts=_starts(noted, starts, np.array(list(found.values()), dtype=np.int64)),
    )


@lru_cache(maxsize=_MOST_TABLES)
def counted_table(path: str, num_bytes: int, mtime_ns: int) -> FrameTable:
    """`decoded_table` of an irregular file without start points, cached per process.

    ``num_bytes`` and ``mtime_ns`` identify the file, so that a changed one is decoded again.
    """
    return decoded_table(path, find_starts=False)


def _take(complaints: list[tuple[int, str, str]]) -> bool:
    """Whether there was an error about a frame; clears the errors."""
    harmful = any(not text.startswith(_UNHARMFUL) for _, _, text in complaints)
    complaints.clear()
    return harmful


def _note_frames(out: _Decoded, frames: list[av.VideoFrame] | None, time: int | None) -> None:
    if frames is None:
        out.num_failed += 1
        out.damaged.add(-1 if time is None else time)
        return
    for frame in frames:
        if out.first_size is None:
            out.first_size = frame.height, frame.width
            out.orientation = demux.orientation_of(frame)
            out.is_tilted = demux.is_tilted(frame)
        out.sizes.add((frame.height, frame.width))
        out.is_interlaced |= bool(frame.interlaced_frame)
        if frame.is_corrupt:
            out.damaged.add(-1 if frame.pts is None else frame.pts)
        out.times.append(frame.pts)


def _tried_starts(path: str, noted: _Packets, table: FrameTable) -> dict[int, int]:
    """The packets from which decoding gives the same frames as from the file's start.

    Returns packet -> its first frame. Each group of packets, from one candidate to the next, is
    decoded separately and located in the whole. Then every frame is decoded as a reader would, from
    the start before it.
    """
    marker = _Marker(table)
    whole = list[_Mark]()
    container, stream = demux.open_video(path)
    with container:
        for packet in chain(demux.packets(container, stream), [None]):
            whole += marker.marks(stream.codec_context, packet)

    # Flushing does not reset all of a decoder's state, so each group gets a new one
    step = max(1, -(-len(noted.starts) // _MOST_TRIED))
    candidates, found = set(noted.starts[::step]), {0: 0}
    begin, number, group = 0, 0, list[_Mark]()
    container, stream = demux.open_video(path)
    with container:
        context: av.VideoCodecContext = stream.codec_context
        for place, packet in enumerate(chain(demux.packets(container, stream), [None])):
            if packet is None or (place in candidates and place > 0):
                group += marker.marks(context, None)
                context = demux.new_decoder(path)
                first = _first_of(group, whole, number)
                if first is not None:
                    found[begin] = first
                    number = first + len(group)
                begin, group = place, []
            group += marker.marks(context, packet) if packet is not None else []

    for _ in range(_MOST_ROUNDS):
        if not (wrong := _wrong_starts(path, marker, whole, found)):
            return found
        found = {place: first for place, first in found.items() if place not in wrong}
    return {0: 0}


def _wrong_starts(
    path: str, marker: "_Marker", whole: list[_Mark], found: dict[int, int]
) -> set[int]:
    """Start points from which some frame before the next start point is decoded differently."""
    ends = dict(zip(found, [*list(found.values())[1:], len(whole)], strict=True))
    trials: dict[int, tuple[av.VideoCodecContext, list[_Mark]]] = {}
    wrong = set()
    container, stream = demux.open_video(path)
    with container:
        for place, packet in enumerate(chain(demux.packets(container, stream), [None])):
            if place in found:
                trials[place] = demux.new_decoder(path), []
            for start, (context, came) in list(trials.items()):
                came.extend(marker.marks(context, packet))
                wanted = whole[found[start] : ends[start]]
                if packet is None or len(came) >= len(wanted):
                    del trials[start]
                    if came[: len(wanted)] != wanted:
                        wrong.add(start)
    return wrong - {0}


class _Marker:
    """Identifies frames by display time and pixels, as readers return them."""

    def __init__(self, table: FrameTable) -> None:
        self._pixels = np.empty((table.height, table.width, 3), dtype=np.uint8)
        self._writer = demux.RgbWriter()

    def marks(self, context: av.VideoCodecContext, packet: av.Packet | None) -> list[_Mark]:
        """The marks of the frames that decoding a packet (None: the end) returns."""
        found = []
        for frame in demux.decode(context, packet) or []:
            self._writer.write(frame, self._pixels)
            found.append((frame.pts, zlib.crc32(self._pixels.data)))
        return found


def _first_of(group: list[_Mark], whole: list[_Mark], number: int) -> int | None:
    """The index at which the whole contains a group, from `number` on; None if not found nearby."""
    for first in range(number, min(number + _MOST_SEARCHED, len(whole) - len(group) + 1)):
        if group and whole[first] == group[0] and whole[first : first + len(group)] == group:
            return first
    return None
