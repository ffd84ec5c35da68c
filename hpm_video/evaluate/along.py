"""Classes along a video of any length: window scores with times, and events."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from hpm_video.config.limits import at_least
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.loading.windows import GuardedWindows, WindowReader, WindowSettings
from hpm_video.data.remote.fetching import fetched
from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.readers.frame_folder import untimed
from hpm_video.evaluate.predict import LoadedClassifier
from hpm_video.models.precision import autocast
from hpm_video.runtime.pages import jpeg_bytes

MOST_PICTURES = 900  # per video, so that its page stays at some MB
_PICTURES_PER_S = 8.0  # at most
_SIDE = 176  # maximum side of a picture in pixels
_PART = 512  # windows per part; a new batch starts after each
_LEAST_STRIDE_S = 0.001


@dataclass(frozen=True)
class Event:
    """Consecutive windows of one class, from the start of the first to the end of the last.

    score: mean score of that class over these windows.
    """

    start_s: float
    end_s: float
    label: int
    score: float
    num_windows: int


@dataclass(frozen=True)
class Along:
    """Scores (W, C) of a video's W windows, with start and end times (W,) in seconds.

    pictures: (time, JPEG) of sampled frames, in the middle crop that the model sees. thresholds:
    one per class, for multi-label classifiers; else None.
    """

    path: str
    start_s: npt.NDArray[np.float64]
    end_s: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float32]
    pictures: tuple[tuple[float, bytes], ...]
    thresholds: tuple[float, ...] | None = None

    @property
    def called(self) -> npt.NDArray[np.bool_]:
        """(W, C): the top class of each window or, with thresholds, all that reach theirs."""
        if self.thresholds is not None:
            return self.scores >= np.array(self.thresholds)
        return np.arange(self.scores.shape[1]) == self.scores.argmax(axis=1)[:, None]

    def events(self) -> list[Event]:
        """Runs of consecutive windows with the same class, ordered by start time."""
        edges = np.diff(self.called.astype(np.int8), axis=0, prepend=0, append=0)
        starts, labels = np.nonzero(edges == 1)  # in window order
        events = []
        for first, label in zip(starts.tolist(), labels.tolist(), strict=True):
            after = int(first + (edges[first:, label] == -1).argmax())
            score = float(self.scores[first:after, label].mean(dtype=np.float64))
            start, end = float(self.start_s[first]), float(self.end_s[after - 1])
            events.append(Event(start, end, label, score, after - first))
        return events


def check_stride(stride_s: float) -> None:
    """Raise ValueError unless ``stride_s`` is a valid number of seconds between windows."""
    at_least("--windows", stride_s, _LEAST_STRIDE_S)


@torch.no_grad()
def score_along(
    loaded: LoadedClassifier, path: str, *, stride_s: float, table: bytes | None = None
) -> Along:
    """Score windows every ``stride_s`` seconds; the last one reaches the end of the video.

    A window is a densely sampled clip in all crops of the settings. ``table``: the video's frame
    table, from the index of its list. Raises VideoReadError, also if the file has no frame times;
    FloatingPointError if a score is not finite.
    """
    config, data = loaded.config, loaded.data
    settings = WindowSettings(
        clip_frames=data.num_frames,
        frame_stride=data.frame_stride,
        fps=data.fps,
        stride=1,
        crop_size=data.crop_size,
        num_crops=config.evaluation.num_crops,
        batch_size=config.evaluation.batch_size,
        part=_PART,
        antialias=data.antialias,
        stride_s=stride_s,
    )
    device = next(loaded.model.parameters()).device
    open_windows = partial(
        GuardedWindows,
        num_workers=config.num_workers,
        timeout_s=config.decode_timeout_s or None,
    )
    with fetched(path) as local, open_windows(WindowReader(local, settings, table)) as video:
        if not np.isfinite(video.times).all():
            raise VideoReadError(path, untimed(is_folder=os.path.isdir(path)))
        pictures, num_done = _Pictures(video.times), 0
        scores: list[npt.NDArray[np.float32]] = []
        for windows in video.batches():
            pictures.look(windows, video.indices[num_done : num_done + len(windows)])
            num_done += len(windows)
            with autocast(device, config.precision):
                logits = loaded.model(to_clips(windows.flatten(0, 1), device))
            probability = loaded.model.scores(logits).unflatten(0, windows.shape[:2])
            scores.append(probability.mean(dim=1).cpu().numpy())
    joined = np.concatenate(scores)
    if not np.isfinite(joined).all():
        raise FloatingPointError(f"the model's scores for {path} are not finite")
    indices = video.indices
    start_s, end_s = video.times[indices[:, 0]], video.times[indices[:, -1] + 1]
    return Along(path, start_s, end_s, joined, tuple(pictures.taken), loaded.thresholds)


class _Pictures:
    """Collects small pictures of the frames read, evenly spaced in time and limited in number."""

    def __init__(self, times: npt.NDArray[np.float64]) -> None:
        self._times = times
        self._apart_s = max(1 / _PICTURES_PER_S, (times[-1] - times[0]) / MOST_PICTURES)
        self._next_s = -math.inf
        self._seen = -1  # last frame that was read
        self.taken: list[tuple[float, bytes]] = []

    def look(self, windows: Tensor, indices: npt.NDArray[np.int64]) -> None:
        """Take windows (B, num_crops, T, S, S, 3) uint8 and their frame numbers (B, T)."""
        middle = windows[:, windows.shape[1] // 2]
        for window, frame, index in self._new(indices):
            time = float(self._times[index])
            if time >= self._next_s:
                self.taken.append((time, _picture(middle[window, frame])))
                self._next_s = time + self._apart_s * (1 - 1e-6)

    def _new(self, indices: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """(window, frame in the window, frame in the video) of frames not read before."""
        for window, frames in enumerate(indices.tolist()):
            for frame, index in enumerate(frames):
                if index > self._seen:
                    self._seen = index
                    yield window, frame, index


def _picture(frame: Tensor) -> bytes:
    """Encode a frame (S, S, 3) as a small JPEG."""
    if frame.shape[0] > _SIDE:
        planes = functional.resize(frame.permute(2, 0, 1), [_SIDE, _SIDE], antialias=True)
        frame = planes.permute(1, 2, 0)
    return jpeg_bytes(frame.contiguous().numpy(), quality=70)
