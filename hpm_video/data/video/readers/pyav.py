"""Reading with PyAV, which brings its own FFmpeg. Reads what FFmpeg reads, and exactly.

A table of the file's frames says which packet holds which frame, and where decoding must begin for
it; then just the packets that matter are decoded. What comes out is held against the table: a file
that is not what its packets say is decoded once from its start to its end, and counted.
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

# Where a frame that no other refers to can be left out. Not so AV1, which may show it a second time
_CODECS_THAT_SKIP = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9")
_FORWARD_BYTES = 2**16  # so far ahead, packets are passed over rather than sought
_SOUGHT_BY_BYTE = ("mpegts", "mpeg")  # they know no times but by searching for them
_NOWHERE = 2**62  # past every packet
_REFERRING = (PictureType.P, PictureType.B, PictureType.S, PictureType.SP)  # to other frames
_Run = tuple[int, int, int]  # which start, its packet and the last packet of what is decoded


class _NotAsToldError(Exception):
    """What is decoded is not what the packets say."""


class PyavReader:
    """An open file, see `Reader`. UnreadableError: FFmpeg finds no video in it.

    ``table``: what is known of the file, else its packets are gone through. ``motion``: `speeds`
    will be asked for. `packets`: all of them, where they were few enough to keep.
    """

    def __init__(self, path: str, table: FrameTable | None = None, *, motion: bool = False) -> None:
        self._path = path
        self._vectors = VectorLog() if motion else None
        self._close: Callable[[], object] = lambda: None
        self._open()
        self._context, self._is_used = self._stream.codec_context, False
        self._latest = 0  # when the frame is shown that came last
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
        """Return how fast what is shown moves in the frames that were just read: `read` comes
        first, of the same frames."""
        assert self._vectors is not None
        return self._vectors.speeds(indices, self.table.height, self.table.width)

    def stream(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) at rising indices one by one, each decoded once.

        Raises UnreadableError: one of them cannot be decoded; those before it have been given.
        """
        writer = demux.RgbWriter()
        for frame in self.pictures(indices):
            pixels = np.empty((self.table.height, self.table.width, 3), dtype=np.uint8)
            writer.write(frame, pixels)
            yield demux.orientation_of(frame).apply(pixels)

    def pictures(self, indices: Sequence[int]) -> Iterator[av.VideoFrame]:
        """What `stream` yields, as FFmpeg has it."""
        missing = dict.fromkeys(indices)  # in order
        while missing:
            try:
                for index, frame in self._frames_at(list(missing)):
                    if index != (first := next(iter(missing))):
                        raise self._lacks(first)
                    missing.pop(index)
                    yield frame
            except _NotAsToldError:  # what has been given stays given
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
        """Decode the whole file to number its frames, which has to give as many as were promised:
        else what a number means would depend on what was read before."""
        told = self.table
        table = counted_table(self._path, told.num_bytes, told.mtime_ns)
        if not told.fits(self._path):
            raise UnreadableError("was changed while it was read")
        if table.num_frames != told.num_frames:
            raise UnreadableError(f"holds {table.num_frames} frames and claims {told.num_frames}")
        if table.is_regular:
            table = _counted(table, "frames that decode only in a row")
        self._use(table)

    def _lacks(self, index: int) -> UnreadableError:
        return UnreadableError(f"frame {index} of {self.num_frames} cannot be decoded")

    def _frames_at(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) for rising indices, in order.

        Raises UnreadableError: not all of them can be decoded; _NotAsToldError: the table is wrong.
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
        """What to decode for frames: from the keyframe before each of them up to itself."""
        table, runs = self.table, list[_Run]()
        for index in sorted(indices, key=lambda index: table.places[index]):
            end, time = int(table.places[index]), int(table.times[index])
            which = int(np.searchsorted(table.starts.packets, end, side="right")) - 1
            # Frames that follow a keyframe in the file but are shown before it need the last one
            while which > 0 and table.starts.times[which] > time:
                which -= 1
            which = max(which, 0)
            start = int(table.starts.packets[which])
            # One that begins earlier than those before it takes them in
            while runs and start <= runs[-1][2] + 1:
                which, start, _ = min((which, start, end), runs.pop())
            runs.append((which, start, end))
        return runs

    def _decode(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode a regular file; frames that nobody wants and no other refers to are left out."""
        table, context, self._is_used = self.table, self._context, True
        index_at = {int(table.times[index]): index for index in indices}
        size = table.height, table.width
        # Which frames come must not depend on which are asked for where their kinds count
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
        """Whether packets after that of the frame shown at a time are needed for its vectors: some
        decoders tell none of frames that come only because there is no further packet."""
        vectors = self._vectors
        return vectors is not None and (self._latest < last or vectors.ends_between)

    def _expected(
        self,
        packet: av.Packet | None,
        index_at: dict[int, int],
        first: int,
        size: tuple[int, int],
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode a packet, and yield the wanted frames that come out; all must be as told."""
        frames = demux.decode(self._context, packet)
        if frames is None:
            raise _NotAsToldError
        for frame in frames:
            if frame.pts is None or frame.pts < first:  # shown before, and follows in the file
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
        """Decode an irregular file from the tried place before each frame on, and count."""
        firsts = self.table.starts.frames

        def start_of(index: int) -> int:
            return int(np.searchsorted(firsts, index, side="right")) - 1

        for which, group in groupby(indices, key=start_of):
            if self._is_used:  # a decoder that is flushed still remembers what was damaged, say
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
        """The packets from a start on, each with its place among all."""
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
        """Begin at the file's first packet."""
        self._close()
        self._container, self._stream = demux.open_video(
            self._path, None if self._vectors is None else OPTION
        )
        # At once when this reader goes, as a limit on open files may come before the collector
        self._close = finalize(self, self._container.close)
        self._feed: Iterator[av.Packet] = demux.packets(self._container, self._stream)
        self._next, self._byte = 0, 0  # the packet that comes next, and about where it stands

    def _is_near(self, which: int) -> bool:
        """Whether going on from here comes to a start soon."""
        ahead = int(self.table.starts.bytes[which]) - self._byte
        return self._next <= self.table.starts.packets[which] and ahead < _FORWARD_BYTES

    def _seek(self, which: int) -> bool:
        """Let a start be the packet that comes next; False where it was not found.

        Containers do not always keep what they promise: so the packet must be the one looked for.
        """
        table = self.table
        time, dts = int(table.starts.times[which]), int(table.starts.dts[which])
        byte = int(table.starts.bytes[which])
        name = table.container
        if name not in _SOUGHT_BY_BYTE and (np.diff(table.starts.times) <= 0).any():
            return False  # where times start again, no time says where
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
    """A regular table as one by which frames are counted from the start of the file."""
    starts = table.starts
    arrays = starts.packets, starts.times, starts.dts, starts.bytes, starts.frames
    return replace(table, irregular=why, starts=Starts(*(numbers[:1] for numbers in arrays)))
