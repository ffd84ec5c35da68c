"""One video encoded anew for training, with PyAV: small, quick to decode, quick to seek in.

Keyframes are close together, there are no B-frames, and x264 leaves out what costs decoders time.
Frames keep their number, order and times; the picture is turned as it is displayed, its shape of
pixels stays. Sound, transparency and anything beyond 8 bits a channel are dropped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from math import floor

import av
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.readers.pyav import open_container

# x264's, from the quickest to the one that makes the smallest files
PRESETS = (
    "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow",
)  # fmt: skip
_TURNS = {90: "cclock", 270: "clock"}  # of the display matrix, counterclockwise -> transpose filter


@dataclass(frozen=True)
class Encoding:
    """How videos are encoded."""

    short_side: int = 256  # pixels at most, even; smaller videos are not enlarged
    gop: int = 16  # frames from one keyframe to the next, at most
    crf: int = 23  # x264's constant quality in [0, 51], lower is better and larger
    preset: str = "fast"  # one of PRESETS
    fps: float | None = None  # by repeating and dropping frames; None keeps all frames as they are

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


def encode_video(source: str, target: str, encoding: Encoding) -> Encoded:
    """Encode the video `source` as the H.264 mp4 file `target`, which is written over.

    Raises VideoReadError: the source cannot be decoded to its end, or has no frames; OSError: the
    target cannot be written, or not in this way.
    """
    try:
        return _encode(source, target, encoding)
    except av.error.FFmpegError as error:  # one from reading is a VideoReadError already
        raise OSError(error.errno, error.strerror) from error


def _encode(source: str, target: str, encoding: Encoding) -> Encoded:
    reader = _Reader(source)
    frames = reader.frames()
    first = next(frames, None)
    if first is None:
        raise VideoReadError(source, "has no frames")
    width, height = _target_size(first, encoding.short_side)
    time_base = first.time_base if first.time_base else Fraction(1, 1000)
    rate = reader.rate or Fraction(25)
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
            kind = (frame.width, frame.height, frame.format.name, frame.rotation)
            if kind not in graphs:
                graphs[kind] = _make_graph(frame, width, height)
            frame.pts = None  # whose unit is another one
            graphs[kind].vpush(frame)
            picture = graphs[kind].vpull()
            picture.pts, picture.time_base = pts, time_base
            if num_written == 0:
                for name in ("colorspace", "color_primaries", "color_trc", "color_range"):
                    setattr(context, name, getattr(picture, name))
            output.mux(stream.encode(picture))
            num_written += 1
        output.mux(stream.encode(None))
    return Encoded(reader.num_read, num_written)


def count_frames(path: str) -> int:
    """How many frames of a video can be decoded, passing over what cannot; 0 for no video."""
    reader = _Reader(path)
    try:
        return sum(1 for _ in reader.frames(strict=False))
    except VideoReadError:
        return reader.num_read


class _Reader:
    """Decodes a file from its start to its end."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.num_read = 0  # frames decoded so far
        # Both known after opening, and None where the file does not say
        self.rate: Fraction | None = None  # average frames per second
        self.pixel_aspect: Fraction | None = None  # width / height of a pixel

    def frames(self, *, strict: bool = True) -> Iterator[VideoFrame]:
        """Yield all frames in order; strict raises VideoReadError for one that is damaged."""
        try:
            with open_container(self._path) as container:
                stream = container.streams.best("video")
                if not isinstance(stream, VideoStream):
                    raise VideoReadError(self._path, "has no video stream")
                self.rate, self.pixel_aspect = stream.average_rate, stream.sample_aspect_ratio
                stream.codec_context.thread_count = 1  # videos are encoded in parallel
                for packet in container.demux(stream):
                    try:
                        decoded = packet.decode()
                    except av.error.InvalidDataError:
                        if strict:
                            raise
                        continue
                    for frame in decoded:
                        self.num_read += 1
                        yield frame
        except (av.error.FFmpegError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise VideoReadError(self._path, reason) from error


def _make_graph(frame: VideoFrame, width: int, height: int) -> av.filter.Graph:
    """What turns and scales frames like this one to a size, as yuv420p of the usual range."""
    graph = av.filter.Graph()
    if hasattr(graph, "threads"):  # older ones choose for themselves
        graph.threads = 1
    nodes = [
        graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1000)
        )
    ]
    turn = frame.rotation % 360
    if turn in _TURNS:
        nodes.append(graph.add("transpose", _TURNS[turn]))
    elif turn == 180:
        nodes += [graph.add("hflip"), graph.add("vflip")]
    nodes.append(graph.add("scale", f"{width}:{height}:flags=bicubic:out_range=tv"))
    nodes += [graph.add("format", "yuv420p"), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def _is_sideways(frame: VideoFrame) -> bool:
    return frame.rotation % 180 == 90


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
    first: int | None = None
    for frame in frames:
        time = 0
        if first is None:
            first = frame.pts
        if held is not None:
            time = held[1] + step
            if frame.pts is not None and first is not None:
                time = max(frame.pts - first, held[1] + 1)
            yield *held, time
        held = frame, time
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
