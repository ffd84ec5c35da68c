"""Encodes a video for training with PyAV: small, fast to decode, fast to seek in.

Keyframes are close together, there are no B-frames, and x264 avoids features that are slow to
decode. Frames keep their number, order and times. Rotation is applied; the pixel aspect ratio is
kept. Sound, transparency and anything beyond 8 bits per channel are dropped.
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

# x264's presets, from fastest to smallest files
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
USUAL_FPS = 25  # for sources without times or frame rate


@dataclass(frozen=True)
class Encoding:
    """Encoder settings."""

    short_side: int = 256  # most pixels, even; smaller videos are not enlarged
    gop: int = 16  # most frames from one keyframe to the next
    crf: int = 23  # x264's constant quality in [0, 51], lower is better and larger
    preset: str = "fast"  # one of PRESETS
    fps: float | None = None  # by repeating and dropping frames; None keeps all frames
    deinterlace: bool = False  # deinterlace frames that are flagged as interlaced

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
    """Number of frames read and written, which differ only with a new frame rate."""

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
    """Encode the video `source` as the H.264 mp4 file `target`, which is overwritten.

    ``has_times``: use the file's frame times; otherwise its frame rate. ``part``: the source's
    frame table, and the frames to encode.

    Raises VideoReadError if the source cannot be decoded to its end or has no frames, and OSError
    if the target cannot be written or encoding fails.
    """
    try:
        return _encode(_Reader(source, has_times=has_times, part=part), target, encoding)
    except av.error.FFmpegError as error:  # reading raises VideoReadError instead
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
    # No dates and random numbers, so that output is reproducible
    with av.open(target, "w", format="mp4", container_options={"fflags": "bitexact"}) as output:
        stream = output.add_stream("libx264", rate=rate)
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = encoding.gop, 0, 1
        context.time_base = time_base
        # mbtree is not deterministic; with such short GOPs it saves only about 2% of size
        context.options = {
            "preset": encoding.preset, "tune": "fastdecode", "crf": str(encoding.crf),
            "x264-params": "mbtree=0",
        }  # fmt: skip
        if ratio := reader.pixel_aspect:
            context.sample_aspect_ratio = 1 / ratio if _is_sideways(first) else ratio
        graphs: dict[tuple[object, ...], av.filter.Graph] = {}
        for frame, pts in shown:
            # All of these may change within a file
            size = frame.width, frame.height
            kind = (*size, frame.format.name, demux.orientation_of(frame))
            if kind not in graphs:
                odd_shape = size != (first.width, first.height)
                graphs[kind] = _make_graph(frame, width, height, odd_shape=odd_shape)
            frame.pts = None  # its unit differs
            graphs[kind].vpush(frame)
            picture = graphs[kind].vpull()
            picture.pts, picture.time_base = pts, time_base
            picture.pict_type = PictureType.NONE  # else source keyframes are copied
            if num_written == 0:
                for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
                    setattr(context, name, getattr(picture, name))
            output.mux(stream.encode(picture))
            num_written += 1
        output.mux(stream.encode(None))
    return Encoded(reader.num_read, num_written)


class _Reader:
    """Decodes a file, or a part of it, from start to end."""

    def __init__(
        self, path: str, *, has_times: bool, part: tuple[FrameTable, range] | None
    ) -> None:
        self.path, self._has_times, self._part = path, has_times, part
        self.num_read = 0  # frames decoded so far
        # Set on opening; None if unknown
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
                if frame.time_base is None:  # as for frames flushed at the end
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
        """Yield the frames of a folder, or the one of an image; all of them must decode."""
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
    """Yield one frame per frame, deinterlaced where needed, using its neighbours."""
    kind = attrgetter("width", "height", "format.name")
    for _, alike in groupby(frames, key=kind):
        graph: av.filter.Graph | None = None
        waiting: deque[tuple[int | None, int]] = deque()  # display time and duration of frames
        for number, frame in enumerate(alike):
            if graph is None:
                graph, time_base = av.filter.Graph(), frame.time_base or Fraction(1, 1000)
                source = graph.add_buffer(
                    width=frame.width, height=frame.height, format=frame.format, time_base=time_base
                )
                filters = graph.add("bwdif", "mode=send_frame:deint=interlaced")
                graph.link_nodes(source, filters, graph.add("buffersink")).configure()
            waiting.append((frame.pts, frame.duration or 0))
            frame.pts = number  # required by the filter
            graph.vpush(frame)
            yield from _pulled(graph, waiting, time_base)
        if graph is not None:
            graph.vpush(None)
            yield from _pulled(graph, waiting, time_base)


def _pulled(
    graph: av.filter.Graph, waiting: deque[tuple[int | None, int]], time_base: Fraction
) -> Iterator[VideoFrame]:
    """Yield the frames that the filter has ready, in order, with their times."""
    with suppress(BlockingIOError, EOFError):  # needs more frames; end
        while waiting:
            frame = graph.vpull()
            frame.pts, frame.duration = waiting.popleft()
            frame.time_base = time_base
            yield frame


def _make_graph(frame: VideoFrame, width: int, height: int, *, odd_shape: bool) -> av.filter.Graph:
    """A filter graph that rotates and scales frames like this one, to yuv420p in TV range.

    ``odd_shape``: the frame differs in size from the first, so add bars to keep its aspect ratio.
    """
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # older versions lack it
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
    """Width and height as displayed: even, with the same aspect ratio, and never enlarged."""
    width, height = frame.width, frame.height
    if _is_sideways(frame):
        width, height = height, width
    scale = min(Fraction(1), Fraction(short_side, min(width, height)))

    def even(side: int) -> int:
        return max(2, min(2 * round(side * scale / 2), side // 2 * 2))

    return even(width), even(height)


def _timed(frames: Iterator[VideoFrame], step: int) -> Iterator[tuple[VideoFrame, int, int]]:
    """Yield (frame, start, end) in units of the frames' time base, starting at 0 and increasing.

    `step` is the default duration, for frames without times.
    """
    held: tuple[VideoFrame, int] | None = None
    start: int | None = None  # file time that maps to 0
    last: int | None = None  # file time of the held frame
    for frame in frames:
        time, now = 0, frame.pts
        if start is None:
            start = now
        if held is not None:
            time = held[1] + step
            if now is not None and start is not None:
                if last is not None and now < last:  # a concatenated recording
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
    """Yield (frame, time), in new units that are 1 / scale of the frames' units.

    A frame is shown from the unit nearest to its start until the unit nearest to its end, so frames
    are repeated or dropped. A video shorter than one unit gives its last frame.
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
