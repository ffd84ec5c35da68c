"""Training clips: random windows in time and random crops, all uint8.

A data set knows the list and makes requests. A reader reads them; it knows nothing of the list, so
it can be sent to another process. `views` has the data set for evaluation.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hpm_video.config import AugmentConfig, DataConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.remote.fetching import fetched
from hpm_video.data.samples.augment import augment
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video import crops, frame_indices
from hpm_video.data.video.frames import VideoReadError, open_frames, reading
from hpm_video.data.video.motion import Speeds
from hpm_video.data.video.timeline import Frames

# Random sampling of frames, by data.sampling
_OF_A_WINDOW = {
    "dense": frame_indices.random_dense_indices,
    "videomae_pretrain": frame_indices.random_videomae_window,
    "videomae_kinetics": frame_indices.random_videomae_kinetics_indices,
}
_OF_SEGMENTS = {
    "uniform": frame_indices.random_uniform_indices,
    "videomae_ssv2": frame_indices.random_videomae_ssv2_indices,
}

# Single broken files are replaced; this many in a row mean that the data are missing
MAX_UNREADABLE_IN_A_ROW = 20
NUMBER_BYTES = 4  # bytes of a number in a row


@dataclass(frozen=True)
class Request:
    """A video to read, and how."""

    index: int  # the video's index in the manifest
    path: str  # of the file, or name of a part, see `hpm_video.data.video.part`
    num_frames: int  # according to the list, never exceeded; 0: unknown
    seed: tuple[int, ...] = ()  # of all random choices
    table: bytes | None = None  # frame table, from the index of the list

    def open(self, data: DataConfig, *, motion: bool = False) -> Frames:
        """Open the video or part with these settings, see `open_frames`. Raises VideoReadError."""
        return open_frames(
            self.path,
            data.decoder,
            fps=data.fps,
            most_frames=self.num_frames or None,
            table=self.table,
            motion=motion,
        )


@dataclass(frozen=True)
class Reading:
    """The result of reading an item."""

    index: int | None  # manifest index of the video that was read; None if none was readable
    bad: tuple[tuple[int, str], ...]  # (index, reason) of unreadable videos tried first
    note: str | None = None  # why another decoder read it, see `Video.note`


class Reader(Protocol):
    """Reads one video."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of everything read from a video."""

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Fill `out`, uint8 of that shape; returns `Video.note`. Raises VideoReadError."""


class VideoDataset(Protocol):
    """What the loader needs of a data set; keys may be of any type."""

    @property
    def reader(self) -> Reader: ...

    def requests(self, key: Any) -> Iterator[Request]:
        """The request for an item, then those for replacements if it is unreadable."""


def read_item(reader: Reader, requests: Iterator[Request], out: torch.Tensor) -> Reading:
    """Read the first readable video of the requests; zeros if none is."""
    bad: list[tuple[int, str]] = []
    for request in requests:
        try:
            with reading(request.path), fetched(request.path) as local:
                note = reader.read(replace(request, path=local), out)
        except VideoReadError as error:
            bad.append((request.index, error.reason))
        else:
            return Reading(request.index, tuple(bad), note)
    out.zero_()
    return Reading(None, tuple(bad))


@dataclass(frozen=True)
class ClipSample:
    """R crops (R, T, S, S, 3) uint8 of one clip of one video; or a row of bytes, see `ClipReader`.

    `clips` is (0, T, S, S, 3) if 20 videos in a row were unreadable, which the loader reports.
    """

    clips: torch.Tensor
    label: int  # class index, -1 for none
    index: int  # index in the manifest, after any replacement
    bad: tuple[tuple[int, str], ...]  # (index, reason) of unreadable videos tried first


@dataclass(frozen=True)
class Window:
    """The frames (T, H, W, 3) of a window and, if requested, their speeds."""

    frames: npt.NDArray[np.uint8]
    speeds: Speeds | None = None

    def at(self, places: npt.NDArray[np.integer]) -> "Window":
        """The frames at these positions, in this order."""
        speeds = self.speeds
        return Window(self.frames[places], None if speeds is None else speeds.at(places))


@dataclass(frozen=True)
class ClipReader:
    """Reads random clips: the frames and crops of `data` and, if requested, token scores.

    With scores (see `Tubelet.scores`), a video is a row of bytes: its clips, then the scores,
    float32.
    """

    data: DataConfig
    augment: AugmentConfig | None = None  # augmentation of each crop
    tubelet: Tubelet | None = None  # of a token, to compute scores; crops are then not augmented

    def __post_init__(self) -> None:
        assert self.tubelet is None or self.augment is None, "scores would be of other pixels"

    @property
    def shape(self) -> tuple[int, ...]:
        return self._clips_shape if self.tubelet is None else (self._scores_at + self._scores_size,)

    @property
    def _clips_shape(self) -> tuple[int, ...]:
        side = self.data.crop_size
        return self.data.repeats, self.data.num_frames, side, side, 3

    @property
    def _scores_at(self) -> int:
        """The offset of the scores in a row, aligned to numbers."""
        return -(-math.prod(self._clips_shape) // NUMBER_BYTES) * NUMBER_BYTES

    @property
    def _scores_size(self) -> int:
        """The size of the scores in a row, in bytes."""
        tubelet = self.tubelet
        return 0 if tubelet is None else NUMBER_BYTES * self.data.repeats * tubelet.count(self.data)

    def clips(self, rows: torch.Tensor) -> torch.Tensor:
        """The clips (B * R, T, S, S, 3) in rows of bytes, on any device."""
        if self.tubelet is not None:
            size = math.prod(self._clips_shape)
            rows = rows[:, :size].unflatten(1, self._clips_shape)
        return rows.flatten(0, 1)

    def scores(self, rows: torch.Tensor) -> torch.Tensor | None:
        """The scores (B * R, N) float32 in rows of bytes, on any device; None if there are none."""
        if self.tubelet is None:
            return None
        tail = rows[:, self._scores_at :].view(torch.float32)
        return tail.unflatten(1, (self.data.repeats, -1)).flatten(0, 1)

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Read R crops of one video into `out`; deterministic for a given request."""
        rng = np.random.default_rng(request.seed)
        video = request.open(self.data, motion=self.tubelet is not None)
        parts, antialias = self.read_windows(video, rng), self.data.antialias
        clips = zip(self.clips(out[None]), itertools.cycle(parts), strict=False)
        for k, (clip, part) in enumerate(clips):
            height, width = part.frames.shape[1:3]
            box, flip = self.draw_box(height, width, rng)
            size = self.data.crop_size
            crop = crops.resize_crop(part.frames, box, size, antialias=antialias, flip=flip)
            clip.copy_(crop if self.augment is None else augment(crop, self.augment, rng=rng))
            self.write_scores(out, k, part, box=box, size=(height, width), flip=flip)
        return video.note

    def write_scores(
        self,
        row: torch.Tensor,
        k: int,
        part: Window,
        *,
        box: crops.Box,
        size: Sequence[int],
        flip: bool,
    ) -> None:
        """Write crop ``k``'s scores into a row, if requested; see `Tubelet.scores` for ``size``."""
        scores = self.scores(row[None])
        if scores is not None and self.tubelet is not None and part.speeds is not None:
            found = self.tubelet.scores(part.speeds, box, self.data.crop_size, size=size, flip=flip)
            scores[k] = torch.from_numpy(found)

    def read_windows(self, video: Frames, rng: np.random.Generator) -> list[Window]:
        """Read random windows; each frame is decoded once."""
        windows = [self._indices(video.num_frames, rng) for _ in range(self.data.windows)]
        if len(windows) == 1:
            return [self._read_window(video, windows[0])]
        unique, positions = np.unique(windows, return_inverse=True)
        read = self._read_window(video, unique)
        return [read.at(places) for places in positions.reshape(len(windows), -1)]

    def _read_window(self, video: Frames, indices: frame_indices.Indices) -> Window:
        if self.tubelet is None:
            return Window(video.read(indices))
        return Window(*video.read_motion(indices))

    def draw_box(self, height: int, width: int, rng: np.random.Generator) -> tuple[crops.Box, bool]:
        """Draw a random box in frames of this size, and whether to mirror it."""
        random_crop = {
            "multi_scale": crops.multi_scale_crop,
            "random_resized": crops.random_resized_crop,
        }[self.data.crop]
        box = random_crop(height, width, rng=rng)
        return box, self.data.flip and bool(rng.random() < 0.5)

    def _indices(self, num_frames: int, rng: np.random.Generator) -> frame_indices.Indices:
        length, stride = self.data.num_frames, self.data.frame_stride
        if (segments := _OF_SEGMENTS.get(self.data.sampling)) is not None:
            return segments(num_frames, clip_frames=length, rng=rng)
        window = _OF_A_WINDOW[self.data.sampling]
        return window(num_frames, clip_frames=length, stride=stride, rng=rng)


