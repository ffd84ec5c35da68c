"""Reads frames from a video file, with a decoder that reads it correctly."""

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt

from hpm_video.config.values import Decoder
from hpm_video.data.video.frame_table import FRAMES, FrameTable
from hpm_video.data.video.motion import NO_VECTORS, Speeds
from hpm_video.data.video.orientation import UPRIGHT
from hpm_video.data.video.part import Part, file_of, split_part
from hpm_video.data.video.readers import Reader, UnreadableError, check_clip, why
from hpm_video.data.video.readers.exact import exact_reader
from hpm_video.data.video.readers.frame_folder import gaps, is_pictures
from hpm_video.data.video.readers.headers import begins_as, has_plain_name
from hpm_video.data.video.source import ffmpeg_name, locate
from hpm_video.data.video.tar_index import DamagedTarError
from hpm_video.data.video.timeline import Frames, Selection, frames_at, frames_of
from hpm_video.runtime.replies import answer

NO_SUCH_FILE = "no such file"
_LONG = 1000  # frames from which videos stay open: reopening costs as much as reading a clip
_MOST_KEPT = 16
_ONLY_PYAV = "motion vectors, which only PyAV returns"
_CONTAINERS = ("mov", "matroska")  # for which decord and torchcodec are trusted
# Codecs allowed in any track of files for decord and torchcodec, whose FFmpeg libraries may be old
# and support others
_CODECS = {
    "h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "mp3", "opus", "vorbis", "flac", "ac3",
    "eac3", "pcm_s16le", "pcm_s16be", "mov_text", "subrip", "webvtt",
}  # fmt: skip


