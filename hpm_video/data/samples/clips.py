"""Videos as items: random clips for training; evaluation's are in `views`. Everything uint8.

A data set knows the list and says what to read; a reader reads it. Readers are small and know
nothing of the list, so that they can be sent to other processes.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hpm_video.config import AugmentConfig, values
from hpm_video.config.values import Crop
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.samples.augment import augment
from hpm_video.data.video import crops, frame_indices
from hpm_video.data.video.frames import Video, VideoReadError, open_video
from hpm_video.data.video.readers import Decoder

Sampling = values.Sampling

# An isolated broken file is replaced; this many in a row mean that the data are not there
MAX_UNREADABLE_IN_A_ROW = 20


@dataclass(frozen=True)
class Request:
    """What to read.

    Attributes:
        index: the video's place in the manifest.
        path: its file.
        num_frames: the number of frames the list gives it, which is never exceeded; 0: unknown.
        seed: of all that is random.
    """

    index: int
    path: str
    num_frames: int
    seed: tuple[int, ...] = ()

    def open(self, decoder: Decoder) -> Video:
        """Open the video.

        Raises:
            VideoReadError: it is unreadable.
        """
        return open_video(self.path, decoder, most_frames=self.num_frames or None)


@dataclass(frozen=True)
class Reading:
    """What came of an item.

    Attributes:
        index: the manifest place of the video that was read, None where none could be.
        bad: (index, reason) of the unreadable videos that were tried before.
        note: why another decoder read it than the one chosen, see `Video.note`.
    """

    index: int | None
    bad: tuple[tuple[int, str], ...]
    note: str | None = None


class Reader(Protocol):
    """Reads one video."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all that is read of a video."""

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Fill `out`, uint8 of that shape; returns `Video.note`. Raises VideoReadError."""


class VideoDataset(Protocol):
    """What is needed to read the items of a data set, whatever the keys it has for them."""

    @property
    def reader(self) -> Reader: ...

    def requests(self, key: Any) -> Iterator[Request]:
        """What to read for an item, and in its place where that is unreadable."""


def read_item(reader: Reader, requests: Iterator[Request], out: torch.Tensor) -> Reading:
    """Read the first of the requested videos that is readable; zeros where none is."""
    bad: list[tuple[int, str]] = []
    for request in requests:
        try:
            note = reader.read(request, out)
        except VideoReadError as error:
            bad.append((request.index, error.reason))
        else:
            return Reading(request.index, tuple(bad), note)
    out.zero_()
    return Reading(None, tuple(bad))


@dataclass(frozen=True)
class ClipSample:
    """Crops of one clip of one video.

    Attributes:
        clips: (R, T, S, S, 3) uint8, R crops of the same T frames; (0, T, S, S, 3) when 20 videos
            in a row were unreadable, which is for the loader to report.
        label: class index, -1 for none.
        index: the video's place in the manifest (after any replacement).
        bad: (index, reason) of every video that was found unreadable on the way here.
    """

    clips: torch.Tensor
    label: int
    index: int
    bad: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class ClipReader:
    """Reads random clips; settings as in `ClipDataset`."""

    num_frames: int
    frame_stride: int
    sampling: Sampling
    crop_size: int
    crop: Crop
    flip: bool
    repeats: int
    decoder: Decoder
    windows: int = 1
    augment: AugmentConfig | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.repeats, self.num_frames, self.crop_size, self.crop_size, 3

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Read R crops of one video into `out`, a function of the request alone."""
        rng = np.random.default_rng(request.seed)
        video = request.open(self.decoder)
        parts = self.read_windows(video, rng)
        for clip, part in zip(out, itertools.cycle(parts), strict=False):
            box, flip = self.draw_box(part.shape[1], part.shape[2], rng)
            crop = crops.resize_crop(part, box, self.crop_size, flip=flip)
            clip.copy_(crop if self.augment is None else augment(crop, self.augment, rng=rng))
        return video.note

    def read_windows(self, video: Video, rng: np.random.Generator) -> list[npt.NDArray[np.uint8]]:
        """Frames (T, H, W, 3) of each window, drawn at random."""
        windows = [self._indices(video.num_frames, rng) for _ in range(self.windows)]
        if len(windows) == 1:
            return [video.read(windows[0])]
        # They may overlap: every frame is decoded once
        unique, positions = np.unique(windows, return_inverse=True)
        frames = video.read(unique)
        return [frames[place] for place in positions.reshape(len(windows), -1)]

    def draw_box(self, height: int, width: int, rng: np.random.Generator) -> tuple[crops.Box, bool]:
        """A random box of frames of this size, and whether it is mirrored."""
        random_crop = {
            "multi_scale": crops.multi_scale_crop,
            "random_resized": crops.random_resized_crop,
        }[self.crop]
        box = random_crop(height, width, rng=rng)
        return box, self.flip and bool(rng.random() < 0.5)

    def _indices(self, num_frames: int, rng: np.random.Generator) -> frame_indices.Indices:
        if self.sampling == "dense":
            return frame_indices.random_dense_indices(
                num_frames, clip_frames=self.num_frames, stride=self.frame_stride, rng=rng
            )
        return frame_indices.random_uniform_indices(
            num_frames, clip_frames=self.num_frames, rng=rng
        )


