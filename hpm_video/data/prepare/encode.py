"""One video encoded anew for training, with PyAV: small, quick to decode, quick to seek in.

Keyframes are close together, there are no B-frames, and x264 leaves out what costs decoders time.
Frames keep their number, order and times; the picture is turned as it is displayed, its shape of
pixels stays. Sound, transparency and anything beyond 8 bits a channel are dropped.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, groupby
from math import floor
from operator import attrgetter

import av
import numpy as np
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import VideoReadError, reading
from hpm_video.data.video.readers import UnreadableError, demux
from hpm_video.data.video.readers.exact import exact_reader
from hpm_video.data.video.readers.frame_folder import is_pictures
from hpm_video.data.video.readers.pyav import PyavReader

# x264's, from the quickest to the one that makes the smallest files
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
USUAL_FPS = 25  # where nothing says how long frames are shown


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded."""

    short_side: int = 256  # pixels at most, even; smaller videos are not enlarged
    gop: int = 16  # frames from one keyframe to the next, at most
    crf: int = 23  # x264's constant quality in [0, 51], lower is better and larger
    preset: str = "fast"  # one of PRESETS
    fps: float | None = None  # by repeating and dropping frames; None keeps all frames as they are
    deinterlace: bool = False  # make whole pictures of frames that are flagged as interlaced

    def __post_init__(self) -> None:
        """Raise ValueError for a setting out of range."""
        if self.short_side < 2 or self.short_side % 2:
            raise ValueError(f"short_side ({self.short_side}) must be even and at least 2")
        if self.gop < 1:
            raise ValueError(f"gop ({self.gop}) must be at least 1")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf ({self.crf}) must be in [0, 51]")
        if self.preset not in PRESETS:
            raise ValueError(f"preset ({self.preset}) must be one of {', '.join(PRESETS)}")
        if self.fps is not None and not 0.01 <= self.fps <= 1000:
            raise ValueError(f"fps ({self.fps:g}) must be in [0.01, 1000]")


@dataclass(frozen=True)
class Encoded:
    """How many frames were read, and how many written (others only with a new frame rate)."""

    num_read: int
    num_written: int


def encode_video(
    source: str,
    target: str,
    encoding: Encoding,
    *,
    has_times: bool = True,
    part: tuple[FrameTable, range] | None = None,
) -> Encoded:
    """Encode the video `source` as the H.264 mp4 file `target`, which is written over.

    ``has_times``: whether frames are shown when the file says, else at its number per second.
    ``part``: these frames alone, by what is known of the source.

    Raises VideoReadError: the source cannot be decoded to its end, or has no frames; OSError: the
    target cannot be written, or not in this way.
    """
    try:
        return _encode(_Reader(source, has_times=has_times, part=part), target, encoding)
    except av.error.FFmpegError as error:  # one from reading is a VideoReadError already
        raise OSError(error.errno, error.strerror) from error


