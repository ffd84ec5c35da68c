"""Encodes one video or part, reads it back, and only then gives it its name.

This runs in a worker process.
"""

import errno
import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from hpm_video.config.values import Decoder
from hpm_video.data.prepare.encode import USUAL_FPS, Encoding, encode_video
from hpm_video.data.prepare.verdict import (
    BAD,
    DAMAGED,
    OK,
    USED,
    Verdict,
    damage_of,
    file_identity,
    inspect_video,
    silence,
)
from hpm_video.data.video.frame_indices import random_dense_indices
from hpm_video.data.video.frame_table import FRAMES, IMAGE, WITHOUT_TIMES, fitting_table
from hpm_video.data.video.frames import VideoReadError, check_is_file, open_video
from hpm_video.data.video.part import Part
from hpm_video.data.video.readers import why
from hpm_video.data.video.readers.exact import exact_reader
from hpm_video.data.video.readers.frame_folder import FPS_FILE, is_pictures
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.data.video.timeline import frames_of
from hpm_video.runtime.files import new_file

# Errors of the folder, not of the video
_NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip
_CLIPS, _CLIP_FRAMES, _STRIDE = 4, 16, 4  # clips read to time a video


@dataclass(frozen=True)
class Work:
    """One video to encode."""

    source: str
    target: str  # the file to write
    num_frames: int | None  # of the source, if it was checked
    table: bytes | None = None  # frame table, from the index of the list
    part: Part | None = None  # to cut out
    packed: str | None = None  # its path once its tar has been written

    @property
    def result(self) -> str:
        """The current path of the encoded video."""
        if self.packed is None or os.path.isfile(self.target):
            return self.target
        return self.packed


@dataclass(frozen=True)
class Transcode:
    """Encodes the video of a `Work`, reads the result back, and returns the verdict on it.

    Raises ValueError if the folder cannot be written; other files are then untouched.
    """

    encoding: Encoding

    def __call__(self, work: Work) -> Verdict:
        silence()
        part = part_name(work.target)
        before = file_identity(work.source)
        try:
            os.makedirs(os.path.dirname(work.target), exist_ok=True)
            new_file(part)
            verdict = self._encode(work, part)
            if verdict.status in USED and file_identity(work.source) != before:
                verdict = Verdict(BAD, "changed while it was read")
            if verdict.status in USED:
                with open(part, "rb") as file:
                    os.fsync(file.fileno())
                os.replace(part, work.target)
            return verdict
        except VideoReadError as error:
            return Verdict(BAD, error.reason)
        except OSError as error:
            if error.errno in _NOT_WRITABLE:
                folder = os.path.dirname(work.target)
                raise ValueError(f"{folder} cannot be written: {error.strerror}") from error
            return Verdict(BAD, f"cannot be written: {error.strerror or error}")
        except Exception as error:  # noqa: BLE001 - no file may stop the work on all others
            return Verdict(BAD, why(error))
        finally:
            with suppress(OSError):  # missing, or not ours
                os.unlink(part)

    def _encode(self, work: Work, part: str) -> Verdict:
        """Write the file and read it back."""
        check_is_file(work.source)
        source = fitting_table(work.table, work.source)
        if source is None or not source.is_decoded:
            if is_pictures(work.source):
                source = exact_reader(work.source).table
            else:
                source = decoded_table(work.source, find_starts=False)
        # Otherwise a truncated file would pass for a shorter video
        if work.num_frames not in (None, source.num_frames):
            return Verdict(BAD, f"{source.num_frames} of {work.num_frames} frames can be decoded")
        has_times = source.irregular not in WITHOUT_TIMES
        frames, encode = frames_of(source, work.part), encode_video
        if work.part is not None:
            encode = partial(encode_video, part=(source, frames))
        encoded = encode(work.source, part, self.encoding, has_times=has_times)
        if encoded.num_read != len(frames):
            reason = f"{encoded.num_read} of {len(frames)} frames can be decoded"
            return Verdict(BAD, reason)
        verdict = inspect_video(part)
        if verdict.status != OK:
            return Verdict(BAD, f"cannot be read after encoding: {verdict.reason}")
        if verdict.num_frames != encoded.num_written:
            reason = f"{verdict.num_frames} of {encoded.num_written} encoded frames can be read"
            return Verdict(BAD, reason)
        if source.container == FRAMES and not source.fps:
            verdict = replace(
                verdict, reason=f"has no {FPS_FILE}: encoded at {USUAL_FPS} frames per second"
            )
        if source.container not in (FRAMES, IMAGE) and (damage := damage_of(source)):
            num_damaged = source.num_damaged + source.num_lost - source.num_lost_first
            reason = f"has the damage of its source: {damage}"
            return replace(verdict, status=DAMAGED, damaged=num_damaged, reason=reason)
        return verdict


def part_name(target: str) -> str:
    """The temporary name of a file, always the same, to overwrite remains of a killed process."""
    folder, name = os.path.split(target)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]  # limits the length of the name
    return os.path.join(folder, f".{digest}.part")


@dataclass(frozen=True)
class TimeReading:
    """Mean seconds to read a clip of 16 frames from each of two files, given with frame tables.

    Reads the same few clips from both, alternating. None if one cannot be read.
    """

    decoder: Decoder

    def __call__(
        self, pair: tuple[tuple[str, bytes | None], tuple[str, bytes | None]]
    ) -> tuple[float, float] | None:
        silence()
        try:
            return self._seconds(pair)
        except VideoReadError:
            return None

    def _seconds(
        self, pair: tuple[tuple[str, bytes | None], tuple[str, bytes | None]]
    ) -> tuple[float, float]:
        seconds = [0.0, 0.0]
        for number in range(_CLIPS):
            for place, (path, table) in enumerate(pair):
                start = time.perf_counter()
                video = open_video(path, self.decoder, table=table)
                indices = random_dense_indices(
                    video.num_frames,
                    clip_frames=_CLIP_FRAMES,
                    stride=_STRIDE,
                    rng=np.random.default_rng(number),
                )
                video.read(indices)
                seconds[place] += time.perf_counter() - start
        return seconds[0] / _CLIPS, seconds[1] / _CLIPS
