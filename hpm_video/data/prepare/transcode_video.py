"""One video encoded anew, read back, and only then given its name; for a process of its own."""

import errno
import hashlib
import os
import time
from dataclasses import dataclass

import numpy as np

from hpm_video.config.values import Decoder
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.prepare.verdict import BAD, OK, Verdict, file_identity, inspect_video, silence
from hpm_video.data.video.frame_indices import random_dense_indices
from hpm_video.data.video.frames import VideoReadError, open_video

# The folder's fault, not the video's
_NOT_WRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO,
)  # fmt: skip
_CLIPS, _CLIP_FRAMES, _STRIDE = 4, 16, 4  # that are read to time a video


@dataclass(frozen=True)
class Work:
    """One video to be encoded."""

    source: str
    target: str  # the file to write
    num_frames: int | None  # of the source, if that was checked


@dataclass(frozen=True)
class Transcode:
    """Encodes the video of a `Work`, reads the result back, and returns the verdict on it.

    Raises ValueError where the folder cannot be written; no other file is touched then, either.
    """

    encoding: Encoding
    decoder: Decoder = "decord"

    def __call__(self, work: Work) -> Verdict:
        silence()
        part = part_name(work.target)
        before = file_identity(work.source)
        try:
            os.makedirs(os.path.dirname(work.target), exist_ok=True)
            verdict = self._encode(work, part)
            if verdict.status == OK and file_identity(work.source) != before:
                verdict = Verdict(BAD, "changed while it was read")
            if verdict.status == OK:
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
            return Verdict(BAD, " ".join(f"{type(error).__name__}: {error}".split()))
        finally:
            if os.path.exists(part):
                os.unlink(part)

    def _encode(self, work: Work, part: str) -> Verdict:
        """Write the file and read it back."""
        # Else a file cut short would pass for a shorter one
        promised = open_video(work.source, self.decoder).num_frames
        promised = work.num_frames or promised
        encoded = encode_video(work.source, part, self.encoding)
        if encoded.num_read != promised:
            return Verdict(BAD, f"{encoded.num_read} of {promised} frames can be decoded")
        verdict = inspect_video(part, decoder=self.decoder)
        if verdict.status == BAD:
            return Verdict(BAD, f"cannot be read once encoded: {verdict.reason}")
        if verdict.num_frames != encoded.num_written:
            reason = f"of {encoded.num_written} frames encoded {verdict.num_frames} are read"
            return Verdict(BAD, reason)
        return verdict


def part_name(target: str) -> str:
    """The temporary name of a file; always the same, so that what a kill left is written over."""
    folder, name = os.path.split(target)
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]  # never too long a name
    return os.path.join(folder, f".{digest}.part")


@dataclass(frozen=True)
class TimeReading:
    """Seconds to read a clip of 16 frames from each of two files: the same few clips, in turns."""

    decoder: Decoder

    def __call__(self, pair: tuple[str, str]) -> tuple[float, float]:
        silence()
        seconds = [0.0, 0.0]
        for number in range(_CLIPS):
            for place, path in enumerate(pair):
                start = time.perf_counter()
                video = open_video(path, self.decoder)
                indices = random_dense_indices(
                    video.num_frames,
                    clip_frames=_CLIP_FRAMES,
                    stride=_STRIDE,
                    rng=np.random.default_rng(number),
                )
                video.read(indices)
                seconds[place] += time.perf_counter() - start
        return seconds[0] / _CLIPS, seconds[1] / _CLIPS
