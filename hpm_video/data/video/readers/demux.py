"""Opens a file with PyAV, and gives its packets and decoded frames; see `pyav` for reading.

All code that looks into a file uses this module, so that the choice of track and the definition of
damage are the same everywhere.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from hpm_video.data.video.limits import MOST_PIXELS
from hpm_video.data.video.orientation import UPRIGHT, Orientation, is_tilt, of_matrix
from hpm_video.data.video.readers import UnreadableError, check_picture, headers
from hpm_video.data.video.source import exists, ffmpeg_name, open_bytes

# FFmpeg prints several errors per damaged file, which would drown a run's log
av.logging.set_level(av.logging.PANIC)

ENCRYPTED = "is encrypted (CENC)"

# Older versions reject files with metadata that is not UTF-8, unless told otherwise
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}
# Formats that contain their frames. FFmpeg supports others: playlists (HLS, DASH, concat, IMF),
# stream descriptions (SDP, RTSP), devices, image sequences, scripts, and formats of games
_FORMATS = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "mpegvideo", "flv", "live_flv", "ogg", "asf", "wtv",
    "rm", "mxf", "gxf", "nut", "nuv", "dv", "ivf", "swf", "h261", "h263", "h264", "hevc", "vvc",
    "m4v", "obu", "av1", "vc1", "vc1test", "dirac", "mjpeg", "mpjpeg", "yuv4mpegpipe", "gif",
    "apng", "webp", "bmp_pipe", "jpeg_pipe", "jpegls_pipe", "j2k_pipe", "jpegxl_pipe",
    "jpegxl_anim", "png_pipe", "tiff_pipe", "webp_pipe",
)  # fmt: skip
_MOST_PIXELS = {"max_pixels": str(MOST_PIXELS)}  # decoders check this for every picture
_SAFE = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file", **_MOST_PIXELS}
_REFUSED_SIZE = re.compile(r"size (\d+)x(\d+) exceeds specified max pixel count")


def open_container(path: str) -> av.container.InputContainer:
    """Open a file for reading, whatever its name and the encoding of its metadata.

    Opens only this file, and only if its format contains the frames themselves. Raises as `av.open`
    does: FFmpegError, OSError, ValueError.
    """
    name = ffmpeg_name(path) if headers.has_plain_name(path) else ""
    if not name:
        return av.open(open_bytes(path), options=_SAFE, **_LENIENT)
    if name.startswith("subfile,"):
        return av.open(name, options={**_SAFE, "protocol_whitelist": "file,subfile"}, **_LENIENT)
    return av.open(f"file:{name}", options=_SAFE, **_LENIENT)  # else a:b.mp4 names a protocol


def open_video(
    path: str, options: Mapping[str, str] | None = None
) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file and select its track: the one FFmpeg considers best, except attached pictures.

    Close the container explicitly: it and its streams form a reference cycle. ``options``: further
    decoder options.

    Raises UnreadableError if there is no video in it, or its pictures are too large.
    """
    try:
        container = open_container(path)
    except (av.FFmpegError, OSError, ValueError) as error:
        _check_is_damage(error)
        raise UnreadableError(_why_not_opened(path)) from error
    try:
        stream = _best_track(container)
        # Parallelism is across clips, not frames
        stream.codec_context.thread_count = 1
        stream.codec_context.options = {**_MOST_PIXELS, **(options or {})}
        check_picture(stream.codec_context.height, stream.codec_context.width)
        if not stream.codec_context.width:
            _check_refused_picture(path)
    except AttributeError as error:  # no codec context
        container.close()
        raise UnreadableError("has video with an unknown codec") from error
    except UnreadableError:
        container.close()
        raise
    for other in container.streams:
        if other.index != stream.index and hasattr(other, "discard"):
            other.discard = av.stream.Discard.all  # lets FFmpeg skip reading it
    return container, stream


def new_decoder(path: str) -> av.VideoCodecContext:
    """A fresh decoder for a file's video."""
    container, stream = open_video(path)
    with container:
        return stream.codec_context


def _check_refused_picture(path: str) -> None:
    """Raise UnreadableError if FFmpeg reports no size because pictures are too large.

    Opens the file again to find out how large.
    """
    with complaints() as heard, suppress(av.FFmpegError, OSError, ValueError):
        open_container(path).close()
    for _, _, text in heard:
        if match := _REFUSED_SIZE.search(text):
            width, height = map(int, match.groups())
            check_picture(height, width)


