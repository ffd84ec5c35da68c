"""Clips per second on one thread: our loader for each decoder, bare decoding, a classic loader."""

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from PIL import Image

from hpm_video.bench.lookalike_videos import KINDS, Kind, read_sources, write_raw
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import median_seconds
from hpm_video.config import DataConfig
from hpm_video.config.limits import at_least
from hpm_video.config.values import Decoder
from hpm_video.data.lists.frame_index import index_beside, write_frame_index
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.device_crops import FrameReader
from hpm_video.data.video.crops import Box, multi_scale_crop
from hpm_video.data.video.frame_indices import random_dense_indices
from hpm_video.data.video.frames import missing, open_video
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD

_SEED = 0


def bench_loader(
    *, source: str | None, num_videos: int, crop_size: int, rounds: int, decoders: Sequence[Decoder]
) -> Report:
    """Time all loaders on videos like those of Kinetics-400 and Something-Something V2.

    The videos are made from those in the folder ``source``, or from toy videos. In each round, all
    loaders read the same windows of the same files in turn.

    Raises:
        ValueError: a setting is out of range, a decoder is missing, or there are too few sources.
    """
    for name, value in (("videos", num_videos), ("rounds", rounds), ("crop-size", crop_size)):
        at_least(f"--{name}", value, 1)
    for decoder in decoders:
        if reason := missing(decoder):
            raise ValueError(f"--decoder ({decoder}) must work on this machine: {reason}")
    calls: dict[_Side, Callable[[], object]] = {}
    sizes: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        folder = Path(name)
        sources = read_sources(folder, source, num_videos)
        for kind in KINDS:
            stem = folder / kind.name
            raw = [write_raw(Path(f"{stem}_{k}"), kind, f) for k, f in enumerate(sources)]
            transcoded = [path.with_name(f"{path.stem}_transcoded.mp4") for path in raw]
            for path, target in zip(raw, transcoded, strict=True):
                encode_video(str(path), str(target), Encoding())  # like `data transcode`
            for files, paths in (("raw", raw), ("transcoded", transcoded)):
                size = sum(path.stat().st_size for path in paths) / len(paths)
                sizes[f"{kind.name}_{files}_kb"] = round(size / 1000)
                for loader, read in _loaders(paths, kind, crop_size, decoders):
                    # The k-th call reads epoch k, so all read the same clips in each round
                    epochs = map(read, itertools.count())
                    calls[_Side(kind.name, files, *loader)] = partial(next, epochs)
        # CPU time instead of wall time, as other processes may be running
        cpu = torch.device("cpu")
        seconds = median_seconds(calls, rounds=rounds, device=cpu, clock=time.process_time)
        machine = machine_facts(cpu)
    rates = {side: side.repeats * num_videos / value for side, value in seconds.items()}

    def over(side: _Side, **other: str) -> float | None:
        base = side._replace(repeats=1, **other)
        return rates[side] / rates[base] if base in rates else None

    settings = {"source": source or "toy videos", "videos": num_videos, "frames": 16}
    settings |= {"crop_size": crop_size, "rounds": rounds}
    return Report(
        "loader",
        machine,
        {**settings, **sizes},
        [
            {
                **side._asdict(),
                "clips_per_s": rate,
                "vs_bare": over(side, loader="bare"),
                "vs_classic": over(side, loader="classic", files="raw", decoder="decord"),
            }
            for side, rate in rates.items()
        ],
        [
            "clips_per_s: clips per second of processor time, counting each crop of a decoded "
            "window; vs_bare: relative to bare decoding of the same files with the same decoder; "
            "vs_classic: relative to the classic loader on the raw files",
            "classic and ours crop and resize; classic also converts clips to normalised floats, "
            "which ours does on the device; ours, device crops: the workers' part of the work if "
            "crops are made on the device",
        ],
    )


class _Side(NamedTuple):
    """A timed combination, one row of the table."""

    videos: str
    files: str
    loader: str
    decoder: str
    repeats: int


