"""Reads with PyAV, which includes its own FFmpeg. Reads everything that FFmpeg reads, and exactly.

The frame table of a file says which packet holds which frame, and where decoding must start for it;
then only the necessary packets are decoded. The output is checked against the table. If a file does
not match its packets, it is decoded once from start to end, and frames are counted.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, groupby
from weakref import finalize

import av
import numpy as np
import numpy.typing as npt
from av.video.frame import PictureType

from hpm_video.data.video.frame_table import FrameTable, Starts
from hpm_video.data.video.motion import Speeds
from hpm_video.data.video.readers import UnreadableError, demux
from hpm_video.data.video.readers.tables import counted_table, scan
from hpm_video.data.video.readers.vectors import OPTION, VectorLog

# Codecs for which decoding can skip non-reference frames. Not AV1, which may display one a second
# time
_CODECS_THAT_SKIP = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9")
_FORWARD_BYTES = 2**16  # within this distance, reading on is cheaper than seeking
_SOUGHT_BY_BYTE = ("mpegts", "mpeg")  # these find times only by searching
_NOWHERE = 2**62  # past every packet
_REFERRING = (PictureType.P, PictureType.B, PictureType.S, PictureType.SP)  # to other frames
_Run = tuple[int, int, int]  # index of the start, its packet, last packet to decode


class _NotAsToldError(Exception):
    """The decoded frames do not match the packets."""


class PyavReader:
    """An open file, see `Reader`. Raises UnreadableError if FFmpeg finds no video in it.

    ``table``: the frame table if known; else the packets are scanned. ``motion``: enable `speeds`.
    `packets`: all packets, if they are few enough to keep.
    """

    def __init__(self, path: str, table: FrameTable | None = None, *, motion: bool = False) -> None:
        self._path = path
        self._vectors = VectorLog() if motion else None
        self._close: Callable[[], object] = lambda: None
        self._open()
        self._context, self._is_used = self._stream.codec_context, False
        self._latest = 0  # display time of the last decoded frame
        self.packets: list[av.Packet] | None = None
        if table is None:
            table, self.packets = scan(path, self._container, self._stream)
            self._next = _NOWHERE
            if not table.is_regular:
                table = counted_table(path, table.num_bytes, table.mtime_ns)
        self._use(table)

    def _use(self, table: FrameTable) -> None:
        self.table = table
        self.num_frames, self.fps = table.num_frames, table.fps

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3); see `Reader.read`."""
        try:
            return self._read(indices)
        except _NotAsToldError:
            self._count_from_now_on()
            return self._read(indices)

    def speeds(self, indices: Sequence[int]) -> Speeds:
        """Return how fast the content of frames moves; call `read` with the same frames first."""
        assert self._vectors is not None
        return self._vectors.speeds(indices, self.table.height, self.table.width)

    def stream(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) at ascending indices one by one, each decoded once.

        Raises UnreadableError if one of them cannot be decoded, after yielding those before it.
        """
        writer = demux.RgbWriter()
        for frame in self.pictures(indices):
            pixels = np.empty((self.table.height, self.table.width, 3), dtype=np.uint8)
            writer.write(frame, pixels)
            yield demux.orientation_of(frame).apply(pixels)

    def pictures(self, indices: Sequence[int]) -> Iterator[av.VideoFrame]:
        """The frames of `stream`, as FFmpeg frames."""
        missing = dict.fromkeys(indices)  # an ordered set
        while missing:
            try:
                for index, frame in self._frames_at(list(missing)):
                    if index != (first := next(iter(missing))):
                        raise self._lacks(first)
                    missing.pop(index)
                    yield frame
            except _NotAsToldError:  # frames already yielded are kept
                self._count_from_now_on()

    def _read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        shape = len(indices), self.table.height, self.table.width, 3
        pixels = np.empty(shape, dtype=np.uint8)
        rows = {index: row for row, index in enumerate(indices)}
        writer, orientation = demux.RgbWriter(), None
        if self._vectors is not None:
            self._vectors = VectorLog()
        for index, frame in self._frames_at(indices):
            writer.write(frame, pixels[rows[index]])
            if self._vectors is not None:
                self._vectors.keep(index, frame, shape[1:3])
            orientation = orientation or demux.orientation_of(frame)
        assert orientation is not None
        return orientation.apply(pixels)

    def _count_from_now_on(self) -> None:
        """Decode the whole file to number its frames.

        Raises UnreadableError if their number differs from the table's: a frame number would then
        depend on what was read before.
        """
        told = self.table
        table = counted_table(self._path, told.num_bytes, told.mtime_ns)
        if not told.fits(self._path):
            raise UnreadableError("changed while it was read")
        if table.num_frames != told.num_frames:
            raise UnreadableError(f"has {table.num_frames} frames but claims {told.num_frames}")
        if table.is_regular:
            table = _counted(table, "frames that decode only in sequence")
        self._use(table)

    def _lacks(self, index: int) -> UnreadableError:
        return UnreadableError(f"frame {index} of {self.num_frames} cannot be decoded")

    def _frames_at(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) for ascending indices, in order.

        Raises UnreadableError if some cannot be decoded, or _NotAsToldError if the table is wrong.
        """
        missing = dict.fromkeys(indices)
        found = self._decode(indices) if self.table.is_regular else self._count(indices)
        for index, frame in found:
            if index in missing:
                del missing[index]
                yield index, frame
        if missing and self.table.is_regular:
            raise _NotAsToldError
        for index in missing:
            raise self._lacks(index)

    def _runs(self, indices: Sequence[int]) -> list[_Run]:
        """The packets to decode for frames: from the preceding keyframe up to each frame."""
        table, runs = self.table, list[_Run]()
        for index in sorted(indices, key=lambda index: table.places[index]):
            end, time = int(table.places[index]), int(table.times[index])
            which = int(np.searchsorted(table.starts.packets, end, side="right")) - 1
            # Frames that follow a keyframe in the file but are displayed before it need the
            # previous keyframe
            while which > 0 and table.starts.times[which] > time:
                which -= 1
            which = max(which, 0)
            start = int(table.starts.packets[which])
            # A run that starts before earlier ones absorbs them
            while runs and start <= runs[-1][2] + 1:
                which, start, _ = min((which, start, end), runs.pop())
            runs.append((which, start, end))
        return runs

    def _decode(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode a regular file, skipping frames that are neither requested nor referred to."""
        table, context, self._is_used = self.table, self._context, True
        index_at = {int(table.times[index]): index for index in indices}
        size = table.height, table.width
        # Skipping must not change the picture types that motion vectors rely on
        skips = table.codec in _CODECS_THAT_SKIP and self._vectors is None
        skipping = False
        try:
            for which, start, end in self._runs(indices):
                first = int(table.starts.times[which])
                self._latest = first - 1
                here = [index for index in indices if start <= table.places[index] <= end]
                last = int(table.times[max(here)])
                for place, packet in self._from(which):
                    if place > end and not self._waits_for(last):
                        break
                    if skips and skipping != (packet.pts not in index_at):
                        skipping = not skipping
                        context.skip_frame = "NONREF" if skipping else "DEFAULT"
                    yield from self._expected(packet, index_at, first, size)
                yield from self._expected(None, index_at, first, size)
                context.flush_buffers()
        finally:
            context.flush_buffers()
            if skipping:
                context.skip_frame = "DEFAULT"

    def _waits_for(self, last: int) -> bool:
        """Whether the vectors of the frame displayed at ``last`` need further packets.

        Some decoders export no vectors for frames that are flushed at the end.
        """
        vectors = self._vectors
        return vectors is not None and (self._latest < last or vectors.ends_between)

    def _expected(
        self,
        packet: av.Packet | None,
        index_at: dict[int, int],
        first: int,
        size: tuple[int, int],
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode a packet and yield the requested frames; all frames must match the table."""
        frames = demux.decode(self._context, packet)
        if frames is None:
            raise _NotAsToldError
        for frame in frames:
            if frame.pts is None or frame.pts < first:  # follows in the file, displayed before
                continue
            is_next = frame.pts > self._latest
            self._latest = frame.pts
            if not is_next or frame.is_corrupt or (frame.height, frame.width) != size:
                raise _NotAsToldError
            if frame.pts == first and frame.pict_type in _REFERRING:
                raise _NotAsToldError
            if self._vectors is not None:
                index = int(np.searchsorted(self.table.times, frame.pts))
                self._vectors.note(index, frame)
            if frame.pts in index_at:
                yield index_at[frame.pts], frame

    def _count(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode an irregular file from the verified start before each frame, counting frames."""
        firsts = self.table.starts.frames

        def start_of(index: int) -> int:
            return int(np.searchsorted(firsts, index, side="right")) - 1

        for which, group in groupby(indices, key=start_of):
            if self._is_used:  # flushing does not reset all of a decoder's state, such as damage
                self._open()
                self._context = self._stream.codec_context
            self._is_used = True
            waiting, number = deque(group), int(firsts[which])
            packets = (packet for _, packet in self._from(which))
            for packet in chain(packets, [None]):
                for frame in demux.decode(self._context, packet) or []:
                    if self._vectors is not None:
                        self._vectors.note(number, frame)
                    if waiting and number == waiting[0]:
                        yield waiting.popleft(), frame
                    number += 1
                if not waiting and not (self._vectors is not None and self._vectors.ends_between):
                    break
            self._context.flush_buffers()

    def _from(self, which: int) -> Iterator[tuple[int, av.Packet]]:
        """The packets from a start on, each with its number in the file."""
        start = int(self.table.starts.packets[which])
        if self.packets is not None:
            yield from enumerate(self.packets[start:], start)
            return
        if not self._is_near(which) and not self._seek(which):
            self._open()
        for packet in self._feed:
            place = self._next
            self._next += 1
            self._byte = packet.pos or 0
            if place >= start:
                yield place, packet
        self._next = _NOWHERE

    def _open(self) -> None:
        """Open the file at its first packet."""
        self._close()
        self._container, self._stream = demux.open_video(
            self._path, None if self._vectors is None else OPTION
        )
        # Close with this reader at once: the limit on open files may be reached before garbage
        # collection
        self._close = finalize(self, self._container.close)
        self._feed: Iterator[av.Packet] = demux.packets(self._container, self._stream)
        self._next, self._byte = 0, 0  # number of the next packet, and its approximate offset

    def _is_near(self, which: int) -> bool:
        """Whether reading on reaches a start soon."""
        ahead = int(self.table.starts.bytes[which]) - self._byte
        return self._next <= self.table.starts.packets[which] and ahead < _FORWARD_BYTES

    def _seek(self, which: int) -> bool:
        """Make a start the next packet; returns False if it was not found.

        Seeking is not reliable in all containers, so the packet is compared with the table.
        """
        table = self.table
        time, dts = int(table.starts.times[which]), int(table.starts.dts[which])
        byte = int(table.starts.bytes[which])
        name = table.container
        if name not in _SOUGHT_BY_BYTE and (np.diff(table.starts.times) <= 0).any():
            return False  # if times restart, they do not identify a packet
        try:
            if name in _SOUGHT_BY_BYTE and byte >= 0:
                self._container.seek(byte, unsupported_byte_offset=True)
            else:
                by = dts if name.startswith("mov") else time
                self._container.seek(by, stream=self._stream)
        except av.FFmpegError:
            return False
        feed = demux.packets(self._container, self._stream)
        for packet in feed:
            if packet.pts == time and packet.dts in (dts, None) and packet.pos in (byte, None):
                self._feed = chain([packet], feed)
                self._next = int(table.starts.packets[which])
                return True
            if packet.dts is not None and packet.dts > dts:
                return False
        return False


def _counted(table: FrameTable, why: str) -> FrameTable:
    """A regular table converted to counting frames from the start of the file."""
    starts = table.starts
    arrays = starts.packets, starts.times, starts.dts, starts.bytes, starts.frames
    return replace(table, irregular=why, starts=Starts(*(numbers[:1] for numbers in arrays)))
