"""Reading with PyAV, which brings its own FFmpeg. Reads what FFmpeg reads, and exactly.

A file is gone through once without decoding. That says which packet holds which frame, and where
decoding must begin for it; then just the packets that matter are decoded, in the file's order. No
place in the file is ever sought: what containers say about that is what other readers trip over.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain, islice
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from hpm_video.data.video.readers import UnreadableError, containers, h264

# FFmpeg's complaints, several for every damaged file, would drown the log of a run
av.logging.set_level(av.logging.PANIC)

# Older versions refuse a file whose metadata is not UTF-8, unless told otherwise
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}

# Packets of a file up to this size stay in memory from the first pass; of others they are read anew
_MOST_KEPT_BYTES = 64 * 2**20
# Where a frame that no other refers to can be left out. Not so AV1, which may show it a second time
_CODECS_THAT_SKIP = ("h264", "hevc", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9")
_Run = tuple[int, int]  # first and last packet, in the file's order, of what is decoded in one go


class PyavReader:
    """An open file, see `Reader`. UnreadableError: FFmpeg finds no video in it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._container = _open(path)
        context = self._container.streams.video[0].codec_context
        self._size = context.height, context.width
        rate = self._container.streams.video[0].average_rate
        self.fps = float(rate) if rate else 0.0

        self._packets: list[av.Packet] | None = []
        times: list[int | None] = []  # when the frame of each packet is shown
        lasting: list[int] = []  # for how long, 0 where the file does not say
        starts: list[int] = []  # packets that need none before them
        shown: list[int] = []  # packets of frames to see
        size = 0
        for place, packet in enumerate(_packets(self._container)):
            times.append(packet.pts)
            lasting.append(packet.duration or 0)
            if packet.is_keyframe and _is_start(context, packet):
                starts.append(place)
            if not packet.is_discard and not _is_helper(context.name, packet):
                shown.append(place)
            size += packet.size
            if size > _MOST_KEPT_BYTES:
                self._packets = None
            elif self._packets is not None:
                self._packets.append(packet)
        self.num_frames = len(shown)
        if not self.num_frames:
            raise UnreadableError("has no frames")
        self._starts = np.array(starts, dtype=np.int64)
        # Without a time of its own for every frame, frames can only be counted from the start. An
        # AVI has none: what FFmpeg then makes up is right where frames come in the order shown
        known = {times[place] for place in shown}
        is_guess = self._container.format.name == "avi" and context.has_b_frames
        self._is_timed = None not in known and len(known) == len(shown) and not is_guess
        self._times = np.array([time or 0 for time in times], dtype=np.int64)
        # The packet of each frame, in the order in which frames are shown
        self._places = np.array(sorted(shown, key=lambda place: self._times[place]))
        self._last_lasts = lasting[self._places[-1]]

    @cached_property
    def times(self) -> npt.NDArray[np.float64]:
        """When each frame appears and, at the end, when the last one goes: (num_frames + 1,).

        In seconds from the start of the file, as players count; from the number of frames per
        second where frames have no times, NaN without that either.
        """
        step = 1 / self.fps if self.fps else np.nan
        if not self._is_timed:
            return np.arange(self.num_frames + 1, dtype=np.float64) * step
        unit = self._container.streams.video[0].time_base
        assert unit is not None
        times = self._times[self._places] * unit.numerator / unit.denominator
        start = (self._container.start_time or 0) / av.time_base
        if abs(times[0] - start) < 2 / av.time_base:  # the video's own start, rounded
            start = times[0]
        length = self._last_lasts * unit.numerator / unit.denominator or step
        return np.asarray(np.append(times, times[-1] + length) - start, dtype=np.float64)

    def stream(self, indices: Sequence[int]) -> Iterator[npt.NDArray[np.uint8]]:
        """Yield the frames (H, W, 3) at rising indices one by one, each decoded once.

        Raises UnreadableError: one of them cannot be decoded; those before it have been given.
        """
        missing = dict.fromkeys(indices)  # in order
        reformatter = VideoReformatter()
        for index, frame in self._frames_at(missing):
            if index in missing:
                if index != (first := next(iter(missing))):
                    raise self._lacks(first)
                missing.pop(index)
                pixels = np.empty((*self._size, 3), dtype=np.uint8)
                _write_rgb(frame, pixels, reformatter)
                yield np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90)))

    def _lacks(self, index: int) -> UnreadableError:
        return UnreadableError(f"frame {index} of {self.num_frames} cannot be decoded")

    def read(self, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        """Return frames (T, H, W, 3); see `Reader.read`."""
        pixels = np.empty((len(indices), *self._size, 3), dtype=np.uint8)
        rows = {index: row for row, index in enumerate(indices)}
        missing = dict.fromkeys(indices)  # in order
        reformatter = VideoReformatter()  # keeps its tables from frame to frame
        turns = 0  # counter-clockwise, by quarters
        for index, frame in self._frames_at(missing):
            _write_rgb(frame, pixels[rows[index]], reformatter)
            turns = round(frame.rotation / 90)
            missing.pop(index, None)
        return np.ascontiguousarray(np.rot90(pixels, turns, axes=(1, 2))) if turns else pixels

    def _frames_at(self, missing: dict[int, None]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield (index, frame) of what is missing; who takes them crosses them out there.

        Raises UnreadableError: not all of them can be decoded.
        """
        if not self._is_timed:
            yield from self._count(list(missing))
        else:
            skips = self._container.streams.video[0].codec_context.name in _CODECS_THAT_SKIP
            yield from self._decode(self._runs(list(missing)), list(missing), skips=skips)
            if rest := list(missing):
                # From the start of the file everything can be decoded that can be at all
                yield from self._decode([(0, int(self._places[rest].max()))], rest, skips=False)
        for index in missing:
            raise self._lacks(index)

    def _runs(self, indices: Sequence[int]) -> list[_Run]:
        """What to decode for frames: from the keyframe before each of them up to itself."""
        runs: list[_Run] = []
        for end in np.sort(self._places[list(indices)]).tolist():
            # Frames that follow a keyframe in the file but are shown before it need the last one
            starts = self._starts[: np.searchsorted(self._starts, end, side="right")]
            starts = starts[self._times[starts] <= self._times[end]]
            start = int(starts[-1]) if len(starts) else 0
            # One that begins earlier than those before it takes them in
            while runs and start <= runs[-1][1] + 1:
                start = min(start, runs.pop()[0])
            runs.append((start, end))
        return runs

    def _decode(
        self, runs: Iterable[_Run], indices: Sequence[int], *, skips: bool
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode runs of packets; yields (index, frame) for `indices`, as far as they come.

        With `skips`, frames that are not asked for and that no other refers to are not decoded.
        """
        index_at = {int(self._times[self._places[index]]): index for index in indices}
        container, packets = self._from_the_start()
        context = container.streams.video[0].codec_context
        place, skipping = 0, False
        for start, end in runs:
            for packet in chain(islice(packets, start - place, end + 1 - place), [None]):
                if skips and packet is not None and skipping != (packet.pts not in index_at):
                    skipping = not skipping
                    context.skip_frame = "NONREF" if skipping else "DEFAULT"
                for frame in _frames(context, packet):
                    if frame.pts in index_at:
                        yield index_at[frame.pts], frame
            context.flush_buffers()
            place = end + 1
        if skipping:
            context.skip_frame = "DEFAULT"

    def _count(self, indices: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode from the start and count; yields (index, frame) for `indices`."""
        wanted, last = set(indices), max(indices)
        container, packets = self._from_the_start()
        context = container.streams.video[0].codec_context
        number = 0
        for packet in chain(packets, [None]):
            for frame in _frames(context, packet):
                if number in wanted:
                    yield number, frame
                number += 1
            if number > last:
                break
        context.flush_buffers()

    def _from_the_start(self) -> tuple[av.container.InputContainer, Iterator[av.Packet]]:
        """A container to decode with and all packets of the video."""
        if self._packets is not None:
            return self._container, iter(self._packets)
        container = _open(self._path)
        return container, _packets(container)


def _write_rgb(
    frame: av.VideoFrame, pixels: npt.NDArray[np.uint8], reformatter: VideoReformatter
) -> None:
    """Write a frame into `pixels` (H, W, 3); one of another size, on the way, is scaled to it."""
    height, width, _ = pixels.shape
    # Colour of the nearest chroma sample, as FFmpeg converts 8-bit video by default
    rgb = reformatter.reformat(
        frame, width=width, height=height, format="rgb24", interpolation="POINT", threads=1
    )
    plane = rgb.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
    pixels[:] = lines[:, : 3 * width].reshape(height, width, 3)


def open_container(source: str | BinaryIO) -> av.container.InputContainer:
    """Open a file to read from it, whatever the encoding of its metadata.

    Raises what `av.open` raises: FFmpegError, OSError, ValueError.
    """
    return av.open(source, **_LENIENT)


def _open(path: str) -> av.container.InputContainer:
    """Open a file; UnreadableError where there is no video in it."""
    try:
        path.encode()
        source: str | BinaryIO = f"file:{path}"  # without it, a:b.mp4 would name a protocol
    except UnicodeEncodeError:  # a name that is not UTF-8
        source = open(path, "rb")  # noqa: SIM115
    try:
        container = open_container(source)
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(_why_not_opened(path)) from error
    if not container.streams.video:
        sound = ", only sound" if container.streams.audio else ""
        raise UnreadableError(f"has no video{sound}")
    stream = container.streams.video[0]
    try:
        stream.codec_context.thread_count = 1  # the work is shared out by clips, not by frames
    except AttributeError as error:  # no context
        raise UnreadableError("has video of an unknown kind") from error
    return container


def _why_not_opened(path: str) -> str:
    with open(path, "rb") as file:
        if containers.kind(file.read(containers.HEAD_BYTES)) == "mp4" and containers.lacks_index(
            file
        ):
            return "is cut off: an mp4 cannot be read without the index at its end"
    return "is not a video, or its header is damaged"


def _packets(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The packets of the video, up to the end or to where the file is damaged beyond reading on."""
    try:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:  # the last one says that it is the last
                yield packet
    except av.FFmpegError:
        return


def _frames(context: av.VideoCodecContext, packet: av.Packet | None) -> Iterator[av.VideoFrame]:
    """The frames that come out when a packet goes in; none of one that is damaged."""
    try:
        yield from context.decode(packet)
    except av.FFmpegError:
        return


def _is_start(context: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether decoding may begin at a keyframe."""
    if packet.is_corrupt:  # what is missing of it is filled in from the frame before
        return False
    if context.name != "h264":
        return True
    return h264.is_clean_start(memoryview(packet), context.extradata or b"")


def _is_helper(codec: str, packet: av.Packet) -> bool:
    """Whether a packet holds a frame that others refer to and that is never shown (VP8)."""
    return codec in ("vp8", "libvpx") and not memoryview(packet)[0] & 0x10