def _loaders(
    paths: Sequence[Path], kind: Kind, crop_size: int, decoders: Sequence[Decoder]
) -> Iterator[tuple[tuple[str, str, int], Callable[[int], None]]]:
    """((name, decoder, repeats), function that reads a clip of every video), for each loader."""
    manifest_file = paths[0].with_suffix(".csv")
    write_manifest(manifest_file, [{"path": path.name, "label": 0} for path in paths])
    tables = ((path.name, decoded_table(str(path)).to_bytes()) for path in paths)
    write_frame_index(index_beside(manifest_file), tables)  # like `data check`
    manifest = read_manifest(manifest_file)
    indices = range(len(paths))

    def windows(epoch: int) -> Iterator[tuple[str, list[int], np.random.Generator]]:
        """Path, frame indices and generator for crops, like those of `ClipDataset` in an epoch."""
        for index in indices:
            rng = np.random.default_rng((_SEED, epoch, index))
            window = random_dense_indices(
                kind.num_frames, clip_frames=16, stride=kind.stride, rng=rng
            )
            yield manifest.path(index), window.tolist(), rng

    def classic(epoch: int) -> None:
        video = open_video(paths[0], "pyav")
        for path, window, rng in windows(epoch):
            box = multi_scale_crop(video.height, video.width, rng=rng)
            classic_clip(path, window, box, crop_size)

    def bare(decoder: Decoder, epoch: int) -> None:
        for path, window, _ in windows(epoch):
            BARE[decoder](path, window)

    def data_set(decoder: Decoder, repeats: int) -> ClipDataset:
        data = DataConfig(
            frame_stride=kind.stride, crop_size=crop_size, repeats=repeats, decoder=decoder,
            frame_pixels=kind.size[0] * kind.size[1],
        )  # fmt: skip
        return ClipDataset(manifest, ClipReader(data), seed=_SEED)

    def ours(decoder: Decoder, repeats: int, epoch: int) -> None:
        dataset = data_set(decoder, repeats)
        for index in indices:
            assert not dataset[epoch, index].bad

    def decoding(decoder: Decoder, repeats: int, epoch: int) -> None:
        """The work of a loader worker if crops are made on the device."""
        dataset = data_set(decoder, repeats)
        reader = FrameReader(dataset.reader.data)
        row = torch.empty(reader.shape, dtype=torch.uint8)
        for index in indices:
            reader.read(next(dataset.requests((epoch, index))), row)

    if "decord" in decoders:
        yield ("classic", "decord", 1), classic
    for decoder in decoders:
        yield ("bare", decoder, 1), partial(bare, decoder)
        for repeats in (1, 4):
            yield ("ours", decoder, repeats), partial(ours, decoder, repeats)
            yield ("ours, device crops", decoder, repeats), partial(decoding, decoder, repeats)


def classic_clip(path: str, indices: Sequence[int], box: Box, size: int) -> torch.Tensor:
    """A float32 clip (3, T, size, size) made as in the official pre-training data set: frames
    from decord, cropped to ``box`` and resized by PIL one by one, then normalised."""
    from hpm_video.data.video.readers.decord import decord  # through our module, see there

    reader = decord.VideoReader(path, num_threads=1)
    frames = reader.get_batch(list(indices)).asnumpy()
    images = [Image.fromarray(frame).convert("RGB") for frame in frames]
    corners = (box.left, box.top, box.left + box.width, box.top + box.height)
    crops = [
        image.crop(corners).resize((size, size), Image.Resampling.BILINEAR) for image in images
    ]
    # (S, S, T * 3) -> (T * 3, S, S)
    stacked = np.concatenate([np.array(crop) for crop in crops], axis=2)
    planes = torch.from_numpy(stacked).permute(2, 0, 1).contiguous().float().div(255)
    statistics = zip(IMAGENET_MEAN * len(crops), IMAGENET_STD * len(crops), strict=True)
    for plane, (mean, std) in zip(planes, statistics, strict=True):
        plane.sub_(mean).div_(std)
    return planes.view(len(crops), 3, size, size).transpose(0, 1)


def _bare_decord(path: str, indices: list[int]) -> None:
    from hpm_video.data.video.readers.decord import decord  # through our module, see there

    decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def _bare_torchcodec(path: str, indices: list[int]) -> None:
    from torchcodec.decoders import VideoDecoder

    VideoDecoder(path, dimension_order="NHWC").get_frames_at(indices)


def _bare_pyav(path: str, indices: list[int]) -> None:
    """As in PyAV's documentation: seek to the time of the first frame, decode up to the last."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        assert stream.average_rate and stream.time_base
        step = 1 / (stream.average_rate * stream.time_base)
        times = {round(index * step) + (stream.start_time or 0) for index in indices}
        container.seek(min(times), stream=stream)
        for frame in container.decode(stream):
            if frame.pts in times:
                frame.to_ndarray(format="rgb24")
            if frame.pts is not None and frame.pts >= max(times):
                break


BARE: dict[Decoder, Callable[[str, list[int]], None]] = {
    "decord": _bare_decord,
    "torchcodec": _bare_torchcodec,
    "pyav": _bare_pyav,
}