@answer
class VideoReadError(RuntimeError):
    """A file (`path`) that cannot be read as a video.

    `reason` says why in one line; it is the same wherever and whenever the file is read.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)  # both in `args`, which pickling passes to the constructor
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@contextmanager
def reading(path: str) -> Iterator[None]:
    """Raise VideoReadError for every error inside, as a file may cause any error."""
    try:
        yield
    except VideoReadError:
        raise
    except Exception as error:
        raise VideoReadError(path, why(error)) from error


_kept: OrderedDict[tuple[object, ...], "Video"] = OrderedDict()  # long videos, in LRU order


class Video:
    """An open video, folder of frames or image; made by `open_video`.

    It decodes nothing until frames are requested.

    Attributes:
        path: the file or folder.
        num_frames: number of frames, at least 1.
        decoder: the decoder in use. "pyav" replaces another decoder that does not read this file,
            or might return wrong frames; for images it means Pillow.
    """

    def __init__(
        self,
        path: str,
        decoder: Decoder,
        most_frames: int | None,
        table: FrameTable | None,
        reason: str | None = None,
        *,
        motion: bool = False,
    ) -> None:
        self.path, self.decoder = path, decoder
        self._has_motion, self._lacks_vectors = motion, False
        self._why = reason  # why PyAV replaces the other decoder
        self._most_frames = most_frames
        self._table = table
        if is_pictures(path):
            self.decoder = "pyav"
        elif decoder != "pyav" and (bad := _ONLY_PYAV if motion else _bad_name(path)):
            self.decoder, self._why = "pyav", bad
        try:
            self._open()
        except Exception as error:  # noqa: BLE001 - any that the file causes in a decoder
            self._fall_back(error)

    @property
    def fps(self) -> float:
        """The average frame rate, 0 if unknown."""
        return self._reader.fps

    @property
    def height(self) -> int:
        """Height in pixels as displayed (rotation applied); the first access decodes a frame."""
        return self._size[0]

    @property
    def width(self) -> int:
        """Width in pixels as displayed (rotation applied); the first access decodes a frame."""
        return self._size[1]

    @cached_property
    def _size(self) -> tuple[int, int]:
        height, width, _ = self.read([0])[0].shape
        return height, width

    def read(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        """Return the frames (T, H, W, 3), uint8 RGB, at `indices` in that order.

        Indices may repeat and be in any order; every frame is decoded once, going forward.
        Non-square pixels are not rescaled. Raises VideoReadError if decoding fails.
        """
        return self._read(indices)[0]

    def read_motion(
        self, indices: Sequence[int] | npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.uint8], Speeds]:
        """Return frames as `read` does, and how fast their content moves; see `open_video`."""
        frames, unique, positions = self._read(indices)
        with reading(self.path):
            speeds = self._reader.speeds(unique)  # type: ignore[attr-defined]  # PyavReader
        self._lacks_vectors = not speeds.are_known
        return frames, speeds.at(positions)

    def _read(
        self, indices: Sequence[int] | npt.NDArray[np.integer]
    ) -> tuple[npt.NDArray[np.uint8], list[int], npt.NDArray[np.intp]]:
        """The frames at `indices`, the decoded frame numbers, and each index's position in them."""
        wanted = np.asarray(indices, dtype=np.int64)
        assert wanted.ndim == 1 and len(wanted) > 0, f"indices of shape {wanted.shape}"
        assert wanted.min() >= 0 and wanted.max() < self.num_frames, (
            f"{self.path}: indices {wanted.min()}..{wanted.max()} of {self.num_frames} frames"
        )
        unique, positions = np.unique(wanted, return_inverse=True)
        asked = unique.tolist()
        with reading(self.path):
            check_clip(len(asked), self.table.height, self.table.width)
        try:
            frames = self._reader.read(asked)
            if len(frames) != len(asked):
                raise UnreadableError(
                    f"{len(frames)} of {len(asked)} requested frames were decoded"
                )
        except Exception as error:
            claimed = self.num_frames
            self._fall_back(error)
            if asked[-1] >= self.num_frames:
                reason = f"has {self.num_frames} frames but claims {claimed}"
                raise VideoReadError(self.path, reason) from error
            with reading(self.path):
                frames = self._reader.read(asked)
        frames = frames if np.array_equal(unique, wanted) else frames[positions]
        return frames, asked, positions

    @property
    def table(self) -> FrameTable:
        """The file's frame table; reading frames may change it."""
        table = getattr(self._reader, "table", self._table)
        assert isinstance(table, FrameTable)
        return table

    @property
    def note(self) -> str | None:
        """What is unusual about reading the video, in words common to all such files, or None."""
        unusual = _unusual(self.table)
        parts = [None if self._why and self._why in (unusual or "") else self._why, unusual]
        if self._lacks_vectors:
            parts.append(
                f"{NO_VECTORS} ({self.table.codec}; hpm-video data transcode makes files with them)"
            )
        if self.num_frames < self.table.num_frames / 2:
            parts.append(
                "far fewer frames in the list than in the file: check the column num_frames"
            )
        return "; ".join(filter(None, parts)) or None

    @property
    def is_cheap_to_keep(self) -> bool:
        """Whether an open video holds no more than the file's own tables in memory."""
        return getattr(self._reader, "packets", ()) is None

    def _open(self) -> None:
        reader: Reader | None = None
        reason = None
        if self.decoder != "pyav":
            reason = why_not(self._table, self.decoder)
            if self._table is not None and reason is None:
                if not begins_as(self.path, self._table.container):
                    reason = "a file that does not start like mp4 or Matroska"
                else:
                    reader = _reader_class(self.decoder)(ffmpeg_name(self.path))
                    if reader.num_frames != self._table.num_frames:
                        reason = f"a file in which {self.decoder} counts other frames"
            if reason is not None:
                self.decoder, reader = "pyav", None
        if reader is None:
            reader = exact_reader(self.path, self._table, motion=self._has_motion)
        self._reader, self._why = reader, self._why or reason
        holds = self.table.num_frames
        self.num_frames = min(holds, self._most_frames or holds)

    def _fall_back(self, error: Exception) -> None:
        """Read with PyAV from now on, unless PyAV itself has just failed."""
        if self.decoder != "pyav":
            self._why = f"{self.decoder} fails to read it"
            self.decoder = "pyav"
            try:
                return self._open()
            except Exception as last:  # noqa: BLE001 - as above
                error = last
        raise VideoReadError(self.path, why(error)) from error