@contextmanager
def complaints() -> Iterator[list[tuple[int, str, str]]]:
    """Collects FFmpeg's errors from reading and decoding inside the context."""
    repeated = av.logging.get_skip_repeated()
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture() as heard:
            yield heard
    finally:
        av.logging.set_level(av.logging.PANIC)
        av.logging.set_skip_repeated(repeated)


def codecs_of(container: av.container.InputContainer) -> tuple[str, ...]:
    """The codecs of all tracks that may need a decoder; "" for an unknown one."""
    tracks = (track for track in container.streams if track.type not in ("data", "attachment"))
    contexts = (track.codec_context for track in tracks)
    return tuple(sorted({c.codec.canonical_name if c is not None else "" for c in contexts}))


def _best_track(container: av.container.InputContainer) -> av.VideoStream:
    pictures = av.stream.Disposition.attached_pic
    tracks = [s for s in container.streams.video if not s.disposition & pictures]
    best = container.streams.best("video")
    if isinstance(best, av.VideoStream) and best in tracks:
        return best
    if tracks:
        return tracks[0]
    has = ["sound"] if container.streams.audio else []
    has += ["a picture"] if container.streams.video else []
    raise UnreadableError(f"has no video, only {' and '.join(has)}" if has else "has no video")


def _why_not_opened(path: str) -> str:
    if not exists(path):
        return "no such file"
    if headers.is_playlist(path):
        return "is a playlist of other files, not a video"
    if headers.lacks_index(path):
        return "is cut off: an mp4 cannot be read without the index at its end"
    return "is not a video, or its header is damaged"


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of the video, up to the end or to damage that prevents reading on."""
    demuxer = container.demux(stream)
    while True:
        try:  # without the yield: a reader left open at exit is closed when `av` is gone
            packet = next(demuxer, None)
        except av.FFmpegError as error:
            _check_is_damage(error)
            return
        if packet is None:
            return
        if packet.size:  # the last packet is an empty end marker
            yield packet


def decode(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame] | None:
    """The frames that a packet (None: the end) makes the decoder return; None if it is damaged."""
    try:
        return context.decode(packet)
    except av.FFmpegError as error:
        _check_is_damage(error)
        return None


def _check_is_damage(error: Exception) -> None:
    """Re-raise errors that are not the file's fault: running out of memory."""
    if isinstance(error, MemoryError):
        raise error


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """The orientation in which to display a frame."""
    matrix = _matrix(frame)
    return UPRIGHT if matrix is None else of_matrix(matrix)


def is_tilted(frame: av.VideoFrame) -> bool:
    """Whether a frame has a rotation other than quarter turns, which we do not apply."""
    matrix = _matrix(frame)
    return matrix is not None and is_tilt(matrix)


def _matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32] | None:
    data = frame.side_data.get("DISPLAYMATRIX")
    return None if data is None else np.frombuffer(bytes(data), np.int32)


# Formats with one chroma line per two luma lines
_HALF_CHROMA = ("yuv420p", "yuvj420p")


def _as_progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture without its interlaced flag.

    Chroma lines are then converted in stored order, as other readers and FFmpeg's conversion do.
    """
    plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(plain, name, getattr(frame, name))
    return plain


class RgbWriter:
    """Converts frames to RGB like FFmpeg; keeps its tables between frames."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def write(self, frame: av.VideoFrame, pixels: npt.NDArray[np.uint8]) -> None:
        """Write a frame into `pixels` (H, W, 3).

        A frame of another size is scaled, with black bars to keep its aspect ratio.
        """
        height, width, _ = pixels.shape
        if frame.interlaced_frame and frame.format.name in _HALF_CHROMA:
            frame = _as_progressive(frame)
        # Nearest chroma sample, as FFmpeg converts 8-bit video by default
        interpolation = "POINT"
        if (frame.height, frame.width) != (height, width):
            scale = min(height / frame.height, width / frame.width)
            rows = max(1, min(height, round(frame.height * scale)))
            columns = max(1, min(width, round(frame.width * scale)))
            pixels[:] = 0
            top, left = (height - rows) // 2, (width - columns) // 2
            pixels = pixels[top : top + rows, left : left + columns]
            height, width, interpolation = rows, columns, "BICUBIC"
        rgb = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=interpolation,
            threads=1,
        )
        plane = rgb.planes[0]
        lines = np.frombuffer(memoryview(plane), np.uint8).reshape(height, plane.line_size)
        pixels[:] = lines[:, : 3 * width].reshape(height, width, 3)
