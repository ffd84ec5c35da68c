"""Whether a video can be read as training reads it: every frame really decoded, by its reader.

The rule: a video is `ok` when each of the frames that its reader promises (`Video.num_frames`,
which training draws its clips from) can be decoded, and the file stayed what it was meanwhile.
Everything else is `bad`. So a file whose header claims more than it holds is ok if the reader
knows better, and bad if it believes the header; damage that the decoder conceals is not seen.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hpm_video.config.values import Decoder
from hpm_video.data.prepare.encode import count_frames
from hpm_video.data.video.frames import Video, VideoReadError, open_video

OK, BAD = "ok", "bad"
_BLOCK_BYTES = 128 << 20  # of frames held at once
_QUICK_FRAMES = 8  # read at the head, at the tail and at each random place
_QUICK_PLACES = 2


@dataclass(frozen=True)
class Verdict:
    """What was found out about one file; what is not known is None."""

    status: str  # `ok` or `bad`
    reason: str = ""  # why it is bad, in one line; empty for ok
    num_frames: int | None = None  # of a bad file, how many ffmpeg makes out of it
    fps: float | None = None  # average frames per second
    width: int | None = None  # in pixels, as displayed
    height: int | None = None
    num_bytes: int | None = None  # size of the file
    mtime_ns: int | None = None  # when the file was last changed

    @property
    def duration_s(self) -> float | None:
        """How long the frames last, where their number and rate are known."""
        return self.num_frames / self.fps if self.num_frames is not None and self.fps else None


def file_identity(path: str) -> tuple[int | None, int | None]:
    """Size in bytes and time of the last change in ns of a file, which tell it from a changed one.

    Both None where there is no file that could be asked.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def inspect_video(path: str, *, quick: bool = False, decoder: Decoder = "decord") -> Verdict:
    """Decode a video and say what became of it; never raises for a file, whatever is wrong.

    It may crash or never return, as decoders do: run it where it can be killed.

    `quick` decodes only the head, the tail and a few places between, always the same ones; for the
    `decoder` of the reader see `open_video`.
    """
    before = file_identity(path)
    video: Video | None = None
    promised: int | None = None
    width = height = None
    reason = ""
    try:
        video = open_video(path, decoder)
        promised = video.num_frames
        height, width = video.read([0]).shape[1:3]
        blocks = list(_blocks(promised, 3 * height * width, quick=quick))
        if video.decoder == "pyav" and not quick and len(blocks) > 1:
            # For each block it would begin anew, maybe at the start of the file
            holds = count_frames(path)
            reason = f"holds {holds} frames" if holds < promised else ""
            blocks = [blocks[0], blocks[-1]]
        for start, stop in blocks:
            if reason:
                break
            video.read(range(start, stop))
            if video.num_frames < promised:  # which it finds out on the way
                reason = f"holds {video.num_frames} frames"
    except VideoReadError as error:
        reason = error.reason
    except Exception as error:  # noqa: BLE001 - no file may stop the check of all others
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    num_frames = promised
    if reason:
        if promised is not None:
            reason = f"not all of the {promised} frames can be decoded: {reason}"
        # Not how far the reader came: one that decodes ahead fails now here, now there
        try:
            num_frames = count_frames(path) if os.path.isfile(path) else 0
        except Exception:  # noqa: BLE001 - as above; the number is not known then
            num_frames = None
    if (after := file_identity(path)) != before:
        reason = f"{'disappeared' if after[0] is None else 'changed'} while it was read"
    fps = (video.fps or None) if video is not None else None
    return Verdict(BAD if reason else OK, reason, num_frames, fps, width, height, *before)


def silence() -> None:
    """Send what native code of this process complains about on stderr nowhere.

    A line of ffmpeg for every broken file would drown ours, which give the reason.
    """
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _blocks(num_frames: int, frame_bytes: int, *, quick: bool) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of frames to be read together, in order."""
    size = max(1, _BLOCK_BYTES // frame_bytes)
    places, length = [0], num_frames
    if quick and num_frames > (2 + _QUICK_PLACES) * _QUICK_FRAMES:
        length, last = _QUICK_FRAMES, num_frames - _QUICK_FRAMES
        between = np.random.default_rng(num_frames).integers(length, last, _QUICK_PLACES)
        places = [0, *sorted(between.tolist()), last]
    for place in places:
        for start in range(place, place + length, size):
            yield start, min(start + size, place + length)
