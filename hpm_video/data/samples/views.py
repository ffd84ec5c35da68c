"""Evaluation views: the same clips and crops of a video every time, all uint8."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.samples.clips import Request, read_item
from hpm_video.data.video import crops, frame_indices


@dataclass(frozen=True)
class ViewSample:
    """All views of a video: (num_clips * num_crops, T, S, S, 3) uint8, clip by clip.

    Zeros if it is unreadable.
    """

    views: torch.Tensor
    label: int  # class index, -1 for none
    index: int  # the video's index in the manifest
    error: str | None  # why the video is unreadable; None if it is not


@dataclass(frozen=True)
class ViewReader:
    """Reads test views; a crop covers the short side, scaled to `data.crop_size`."""

    data: DataConfig
    num_clips: int  # along time
    num_crops: int  # along the longer side, per clip

    @property
    def shape(self) -> tuple[int, ...]:
        side = self.data.crop_size
        return self.num_clips * self.num_crops, self.data.num_frames, side, side, 3

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        """Read all views of a video into `out`, decoding it once."""
        video = request.open(self.data)
        indices = view_indices(video.num_frames, self.data, num_clips=self.num_clips)
        # Clips and crops overlap, so every frame is decoded and resized only once
        unique, positions = np.unique(indices, return_inverse=True)
        size, antialias = self.data.crop_size, self.data.antialias
        frames = crops.resize_short_side(video.read(unique), size, antialias=antialias)
        boxes = crops.view_crops(*frames.shape[1:3], num_crops=self.num_crops)
        clip_positions = torch.from_numpy(positions.reshape(indices.shape))
        views = out.unflatten(0, (self.num_clips, self.num_crops))
        for crop, box in enumerate(boxes):
            cut = crops.resize_crop(frames, box, size)  # (unique frames, S, S, 3)
            for clip, rows in enumerate(clip_positions):
                torch.index_select(cut, 0, rows, out=views[clip, crop])
        return video.note


class ViewDataset(Dataset[ViewSample]):
    """The fixed test views of a manifest's videos: every clip of a video in every crop.

    For the settings see `ViewReader`.
    """

    def __init__(
        self, manifest: Manifest, data: DataConfig, *, num_clips: int, num_crops: int
    ) -> None:
        self.manifest, self.reader = manifest, ViewReader(data, num_clips, num_crops)

    def __len__(self) -> int:
        return len(self.manifest)

    def requests(self, key: int) -> Iterator[Request]:
        """Yield the request for the video at an index; it is never replaced."""
        videos = self.manifest
        yield Request(key, videos.path(key), videos.num_frames(key), table=videos.table(key))

    def __getitem__(self, index: int) -> ViewSample:
        """Return all views of one video, decoded once. Never raises for an unreadable video."""
        views = torch.empty(self.reader.shape, dtype=torch.uint8)
        reading = read_item(self.reader, self.requests(index), views)
        error = reading.bad[0][1] if reading.bad else None
        return ViewSample(views, self.manifest.label(index), index, error)


def view_indices(num_frames: int, data: DataConfig, *, num_clips: int) -> frame_indices.Indices:
    """Return the (num_clips, T) frames of the views of a video of `num_frames`."""
    length, stride = data.num_frames, data.frame_stride
    if data.sampling in ("uniform", "videomae_ssv2"):  # these two use the same views
        return frame_indices.uniform_view_indices(
            num_frames, clip_frames=length, num_clips=num_clips
        )
    views = frame_indices.dense_view_indices(
        num_frames, clip_frames=length, stride=stride, num_clips=num_clips
    )
    if data.sampling == "dense":
        return views
    # As published: a video that is too short repeats the last frame of the strided video
    return np.minimum(views, (num_frames - 1) // stride * stride)
