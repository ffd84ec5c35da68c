"""Clips per second on one thread: ours with each reader, bare decoding, and the classic loader."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds
from hpm_video.bench.videos import KINDS, Kind, read_sources, write_raw, write_transcoded
from hpm_video.config import DataConfig
from hpm_video.config.values import Decoder
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.device_crops import FrameReader
from hpm_video.data.video.crops import multi_scale_crop
from hpm_video.data.video.frame_indices import random_dense_indices
from hpm_video.data.video.frames import missing, open_video

_SEED = 0


def bench_loader(
    *, source: str | None, num_videos: int, crop_size: int, rounds: int, decoders: Sequence[Decoder]
) -> Report:
    """Time all loaders on videos like those of Kinetics-400 and Something-Something V2.

    The videos are made of those in the folder `source`, else of toy videos. All loaders read the
    same windows of the same files, one after the other, round by round.

    Raises:
        ValueError: a setting is out of range, a decoder is missing, or there are too few sources.
    """
    at_least("videos", num_videos, 1)
    at_least("rounds", rounds, 1)
    at_least("crop-size", crop_size, 1)
    for decoder in decoders:
        if reason := missing(decoder):
            raise ValueError(f"--decoder ({decoder}) must be one that works here: {reason}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            sources = read_sources(Path(folder), source, num_videos)
            rows, sizes = _measure(
                Path(folder), sources, crop_size=crop_size, rounds=rounds, decoders=decoders
            )
            machine = machine_facts(torch.device("cpu"))
    finally:
        torch.set_num_threads(threads)
    return Report(
        "loader",
        machine,
        {
            "source": source or "toy videos",
            "videos": num_videos,
            "frames": 16,
            "crop_size": crop_size,
            "rounds": rounds,
            **sizes,
        },
        rows,
        [
            "clips_per_s: per second of processor time; crops of one decoded window counting each; "
            "vs_bare: over bare decoding of the same files with the same decoder; "
            "vs_classic: over the classic loader on the raw files",
            "classic and ours crop and resize; the classic one also makes normalised floats of "
            "them, which ours leaves to the device; ours with device crops: what workers do then",
        ],
    )


def _measure(
    folder: Path,
    sources: Sequence[npt.NDArray[np.uint8]],
    *,
    crop_size: int,
    rounds: int,
    decoders: Sequence[Decoder],
) -> tuple[list[dict[str, Cell]], dict[str, object]]:
    """The table, and the mean size of the files of each kind."""
    calls: dict[str, Callable[[], int]] = {}
    rows: list[dict[str, Cell]] = []
    sizes: dict[str, object] = {}
    for kind in KINDS:
        raw = [write_raw(folder / f"{kind.name}_{k}", kind, f) for k, f in enumerate(sources)]
        transcoded = [
            write_transcoded(path.with_name(f"{path.stem}_transcoded"), path) for path in raw
        ]
        for files, paths in (("raw", raw), ("transcoded", transcoded)):
            kilobytes = sum(path.stat().st_size for path in paths) / len(sources) / 1000
            sizes[f"{kind.name}_{files}_kb"] = round(kilobytes)
            for loader, decoder, repeats, call in _loaders(paths, kind, crop_size, decoders):
                calls[str(len(rows))] = call
                row: dict[str, Cell] = {"videos": kind.name, "files": files, "loader": loader}
                rows.append({**row, "decoder": decoder, "repeats": repeats})
    # Time at work, not that of the clock on the wall: the processor may have others to serve
    seconds = median_seconds(
        calls, rounds=rounds, device=torch.device("cpu"), clock=time.process_time
    )
    for name, row in enumerate(rows):
        count = row["repeats"]
        assert isinstance(count, int)
        row["clips_per_s"] = count * len(sources) / seconds[str(name)]
    for row in rows:
        row["vs_bare"] = _ratio(row, rows, "bare", files=row["files"], decoder=row["decoder"])
        row["vs_classic"] = _ratio(row, rows, "classic", files="raw", decoder="decord")
    return rows, sizes


def _ratio(
    row: dict[str, Cell], rows: Sequence[dict[str, Cell]], loader: str, **same: Cell
) -> float | None:
    """Clips per second of a row over those of the one row of `loader` that it belongs to."""
    wanted = {"videos": row["videos"], "loader": loader, **same}
    for other in rows:
        if all(other[key] == value for key, value in wanted.items()):
            mine, base = row["clips_per_s"], other["clips_per_s"]
            assert isinstance(mine, float) and isinstance(base, float)
            return mine / base
    return None


def _loaders(
    paths: Sequence[Path], kind: Kind, crop_size: int, decoders: Sequence[Decoder]
) -> Iterator[tuple[str, str, int, Callable[[], int]]]:
    """(name, decoder, repeats, function that reads a clip of every video) of each loader."""
    manifest_file = paths[0].with_suffix(".csv")
    write_manifest(manifest_file, [{"path": path.name, "label": 0} for path in paths])
    manifest = read_manifest(manifest_file)
    indices = range(len(paths))

    def windows(epoch: int) -> Iterator[tuple[str, list[int], np.random.Generator]]:
        """What `ClipDataset` reads in an epoch, and the generator that draws its crops."""
        for index in indices:
            rng = np.random.default_rng((_SEED, epoch, index))
            window = random_dense_indices(
                kind.num_frames, clip_frames=16, stride=kind.stride, rng=rng
            )
            yield manifest.path(index), window.tolist(), rng

    def classic(epoch: int) -> None:
        from hpm_video.bench.classic_loader import classic_clip

        height, width = _size_of(paths[0])
        for path, window, rng in windows(epoch):
            classic_clip(path, window, multi_scale_crop(height, width, rng=rng), crop_size)

    def bare(decoder: Decoder, epoch: int) -> None:
        for path, window, _ in windows(epoch):
            _BARE[decoder](path, window)

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
        """What is left for a worker where crops are made on the device."""
        dataset = data_set(decoder, repeats)
        reader = FrameReader(dataset.reader.data)
        row = torch.empty(reader.shape, dtype=torch.uint8)
        for index in indices:
            reader.read(next(dataset.requests((epoch, index))), row)

    if "decord" in decoders:
        yield "classic", "decord", 1, _epoch_by_epoch(classic)
    for decoder in decoders:
        yield "bare", decoder, 1, _epoch_by_epoch(partial(bare, decoder))
        for repeats in (1, 4):
            yield "ours", decoder, repeats, _epoch_by_epoch(partial(ours, decoder, repeats))
            read = _epoch_by_epoch(partial(decoding, decoder, repeats))
            yield "ours, device crops", decoder, repeats, read


def _epoch_by_epoch(read: Callable[[int], None]) -> Callable[[], int]:
    """A function whose k-th call reads epoch k: in each round all loaders read the same clips."""
    epochs = itertools.count()

    def call() -> int:
        epoch = next(epochs)
        read(epoch)
        return epoch

    return call


def _bare_decord(path: str, indices: list[int]) -> None:
    import decord

    decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()


def _bare_torchcodec(path: str, indices: list[int]) -> None:
    from torchcodec.decoders import VideoDecoder

    VideoDecoder(path, dimension_order="NHWC").get_frames_at(indices)


def _bare_pyav(path: str, indices: list[int]) -> None:
    """As its documentation has it: seek to the time of the first frame, decode up to the last."""
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


_BARE: dict[Decoder, Callable[[str, list[int]], None]] = {
    "decord": _bare_decord,
    "torchcodec": _bare_torchcodec,
    "pyav": _bare_pyav,
}


def _size_of(path: Path) -> tuple[int, int]:
    video = open_video(path, "pyav")
    return video.height, video.width