def open_video(
    path: str | Path,
    decoder: Decoder = "decord",
    *,
    most_frames: int | None = None,
    table: bytes | None = None,
    motion: bool = False,
) -> Video:
    """Open a video. A few long videos stay open in this process.

    Args:
        path: the file, or a folder of frames.
        decoder: the decoder to use if it reads such files correctly; see `Video.decoder`.
        most_frames: the known number of frames; no more are ever read.
        table: its frame table from an index (`FrameTable.to_bytes`); ignored if the file changed.
        motion: enable `Video.read_motion`, which only PyAV supports.

    Raises VideoReadError if the file does not exist, is not a video, or has no frames.
    """
    path = str(path)
    size, mtime = _identity(path)
    # Not videos opened before a fork: they share their file offset with the parent process
    key = os.getpid(), path, decoder, most_frames, size, mtime, motion
    if video := _kept.get(key):
        _kept.move_to_end(key)
        return video
    try:
        known = FrameTable.from_bytes(table) if table is not None else None
        stale = known is not None and not known.fits_identity(size, mtime)
    except ValueError:  # the index is damaged
        known, stale = None, True
    reason = "an outdated or damaged index (hpm-video data check renews it)"
    video = Video(
        path,
        decoder,
        most_frames,
        None if stale else known,
        reason if stale else None,
        motion=motion,
    )
    if video.num_frames >= _LONG and video.is_cheap_to_keep:
        _kept[key] = video
        while len(_kept) > _MOST_KEPT:
            _kept.popitem(last=False)
    return video


def open_frames(
    path: str | Path,
    decoder: Decoder = "decord",
    *,
    fps: float | None = None,
    most_frames: int | None = None,
    table: bytes | None = None,
    motion: bool = False,
) -> Frames:
    """Open a video, or the part of one named ``path``, as if the part were a whole video.

    ``fps``: resample to this frame rate, see `frames_at`. For the rest see `open_video`. Raises
    VideoReadError.
    """
    with reading(str(path)):
        file, part = split_part(str(path))
    video = open_video(file, decoder, most_frames=most_frames, table=table, motion=motion)
    return at_rate(video, fps, part)


def at_rate(video: Video, fps: float | None, part: Part | None = None) -> Frames:
    """The video or its part, resampled to ``fps`` if that is given.

    Raises VideoReadError if the part is empty, or the file has no frame times.
    """
    if fps is None and part is None:
        return video
    with reading(video.path + str(part or "")):
        within = frames_of(video.table, part, num_frames=video.num_frames)
        if fps is None:
            return Selection(video, np.arange(within.start, within.stop), video.fps)
        return Selection(video, frames_at(video.table, fps, within=within), fps)


def check_is_file(path: str) -> tuple[int, int]:
    """Size and modification time of the file or folder of a video or part.

    Raises VideoReadError if it does not exist, is an empty file, or must not be read.
    """
    with reading(path):
        return _identity(file_of(path))


def read_frames(
    path: str | Path,
    indices: Sequence[int] | npt.NDArray[np.integer],
    decoder: Decoder = "decord",
) -> npt.NDArray[np.uint8]:
    """Return the frames (T, H, W, 3), uint8 RGB, of a file at `indices`; see `Video.read`."""
    return open_frames(path, decoder).read(np.asarray(indices))


def check_decoder(decoder: Decoder) -> None:
    """Raise ValueError for a chosen decoder that is not available.

    decord is the default but lacks wheels for some machines; PyAV replaces it there.
    """
    if decoder != "decord" and (reason := missing(decoder)):
        raise ValueError(
            f"data.decoder ({decoder}) must be available: {reason}; set data.decoder=pyav instead"
        )


