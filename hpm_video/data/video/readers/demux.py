"""Opening a file with PyAV, its packets, and what decoding them gives; see `pyav` for reading.

All that looks into a file does so through here: so there is one choice of the track, and one rule
for what is damaged.
"""

import os
from collections.abc import Iterator
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from hpm_video.data.video.orientation import UPRIGHT, Orientation, is_tilt, of_matrix
from hpm_video.data.video.readers import UnreadableError

# FFmpeg's complaints, several for every damaged file, would drown the log of a run
av.logging.set_level(av.logging.PANIC)

ENCRYPTED = "is encrypted (CENC)"

# Older versions refuse a file whose metadata is not UTF-8, unless told otherwise
_LENIENT = {"metadata_errors": "ignore"} if int(av.__version__.split(".")[0]) < 19 else {}


def open_container(source: str | BinaryIO) -> av.container.InputContainer:
    """Open a file to read from it, whatever the encoding of its metadata.

    Raises what `av.open` raises: FFmpegError, OSError, ValueError.
    """
    return av.open(source, **_LENIENT)


def open_video(path: str) -> tuple[av.container.InputContainer, av.VideoStream]:
    """Open a file and choose its track: the one that FFmpeg calls best, no attached pictures.

    Close the container: nothing else does so soon, as it and its streams hold each other.

    Raises UnreadableError: there is no video in it.
    """
    if _is_playlist(path):
        raise UnreadableError("is a playlist of other files, not a video")
    try:
        container = open_container(_source(path))
    except (av.FFmpegError, OSError, ValueError) as error:
        raise UnreadableError(_why_not_opened(path)) from error
    try:
        stream = _best_track(container)
        # The work is shared out by clips, not by frames
        stream.codec_context.thread_count = 1
    except AttributeError as error:  # no context
        container.close()
        raise UnreadableError("has video of an unknown kind") from error
    except UnreadableError:
        container.close()
        raise
    for other in container.streams:
        if other.index != stream.index and hasattr(other, "discard"):
            other.discard = av.stream.Discard.all  # where that is known, it is not even read
    return container, stream


def new_decoder(path: str) -> av.VideoCodecContext:
    """A decoder for a file's video that has decoded nothing yet."""
    container, stream = open_video(path)
    with container:
        return stream.codec_context


def _is_playlist(path: str) -> bool:
    """Whether a file names others, which FFmpeg would open, from anywhere."""
    try:
        with open(path, "rb") as file:
            head = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    return head.startswith((b"#EXTM3U", b"ffconcat")) or b"<MPD" in head


def _source(path: str) -> str | BinaryIO:
    try:
        path.encode()
    except UnicodeEncodeError:  # a name that is not UTF-8
        return open(path, "rb")
    return f"file:{path}"  # without it, a:b.mp4 would name a protocol


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
    if not os.path.isfile(path):
        return "no such file"
    with open(path, "rb") as file:
        if file.read(8)[4:] in (b"ftyp", b"mdat", b"wide", b"free") and not _has_index(file):
            return "is cut off: an mp4 cannot be read without the index at its end"
    return "is not a video, or its header is damaged"


def _has_index(file: BinaryIO) -> bool:
    """Whether an mp4 has the box without which nothing in it can be found."""
    return any(name in (b"moov", b"moof") for name in _boxes(file))


def num_mp4s(path: str) -> int:
    """How many mp4 files lie in one, one after the other: FFmpeg reads the first."""
    with open(path, "rb") as file:
        return sum(name == b"ftyp" for name in _boxes(file))


def num_missing_bytes(path: str) -> int:
    """How many bytes of an AVI or Matroska file are missing, 0 where its header does not tell."""
    with open(path, "rb") as file:
        head, size = file.read(256), os.fstat(file.fileno()).st_size
    end = size
    if head.startswith(b"RIFF") and head[4:8] != b"\xff" * 4:  # which a stream begins with
        end = 8 + int.from_bytes(head[4:8], "little")
    elif head.startswith(b"\x1aE\xdf\xa3"):
        start, length = _ebml_size(head, 4)  # of the header, which the segment follows
        segment = start + (length or 0)
        start, length = _ebml_size(head, segment + 4)
        if head[segment : segment + 4] == b"\x18S\x80g" and length is not None:
            end = start + length
    return max(0, end - size)


def _ebml_size(head: bytes, place: int) -> tuple[int, int | None]:
    """Where an element's data begin, and their length, None where it is left open."""
    width = 9 - int.from_bytes(head[place : place + 1], "big").bit_length()
    value = int.from_bytes(head[place : place + width], "big")
    most = (1 << 7 * width) - 1
    return place + width, None if value & most == most else value & most


def _boxes(file: BinaryIO) -> Iterator[bytes]:
    """The names of an mp4's boxes."""
    place = 0
    while True:
        file.seek(place)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        if len(header) < 8:
            return
        yield header[4:8]
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:  # the last one, or no box
            return
        place += size


def packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of the video, up to the end or to where the file is damaged beyond reading on."""
    try:
        for packet in container.demux(stream):
            if packet.size:  # the last one says that it is the last
                yield packet
    except av.FFmpegError:
        return


def decode(context: av.VideoCodecContext, packet: av.Packet | None) -> list[av.VideoFrame] | None:
    """The frames that come out when a packet goes in, or the last ones; None of a damaged one."""
    try:
        return context.decode(packet)
    except av.FFmpegError:
        return None


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """How a frame is to be shown."""
    matrix = _matrix(frame)
    return UPRIGHT if matrix is None else of_matrix(matrix)


def is_tilted(frame: av.VideoFrame) -> bool:
    """Whether a frame is to be turned by an angle between two quarters, which is not done."""
    matrix = _matrix(frame)
    return matrix is not None and is_tilt(matrix)


def _matrix(frame: av.VideoFrame) -> npt.NDArray[np.int32] | None:
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(data), np.int32)
    return None


# Formats with one line of colour for two of brightness
_HALF_CHROMA = ("yuv420p", "yuvj420p")


def _as_progressive(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture, of which nothing says that it is two fields: readers and FFmpeg's own
    conversion take its lines of colour as they lie."""
    plain = av.VideoFrame.from_ndarray(frame.to_ndarray(), format=frame.format.name)
    for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
        setattr(plain, name, getattr(frame, name))
    return plain


class RgbWriter:
    """Converts frames to RGB, as FFmpeg does; keeps its tables from frame to frame."""

    def __init__(self) -> None:
        self._reformatter = VideoReformatter()

    def write(self, frame: av.VideoFrame, pixels: npt.NDArray[np.uint8]) -> None:
        """Write a frame into `pixels` (H, W, 3).

        One of another size is scaled, its shape kept, and has black bars around it.
        """
        height, width, _ = pixels.shape
        if frame.interlaced_frame and frame.format.name in _HALF_CHROMA:
            frame = _as_progressive(frame)
        # Colour of the nearest chroma sample, as FFmpeg converts 8-bit video by default
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
