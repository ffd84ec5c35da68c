"""Our data sets in pytorchvideo's format: one dict per clip."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from hpm_video.data.samples.clips import ClipDataset
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import VideoReadError


class LabeledVideos(IterableDataset[dict[str, Any]]):
    """The clips of a data set, for loops written for ``pytorchvideo.data.LabeledVideoDataset``.

    Each is a dict with ``video``, float32 (3, T, S, S) in [0, 255]; ``label`` (-1: none);
    ``video_name``; ``video_index``, its index in the list; ``clip_index``, its window in time; and
    ``aug_index``, its crop. The workers of a torch data loader divide the videos among themselves.

    Args:
        dataset: random clips, or the fixed views of an evaluation.
        epoch: epoch of the random clips; 0 or above. Set it before each pass.

    Iterating raises VideoReadError for an unreadable view, or if no clip could be read.
    """

    def __init__(self, dataset: ClipDataset | ViewDataset, *, epoch: int = 0) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        start, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for index in range(start, len(self.dataset), step):
            yield from self._dicts(index)

    def _dicts(self, index: int) -> Iterator[dict[str, Any]]:
        manifest = self.dataset.manifest
        if isinstance(self.dataset, ClipDataset):
            sample = self.dataset[self.epoch, index]
            clips, place, label = sample.clips, sample.index, sample.label
            windows = self.dataset.reader.data.windows
            error = sample.bad[-1][1] if len(clips) == 0 else None
            crops = len(clips) // windows
            order = sorted(range(len(clips)), key=lambda row: row % windows)  # alternating windows
        else:
            views = self.dataset[index]
            clips, place, label, error = views.views, index, views.label, views.error
            crops, order = self.dataset.reader.num_crops, list(range(len(clips)))
        path = manifest.path(place)
        if error is not None:
            raise VideoReadError(path, error)
        for number, row in enumerate(order):
            yield {
                "video": clips[row].permute(3, 0, 1, 2).to(torch.float32),
                "label": label,
                "video_name": Path(path).name,
                "video_index": place,
                "clip_index": number // crops,
                "aug_index": number % crops,
            }
