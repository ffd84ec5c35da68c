"""Clips per second on one thread: ours with each reader, bare decoding, and the classic loader."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch
from torchvision.transforms.v2 import functional

from hpm_video.bench.measure import at_least, median_seconds
from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.data.clips import random_dense_indices
from hpm_video.data.dataset import ClipDataset
from hpm_video.data.manifest import read_manifest, write_manifest
from hpm_video.data.readers import Decoder
from hpm_video.data.toy import write_toy_videos
from hpm_video.data.transforms import multi_scale_crop
from hpm_video.data.video import Video, VideoReadError, missing, open_video, read_frames

_SEED = 0
_FRAMES_OF_SOURCE = 150  # at most; shown there and back again they fill the longest video


@dataclass(frozen=True)
class Kind:
    """What the videos of a data set are like, and how clips are taken of them."""

    name: str
    suffix: str
    codec: str
    size: tuple[int, int]  # (height, width)
    fps: int
    num_frames: int
    options: dict[str, str]
    stride: int
    short_side: int  # after re-encoding


KINDS = (
    Kind("k400", ".mp4", "libx264", (320, 568), 30, 300, {}, 4, 256),
    Kind("ssv2", ".webm", "libvpx-vp9", (240, 426), 12, 48, {"cpu-used": "4"}, 2, 240),
)
_FAST_DECODE = {"g": "16", "bf": "0", "tune": "fastdecode", "crf": "20"}


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
            sources = _sources(Path(folder), source, num_videos)
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
            "them, which ours leaves to the device",
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
        raw = [_write_raw(folder / f"{kind.name}_{k}", kind, f) for k, f in enumerate(sources)]
        transcoded = [
            _write_transcoded(path.with_name(f"{path.stem}_transcoded"), kind, path) for path in raw
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
        from hpm_video.bench.classic import classic_clip

        height, width = _size_of(paths[0])
        for path, window, rng in windows(epoch):
            classic_clip(path, window, multi_scale_crop(height, width, rng=rng), crop_size)

    def bare(decoder: Decoder, epoch: int) -> None:
        for path, window, _ in windows(epoch):
            _BARE[decoder](path, window)

    def ours(decoder: Decoder, repeats: int, epoch: int) -> None:
        dataset = ClipDataset(
            manifest,
            num_frames=16,
            frame_stride=kind.stride,
            sampling="dense",
            crop_size=crop_size,
            crop="multi_scale",
            flip=False,
            repeats=repeats,
            seed=_SEED,
            decoder=decoder,
        )
        for index in indices:
            assert not dataset[epoch, index].bad

    if "decord" in decoders:
        yield "classic", "decord", 1, _epoch_by_epoch(classic)
    for decoder in decoders:
        yield "bare", decoder, 1, _epoch_by_epoch(partial(bare, decoder))
        for repeats in (1, 4):
            yield "ours", decoder, repeats, _epoch_by_epoch(partial(ours, decoder, repeats))


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


def _sources(folder: Path, source: str | None, num_videos: int) -> list[npt.NDArray[np.uint8]]:
    """Frames (T, H, W, 3) of videos to make others of, in the order of their names."""
    found: list[npt.NDArray[np.uint8]] = []
    if source is None:
        toy = write_toy_videos(folder / "toy", num_videos=num_videos, size=320, num_frames=100)
        paths = [Path(path) for path in map(read_manifest(toy).path, range(num_videos))]
    elif Path(source).is_dir():
        paths = sorted(path for path in Path(source).rglob("*") if path.is_file())
    else:
        raise ValueError(f"--source ({source}) must be a folder of videos")
    for path in paths:
        with suppress(VideoReadError):
            video = open_video(path, "pyav")
            if video.num_frames >= 48 and min(video.height, video.width) >= 240:
                found.append(_small_frames(video))
        if len(found) == num_videos:
            return found
    raise ValueError(
        f"--source ({source}) must hold at least {num_videos} videos of 240 pixels and 48 frames "
        f"or more; it has {len(found)}"
    )


def _small_frames(video: Video) -> npt.NDArray[np.uint8]:
    """The first frames of a video, of the largest size that is needed."""
    count = min(video.num_frames, _FRAMES_OF_SOURCE)
    parts = []
    for start in range(0, count, 25):
        # (T, H, W, 3) -> (T, 3, H, W) and back
        frames = torch.from_numpy(video.read(range(start, min(start + 25, count))))
        small = functional.resize(frames.permute(0, 3, 1, 2), list(KINDS[0].size), antialias=True)
        parts.append(small.permute(0, 2, 3, 1).numpy())
    return np.concatenate(parts)


def _write_raw(path: Path, kind: Kind, source: npt.NDArray[np.uint8]) -> Path:
    """Write a video as the data set has them, of frames (T, H, W, 3)."""
    # There and back again, so that a short source does not jump where it starts over
    order = [*range(len(source)), *range(len(source) - 2, 0, -1)]
    step = max(round(30 / kind.fps), 1)
    frames = (source[order[k * step % len(order)]] for k in range(kind.num_frames))
    return _encode(
        path.with_suffix(kind.suffix),
        frames,
        codec=kind.codec,
        size=kind.size,
        fps=kind.fps,
        options=kind.options,
    )


def _write_transcoded(path: Path, kind: Kind, raw: Path) -> Path:
    """Write a video re-encoded for training."""
    height, width = kind.size
    size = kind.short_side, round(width * kind.short_side / height / 2) * 2
    return _encode(
        path.with_suffix(".mp4"),
        read_frames(raw, range(kind.num_frames), "pyav"),
        codec="libx264",
        size=size,
        fps=kind.fps,
        options=_FAST_DECODE,
    )


def _encode(
    path: Path,
    frames: Iterable[npt.NDArray[np.uint8]],
    *,
    codec: str,
    size: tuple[int, int],
    fps: int,
    options: dict[str, str],
) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        if codec == "libvpx-vp9":
            stream.bit_rate = 500_000
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(size[1], size[0], "yuv420p", interpolation="BICUBIC")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