def why_not(table: FrameTable | None, decoder: Decoder) -> str | None:
    """Why decord or torchcodec does not read a file, or may return wrong frames.

    Returns a few words common to all such files, or None if the decoder reads the file correctly.
    """
    if reason := missing(decoder):
        return reason
    if table is None or not table.is_decoded:
        return "no entry in the index of the list (hpm-video data check writes one)"
    refused = {
        table.irregular: table.irregular,
        "a long file, in which PyAV seeks straight to a clip": table.num_frames >= _LONG,
        "neither mp4 nor Matroska": not table.container.startswith(_CONTAINERS),
        f"a codec that is not tested with {decoder}": not set(table.codecs) <= _CODECS,
        "an index of an older version (hpm-video data check renews it)": not table.codecs,
        # Both count from a keyframe, which they find by its time
        "open groups of pictures": table.has_leading,
        "incomplete keyframes": table.has_false_starts,
        "several video tracks": table.num_tracks > 1,
        "a rotation that is not a multiple of 90 degrees": table.is_tilted,
        "mirrored pictures": table.orientation is not None and table.orientation.is_mirrored,
    }
    if decoder == "decord":
        refused["frames hidden by an edit list"] = table.has_hidden
        refused["HEVC, which decord fails to decode after a seek"] = table.codec == "hevc"
    else:
        from hpm_video.data.video.readers import torchcodec  # noqa: PLC0415

        refused["rotated pictures"] = not torchcodec.TURNS and table.orientation != UPRIGHT
        refused["AV1, on which torchcodec crashes once other code has imported decord"] = (
            "av1" in table.codec and torchcodec.would_crash_on_av1()
        )
    return next((reason for reason, holds in refused.items() if holds), None)


def _bad_name(path: str) -> str | None:
    if has_plain_name(path):
        return None
    return "a name that is not UTF-8 or contains one of %*?{"


def _unusual(table: FrameTable) -> str | None:
    """What a user should know about how a file is read, or None."""
    counted = f"frames counted from the start of the file ({table.irregular})"
    found = {
        "frames that cannot be decoded": table.num_lost,
        "frames that decode with errors": table.num_damaged,
        "frames of several sizes, all scaled to the first": table.other_sizes,
        counted: table.irregular and not table.has_starts,
        "a folder of frames with gaps in its numbers": (
            table.container == FRAMES and gaps(table.places)
        ),
        "a rotation that is not a multiple of 90 degrees and is not applied": table.is_tilted,
        "several video tracks, of which the best is read": table.num_tracks > 1,
    }
    return next((words for words, holds in found.items() if holds), None)


def _identity(path: str) -> tuple[int, int]:
    """`Place.identity` of a path. Raises VideoReadError if it cannot be a video."""
    try:
        place = locate(path)
        if stat.S_ISDIR(place.mode):  # maybe of frames
            if not os.access(path, os.R_OK | os.X_OK):
                raise VideoReadError(path, "permission denied")
            return place.identity
        if not stat.S_ISREG(place.mode):  # reading a pipe would block
            raise VideoReadError(path, "is not a file")
        with open(place.file, "rb"):
            pass
    except PermissionError as error:
        raise VideoReadError(path, "permission denied") from error
    except DamagedTarError as error:
        raise VideoReadError(path, str(error)) from error
    except (OSError, ValueError) as error:
        raise VideoReadError(path, NO_SUCH_FILE) from error
    if not place.size:
        raise VideoReadError(path, "is empty")
    return place.identity


@cache
def missing(decoder: Decoder) -> str | None:
    """Why a decoder is not available; None if it is."""
    try:
        _reader_class(decoder)
    except (ImportError, OSError) as error:
        # Either the decoder or one of its libraries is missing
        name = getattr(error, "name", None)
        return f"{decoder} is not installed" if name == decoder else str(error).splitlines()[0]
    return None


def _reader_class(decoder: Decoder) -> Callable[[str], Reader]:
    """The reader class of a decoder, imported here as it may not be installed."""
    match decoder:
        case "decord":
            from hpm_video.data.video.readers.decord import DecordReader  # noqa: PLC0415

            return DecordReader
        case "torchcodec":
            from hpm_video.data.video.readers.torchcodec import TorchcodecReader  # noqa: PLC0415

            return TorchcodecReader
        case "pyav":
            from hpm_video.data.video.readers.pyav import PyavReader  # noqa: PLC0415

            return PyavReader
    raise ValueError(f"data.decoder ({decoder}) must be one of {', '.join(get_args(Decoder))}")
