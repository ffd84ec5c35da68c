"""Videos as items: random clips for training, fixed views for evaluation. Everything uint8."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hpm_video.data import clips, transforms
from hpm_video.data.manifest import Manifest
from hpm_video.data.readers import Decoder
from hpm_video.data.video import Video, VideoReadError, open_video

Sampling = Literal["dense", "uniform"]
Crop = Literal["multi_scale", "random_resized"]

# An isolated broken file is replaced; this many in a row mean that the data are not there
MAX_UNREADABLE_IN_A_ROW = 20


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
class ViewSample:
    """All test views of one video.

    Attributes:
        views: (num_clips * num_crops, T, S, S, 3) uint8, the crops of the first clip first; zeros
            where the video is unreadable.
        label: class index, -1 for none.
        index: the video's place in the manifest.
        error: why the video is unreadable, else None.
    """

    views: torch.Tensor
    label: int
    index: int
    error: str | None


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
        repeats: crops R of each clip, which is decoded once.
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
    ) -> None:
        self.manifest = manifest
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.sampling = sampling
        self.crop_size = crop_size
        self.crop_box = {
            "multi_scale": transforms.multi_scale_crop,
            "random_resized": transforms.random_resized_crop,
        }[crop]
        self.flip = flip
        self.repeats = repeats
        self.seed = seed
        self.decoder: Decoder = decoder

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, key: tuple[int, int]) -> ClipSample:
        """Return the clip for key (epoch, index), a function of the key and the seed alone.

        An unreadable video is recorded and replaced by one drawn at random.
        """
        epoch, index = key
        rng = np.random.default_rng((self.seed, epoch, index))
        bad: list[tuple[int, str]] = []
        while len(bad) < MAX_UNREADABLE_IN_A_ROW:
            try:
                frames = self._read(open_video(self.manifest.path(index), self.decoder), rng)
            except VideoReadError as error:
                bad.append((index, error.reason))
                index = int(rng.integers(len(self)))
                continue
            crops = [self._crop(frames, rng) for _ in range(self.repeats)]
            return ClipSample(torch.stack(crops), self.manifest.label(index), index, tuple(bad))
        nothing = torch.empty(0, self.num_frames, *2 * (self.crop_size,), 3, dtype=torch.uint8)
        return ClipSample(nothing, -1, index, tuple(bad))

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[ClipSample]:
        """Return the clips of a batch, up to the first one that there is nothing for."""
        samples: list[ClipSample] = []
        for key in keys:
            samples.append(self[key])
            if len(samples[-1].clips) == 0:
                break
        return samples

    def _read(self, video: Video, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        if self.sampling == "dense":
            indices = clips.random_dense_indices(
                video.num_frames, clip_frames=self.num_frames, stride=self.frame_stride, rng=rng
            )
        else:
            indices = clips.random_uniform_indices(
                video.num_frames, clip_frames=self.num_frames, rng=rng
            )
        return video.read(indices)

    def _crop(self, frames: npt.NDArray[np.uint8], rng: np.random.Generator) -> torch.Tensor:
        box = self.crop_box(*frames.shape[1:3], rng=rng)
        flip = self.flip and bool(rng.random() < 0.5)
        return transforms.resize_crop(frames, box, self.crop_size, flip=flip)


class ViewDataset(Dataset[ViewSample]):
    """The fixed test views of the videos of a manifest: every clip of a video in every crop.

    Args:
        manifest: the videos.
        num_frames: frames T of a clip.
        frame_stride: frames from one frame of a clip to the next ("dense" only).
        sampling: "dense" or "uniform", see `clips`.
        crop_size: side S of a view in pixels; a crop is the whole short side, scaled to S.
        num_clips: clips along time.
        num_crops: crops along the longer side of each clip.
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
        num_clips: int,
        num_crops: int,
        decoder: Decoder = "decord",
    ) -> None:
        self.manifest = manifest
        self.num_frames = num_frames
        self.frame_stride = frame_stride
        self.sampling = sampling
        self.crop_size = crop_size
        self.num_clips = num_clips
        self.num_crops = num_crops
        self.decoder: Decoder = decoder

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> ViewSample:
        """Return all views of one video, decoded once. Never raises for an unreadable video."""
        label = self.manifest.label(index)
        try:
            video = open_video(self.manifest.path(index), self.decoder)
            indices = self._indices(video.num_frames)
            # Clips overlap: every frame is decoded and resized once, then handed out to the clips
            unique, positions = np.unique(indices, return_inverse=True)
            frames = video.read(unique)
        except VideoReadError as error:
            shape = (self.num_clips * self.num_crops, self.num_frames, *2 * (self.crop_size,), 3)
            return ViewSample(torch.zeros(shape, dtype=torch.uint8), label, index, error.reason)
        boxes = transforms.view_crops(*frames.shape[1:3], num_crops=self.num_crops)
        crops = [transforms.resize_crop(frames, box, self.crop_size) for box in boxes]
        # (crops, unique frames, S, S, 3) -> (crops, clips, T, ...) -> (clips * crops, T, ...)
        views = torch.stack(crops)[:, torch.from_numpy(positions.reshape(indices.shape))]
        return ViewSample(views.transpose(0, 1).flatten(0, 1), label, index, None)

    def _indices(self, num_frames: int) -> clips.Indices:
        """Return the (num_clips, T) frames of the views of a video."""
        if self.sampling == "dense":
            return clips.dense_view_indices(
                num_frames,
                clip_frames=self.num_frames,
                stride=self.frame_stride,
                num_clips=self.num_clips,
            )
        return clips.uniform_view_indices(
            num_frames, clip_frames=self.num_frames, num_clips=self.num_clips
        )