def _encode(reader: "_Reader", target: str, encoding: Encoding) -> Encoded:
    frames = _deinterlaced(reader.frames()) if encoding.deinterlace else reader.frames()
    first = next(frames, None)
    if first is None:
        raise VideoReadError(reader.path, "has no frames")
    width, height = _target_size(first, encoding.short_side)
    time_base = first.time_base if first.time_base else Fraction(1, 1000)
    rate = reader.rate or Fraction(USUAL_FPS)
    timed = _timed(chain([first], frames), max(1, round(1 / rate / time_base)))
    shown: Iterator[tuple[VideoFrame, int]] = ((frame, start) for frame, start, _ in timed)
    if encoding.fps is not None:
        rate = Fraction(encoding.fps).limit_denominator(1001)
        shown, time_base = _resampled(timed, time_base * rate), 1 / rate
    num_written = 0
    # No dates and random numbers: the same video twice is the same file
    with av.open(target, "w", format="mp4", container_options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("libx264", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = encoding.gop, 0, 1
        context.time_base = time_base
        # mbtree's result may differ from run to run; with so short a GOP it saves some 2% of size
        context.options = {
            "preset": encoding.preset, "tune": "fastdecode", "crf": str(encoding.crf),
            "x264-params": "mbtree=0",
        }  # fmt: skip
        if ratio := reader.pixel_aspect:
            context.sample_aspect_ratio = 1 / ratio if _is_sideways(first) else ratio
        graphs: dict[tuple[object, ...], av.filter.Graph] = {}
        for frame, pts in shown:
            # All of which may change within a file
            size = frame.width, frame.height
            kind = (*size, frame.format.name, demux.orientation_of(frame))
            if kind not in graphs:
                odd_shape = size != (first.width, first.height)
                graphs[kind] = _make_graph(frame, width, height, odd_shape=odd_shape)
            frame.pts = None  # whose unit is another one
            graphs[kind].vpush(frame)
            picture = graphs[kind].vpull()
            picture.pts, picture.time_base = pts, time_base
            picture.pict_type = PictureType.NONE  # else keyframes of the source become some here
            if num_written == 0:
                for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
                    setattr(context, name, getattr(picture, name))
            output.mux(stream.encode(picture))
            num_written += 1
        output.mux(stream.encode(None))
    return Encoded(reader.num_read, num_written)


class _Reader:
    """Decodes a file from its start to its end, or a part of it."""

    def __init__(
        self, path: str, *, has_times: bool, part: tuple[FrameTable, range] | None
    ) -> None:
        self.path, self._has_times, self._part = path, has_times, part
        self.num_read = 0  # frames decoded so far
        # Both known after opening, and None where the file does not say
        self.rate: Fraction | None = None  # average frames per second
        self.pixel_aspect: Fraction | None = None  # width / height of a pixel

    def frames(self) -> Iterator[VideoFrame]:
        """Yield all frames that can be decoded, in order."""
        if is_pictures(self.path):
            yield from self._stills()
            return
        try:
            container, stream = demux.open_video(self.path)
        except UnreadableError as error:
            raise VideoReadError(self.path, str(error)) from error
        with container:
            self.rate, self.pixel_aspect = stream.average_rate, stream.sample_aspect_ratio
            for frame in self._pictures(container, stream):
                self.num_read += 1
                if not self._has_times:
                    frame.pts = None
                if frame.time_base is None:  # as of those that came last
                    frame.time_base = stream.time_base
                yield frame

    def _pictures(
        self, container: av.container.InputContainer, stream: VideoStream
    ) -> Iterator[VideoFrame]:
        if self._part is not None:
            table, frames = self._part
            yield from PyavReader(self.path, table).pictures(frames)
            return
        for packet in chain(demux.packets(container, stream), [None]):
            yield from demux.decode(stream.codec_context, packet) or []

    def _stills(self) -> Iterator[VideoFrame]:
        """Yield the frames of a folder, or the one of an image: all of them must decode."""
        with reading(self.path):
            reader = exact_reader(self.path)
            self.rate = Fraction(reader.fps).limit_denominator(1_000_000) or None
            wanted = range(reader.num_frames) if self._part is None else self._part[1]
            for number, pixels in zip(wanted, reader.stream(wanted), strict=True):
                frame = VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
                frame.pts, frame.time_base = number, 1 / (self.rate or Fraction(USUAL_FPS))
                self.num_read += 1
                yield frame


def _deinterlaced(frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
    """Yield a frame for each, whole where it was interlaced; frames around it help with that."""
    kind = attrgetter("width", "height", "format.name")
    for _, alike in groupby(frames, key=kind):
        graph: av.filter.Graph | None = None
        waiting: deque[tuple[int | None, int]] = deque()  # when frames are shown, and how long
        for number, frame in enumerate(alike):
            if graph is None:
                graph, time_base = av.filter.Graph(), frame.time_base or Fraction(1, 1000)
                source = graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=time_base
                )
                filters = graph.add("bwdif", "mode=send_frame:deint=interlaced")
                graph.link_nodes(source, filters, graph.add("buffersink")).configure()
            waiting.append((frame.pts, frame.duration or 0))
            frame.pts = number  # the filter must have one
            graph.vpush(frame)
            yield from _pulled(graph, waiting, time_base)
        if graph is not None:
            graph.vpush(None)
            yield from _pulled(graph, waiting, time_base)


def _pulled(
    graph: av.filter.Graph, waiting: deque[tuple[int | None, int]], time_base: Fraction
) -> Iterator[VideoFrame]:
    """Yield the frames that are ready, which come in order, with their times."""
    with suppress(BlockingIOError, EOFError):  # wants more frames; was the last one
        while waiting:
            frame = graph.vpull()
            frame.pts, frame.duration = waiting.popleft()
            frame.time_base = time_base
            yield frame


def _make_graph(frame: VideoFrame, width: int, height: int, *, odd_shape: bool) -> av.filter.Graph:
    """What turns and scales frames like this one to a size, as yuv420p of the usual range.

    ``odd_shape``: whether the size is that of other frames: this one gets bars around it then.
    """
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # older ones choose for themselves
        graph.threads = 1
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
    ]
    turn = demux.orientation_of(frame)
    if turn.transposed:
        nodes.append(graph.add("transpose", "cclock_flip"))
    if turn.left_right:
        nodes.append(graph.add("hflip"))
    if turn.up_down:
        nodes.append(graph.add("vflip"))
    fit = "force_original_aspect_ratio=decrease:" if odd_shape else ""
    nodes.append(graph.add("scale", f"{width}:{height}:{fit}flags=bicubic:out_range=tv"))
    if odd_shape:
        nodes.append(graph.add("pad", f"{width}:{height}:(ow-iw)/2:(oh-ih)/2"))
    nodes += [graph.add("format", "yuv420p"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _is_sideways(frame: VideoFrame) -> bool:
    return demux.orientation_of(frame).transposed


def _target_size(frame: VideoFrame, short_side: int) -> tuple[int, int]:
    """Width and height as displayed: even, of the same shape, and not above what there is."""
    width, height = frame.width, frame.height
    if _is_sideways(frame):
        width, height = height, width
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))

    def even(side: int) -> int:
        return max(2, min(2 * round(side * scale / 2), side // 2 * 2))

    return even(width), even(height)


def _timed(frames: Iterator[VideoFrame], step: int) -> Iterator[tuple[VideoFrame, int, int]]:
    """Yield (frame, start, end) in units of the frames' time base, from 0 and always increasing.

    `step` is the usual length of a frame, for those that do not say when they are shown.
    """
    held: tuple[VideoFrame, int] | None = None
    start: int | None = None  # what is 0 here
    last: int | None = None  # the time in the file of the frame that is held
    for frame in frames:
        time, now = 0, frame.pts
        if start is None:
            start = now
        if held is not None:
            time = held[1] + step
            if now is not None and start is not None:
                if last is not None and now < last:  # another recording, joined to the first
                    start = now - time
                elif now != last:
                    time = max(now - start, held[1] + 1)
            yield *held, time
        held, last = (frame, time), now
    if held is not None:
        yield *held, held[1] + (held[0].duration or step)


def _resampled(
    frames: Iterator[tuple[VideoFrame, int, int]], scale: Fraction
) -> Iterator[tuple[VideoFrame, int]]:
    """Yield (frame, time in other units, which are 1 / scale of those of the frames).

    A frame is shown from the unit nearest to its start until that nearest to its end: some
    repeatedly, others not at all; of a video shorter than a unit, the last.
    """
    shown = 0
    frame = None
    for frame, _, end in frames:
        until = floor(end * scale + Fraction(1, 2))
        while shown < until:
            yield frame, shown
            shown += 1
    if shown == 0 and frame is not None:
        yield frame, 0
