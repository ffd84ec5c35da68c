"""Reading the test views of videos: all of one at once, as `evaluate` does, and view by view."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds
from hpm_video.bench.videos import KINDS, Kind, read_sources, write_raw
from hpm_video.config import DataConfig
from hpm_video.config.values import Decoder, Sampling
from hpm_video.data.samples.clips import Request
from hpm_video.data.samples.views import ViewReader, view_indices
from hpm_video.data.video.crops import resize_crop, resize_short_side, view_crops
from hpm_video.data.video.frame_indices import Indices
from hpm_video.data.video.frames import Video, missing

# The standard views of the two data sets: sampling, clips, crops
VIEWS: dict[str, tuple[Sampling, int, int]] = {"k400": ("dense", 5, 3), "ssv2": ("uniform", 2, 3)}


class _CountedVideo(Video):
    """A video that counts the frames asked of it."""

    counts: Counter[str]

    def read(self, indices: Sequence[int] | npt.NDArray[np.integer]) -> npt.NDArray[np.uint8]:
        self.counts["frames"] += len(np.unique(indices))
        return super().read(indices)


@dataclass(frozen=True)
class CountedRequest(Request):
    """A request that counts how often its video is opened, and the frames asked of it."""

    counts: Counter[str] = field(default_factory=Counter)

    def open(self, decoder: Decoder) -> Video:
        self.counts["opened"] += 1
        video = _CountedVideo(self.path, decoder, self.num_frames or None)
        video.counts = self.counts
        return video


def bench_views(
    *, source: str | None, num_videos: int, crop_size: int, rounds: int, decoder: Decoder
) -> Report:
    """Time both on raw videos like those of Kinetics-400 and Something-Something V2.

    The videos are made of those in the folder `source`, else of toy videos. Both read the same
    frames and give the same bytes, which is checked.

    Raises:
        ValueError: a setting is out of range, the decoder is missing, or there are too few sources.
    """
    at_least("videos", num_videos, 1)
    at_least("rounds", rounds, 1)
    at_least("crop-size", crop_size, 1)
    if reason := missing(decoder):
        raise ValueError(f"--decoder ({decoder}) must be one that works here: {reason}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            sources = read_sources(folder, source, num_videos)
            rows: list[dict[str, Cell]] = []
            for kind in KINDS:
                paths = [
                    write_raw(folder / f"{kind.name}_{k}", kind, f) for k, f in enumerate(sources)
                ]
                rows += _measure(paths, kind, crop_size, rounds, decoder)
            machine = machine_facts(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return Report(
        "eval",
        machine,
        {
            "source": source or "toy videos",
            "videos": num_videos,
            "frames": 16,
            "crop_size": crop_size,
            "rounds": rounds,
            "decoder": decoder,
        },
        rows,
        [
            "per video; seconds of processor time; loading alone, as the model sees the same views "
            "either way; times_faster: than view by view, each view reading its 16 frames, or, as "
            "VideoMAE's test data set does, every stride-th frame of the video",
        ],
    )


def _measure(
    paths: Sequence[Path], kind: Kind, crop_size: int, rounds: int, decoder: Decoder
) -> list[dict[str, Cell]]:
    """The rows of a kind of videos."""
    sampling, num_clips, num_crops = VIEWS[kind.name]
    data = DataConfig(
        frame_stride=kind.stride, sampling=sampling, crop_size=crop_size, decoder=decoder
    )
    reader = ViewReader(data, num_clips, num_crops)
    functions: dict[str, Callable[[Request, torch.Tensor], object]] = {
        "all at once": reader.read,
        "view by view": partial(read_view_by_view, reader, whole=False),
        "view by view, whole video": partial(read_view_by_view, reader, whole=True),
    }
    if sampling == "uniform":  # whose views are of the whole video anyway
        del functions["view by view, whole video"]
    request = CountedRequest(0, str(paths[0]), 0)
    counts = {}
    outs = []
    for name, read in functions.items():
        out = torch.empty(reader.shape, dtype=torch.uint8)
        counts[name] = Counter[str]()
        read(replace(request, counts=counts[name]), out)
        outs.append(out)
    assert all(torch.equal(out, outs[0]) for out in outs)
    requests = [Request(k, str(path), 0) for k, path in enumerate(paths)]

    def read_all(read: Callable[[Request, torch.Tensor], object]) -> None:
        for request in requests:
            read(request, outs[0])

    seconds = median_seconds(
        {name: partial(read_all, read) for name, read in functions.items()},
        rounds=rounds,
        device=torch.device("cpu"),
        clock=time.process_time,
    )
    return [
        {
            "videos": kind.name,
            "views": f"{num_clips} x {num_crops}",
            "loader": name,
            "opened": counts[name]["opened"],
            "frames_read": counts[name]["frames"],
            "seconds": seconds[name] / len(paths),
            "times_faster": seconds[name] / seconds["all at once"],
        }
        for name in functions
    ]


def read_view_by_view(
    reader: ViewReader, request: Request, out: torch.Tensor, *, whole: bool
) -> None:
    """What `reader` reads, by opening and decoding the video anew for every view.

    `whole`: every frame_stride-th frame of the video is decoded for each view.
    """
    data = reader.data
    for place in range(len(out)):
        clip, crop = divmod(place, reader.num_crops)
        video = request.open(data.decoder)
        window = view_indices(video.num_frames, data, num_clips=reader.num_clips)[clip]
        frames = _of_whole(video, window, data.frame_stride) if whole else video.read(window)
        small = resize_short_side(frames, data.crop_size)
        box = view_crops(*small.shape[1:3], num_crops=reader.num_crops)[crop]
        out[place] = resize_crop(small, box, data.crop_size)


def _of_whole(video: Video, window: Indices, stride: int) -> npt.NDArray[np.uint8]:
    """The frames of a window, taken out of all those that any window could have."""
    every = np.union1d(np.arange(0, video.num_frames, stride), window)
    return video.read(every)[np.searchsorted(every, window)]