class ClipDataset(Dataset[ClipSample]):
    """Random clips of the videos of a manifest, reproducible item by item.

    Args:
        manifest: the videos.
        num_frames: frames T of a clip.
        frame_stride: frames from one frame of a clip to the next ("dense" only).
        sampling: "dense", one window; "uniform", one frame of each of T segments.
        crop_size: side S of a crop in pixels.
        crop: kind of random crop, see `transforms`.
        flip: whether to mirror every other crop.
        repeats: crops R of each video, which is decoded once.
        windows: windows in time that the crops are taken from, in turns.
        augment: what else is done to each of these crops, see `augment`.
        seed: at least 0.
        decoder: what reads the videos, see `open_video`.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        num_frames: int,
        frame_stride: int,
        sampling: Sampling,
        crop_size: int,
        crop: Crop,
        flip: bool,
        repeats: int,
        seed: int,
        decoder: Decoder = "decord",
        windows: int = 1,
        augment: AugmentConfig | None = None,
    ) -> None:
        self.manifest = manifest
        self.seed = seed
        self.repeats = repeats
        self.windows = windows
        self.reader: Reader = ClipReader(
            num_frames=num_frames,
            frame_stride=frame_stride,
            sampling=sampling,
            crop_size=crop_size,
            crop=crop,
            flip=flip,
            repeats=repeats,
            decoder=decoder,
            windows=windows,
            augment=augment,
        )

    def __len__(self) -> int:
        return len(self.manifest)

    def requests(self, key: tuple[int, int]) -> Iterator[Request]:
        """Yield the clip of key (epoch, index), then those that replace unreadable ones.

        They are functions of the key and the seed alone, not of what was wrong with the others.
        """
        epoch, index = key
        manifest = self.manifest
        yield Request(
            index, manifest.path(index), manifest.num_frames(index), (self.seed, epoch, index)
        )
        replacements = np.random.default_rng((self.seed, epoch, index, MAX_UNREADABLE_IN_A_ROW))
        for attempt in range(1, MAX_UNREADABLE_IN_A_ROW):
            other = int(replacements.integers(len(manifest)))
            seed = (self.seed, epoch, index, attempt)
            yield Request(other, manifest.path(other), manifest.num_frames(other), seed)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """Return the clip for key (epoch, index), a function of the key and the seed alone.

        An unreadable video is recorded and replaced by one drawn at random.
        """
        out = torch.empty(self.reader.shape, dtype=torch.uint8)
        reading = read_item(self.reader, self.requests(key), out)
        if reading.index is None:
            return ClipSample(out[:0], -1, reading.bad[-1][0], reading.bad)
        return ClipSample(out, self.manifest.label(reading.index), reading.index, reading.bad)
