"""The fixed views of videos, for evaluation. Everything uint8."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.samples.clips import Request, Sampling, read_item
from hpm_video.data.video import crops, frame_indices
from hpm_video.data.video.frames import open_video
from hpm_video.data.video.readers import Decoder


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


@dataclass(frozen=True)
class ViewReader:
    """Reads test views; settings as in `ViewDataset`."""

    num_frames: int
    frame_stride: int
    sampling: Sampling
    crop_size: int
    num_clips: int
    num_crops: int
    decoder: Decoder

    @property
    def shape(self) -> tuple[int, ...]:
        return self.num_clips * self.num_crops, self.num_frames, *2 * (self.crop_size,), 3

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Read all views of a video into `out`, decoding it once."""
        video = request.open(self.decoder)
        indices = self.indices(video.num_frames)
        # Clips and crops overlap: every frame is decoded and resized once, then handed out to them
        unique, positions = np.unique(indices, return_inverse=True)
        frames = crops.resize_short_side(video.read(unique), self.crop_size)
        boxes = crops.view_crops(*frames.shape[1:3], num_crops=self.num_crops)
        clip_positions = torch.from_numpy(positions.reshape(indices.shape))
        views = out.unflatten(0, (self.num_clips, self.num_crops))
        for crop, box in enumerate(boxes):
            cut = crops.resize_crop(frames, box, self.crop_size)  # (unique frames, S, S, 3)
            for clip, rows in enumerate(clip_positions):
                torch.index_select(cut, 0, rows, out=views[clip, crop])
        return video.note

    def indices(self, num_frames: int) -> frame_indices.Indices:
        """Return the (num_clips, T) frames of the views of a video."""
        if self.sampling == "dense":
            return frame_indices.dense_view_indices(
                num_frames,
                clip_frames=self.num_frames,
                stride=self.frame_stride,
                num_clips=self.num_clips,
            )
        return frame_indices.uniform_view_indices(
            num_frames, clip_frames=self.num_frames, num_clips=self.num_clips
        )


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
        self.reader = ViewReader(
            num_frames=num_frames,
            frame_stride=frame_stride,
            sampling=sampling,
            crop_size=crop_size,
            num_clips=num_clips,
            num_crops=num_crops,
            decoder=decoder,
        )

    def __len__(self) -> int:
        return len(self.manifest)

    def requests(self, key: int) -> Iterator[Request]:
        """Yield the video at a place in the manifest: nothing replaces it."""
        yield Request(key, self.manifest.path(key), self.manifest.num_frames(key))

    def __getitem__(self, index: int) -> ViewSample:
        """Return all views of one video, decoded once. Never raises for an unreadable video."""
        views = torch.empty(self.reader.shape, dtype=torch.uint8)
        reading = read_item(self.reader, self.requests(index), views)
        error = reading.bad[0][1] if reading.bad else None
        return ViewSample(views, self.manifest.label(index), index, error)


def views_of(
    manifest: Manifest, data: DataConfig, *, num_clips: int, num_crops: int
) -> ViewDataset:
    """The test views of a list's videos, of clips like those of training."""
    return ViewDataset(
        manifest,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        sampling=data.sampling,
        crop_size=data.crop_size,
        num_clips=num_clips,
        num_crops=num_crops,
        decoder=data.decoder,
    )


def read_middle_clip(
    path: str, *, num_frames: int, frame_stride: int, sampling: Sampling, crop_size: int
) -> tuple[npt.NDArray[np.uint8], frame_indices.Indices]:
    """Return the middle clip (T, S, S, 3) of a video, its centre, and the frames it is of, (T,).

    Raises:
        VideoReadError: the video is unreadable.
    """
    video = open_video(path)
    if sampling == "uniform":
        views = frame_indices.uniform_view_indices(
            video.num_frames, clip_frames=num_frames, num_clips=1
        )
    else:
        views = frame_indices.dense_view_indices(
            video.num_frames, clip_frames=num_frames, stride=frame_stride, num_clips=1
        )
    frames = video.read(views[0])
    (box,) = crops.view_crops(*frames.shape[1:3], num_crops=1)
    return crops.resize_crop(frames, box, crop_size).numpy(), views[0]