class ClipDataset(Dataset[ClipSample]):
    """Random clips of the videos of a manifest, reproducible per item; `seed` is at least 0."""

    def __init__(self, manifest: Manifest, reader: ClipReader, *, seed: int) -> None:
        self.manifest, self.reader, self.seed = manifest, reader, seed

    def __len__(self) -> int:
        return len(self.manifest)

    def requests(self, key: tuple[int, int]) -> Iterator[Request]:
        """Yield the clip of key (epoch, index), then replacements for unreadable ones.

        An index past the list is another clip of a video that the epoch has shown before, see
        `Mixture.order`. Requests depend on the key and the seed alone, not on errors of earlier
        ones.
        """
        # The requested video has a seed of three numbers, replacements have one more
        yield self._request(key[1] % len(self), *key)
        drawn = np.random.default_rng((self.seed, *key, MAX_UNREADABLE_IN_A_ROW))
        for attempt in range(1, MAX_UNREADABLE_IN_A_ROW):
            yield self._request(int(drawn.integers(len(self))), *key, attempt)

    def _request(self, place: int, *seed: int) -> Request:
        videos = self.manifest
        path, num_frames, table = videos.path(place), videos.num_frames(place), videos.table(place)
        return Request(place, path, num_frames, (self.seed, *seed), table)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """Return the clip for key (epoch, index), which depends on the key and the seed alone.

        An unreadable video is recorded and replaced by a random one.
        """
        out = torch.empty(self.reader.shape, dtype=torch.uint8)
        reading = read_item(self.reader, self.requests(key), out)
        if reading.index is None:
            return ClipSample(out[:0], -1, reading.bad[-1][0], reading.bad)
        return ClipSample(out, self.manifest.label(reading.index), reading.index, reading.bad)
