"""Scores of masks by the codec's motion vectors: how often they are on what moves, and their cost.

    python tools/measure/motion_vectors.py [--videos 32] [--rounds 9] [--source FOLDER]

First table: how much of the moving object of toy videos the quarter of the highest scores holds,
over the same of any quarter, by tokens and by tubes. The camera is still or moves by 3 pixels a
frame. Beside them the other source that costs no model, differences of frames. Second table: time
to read a clip of 16 frames with scores and without, in turns, of these and of a folder's videos.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import torch

from hpm_video.bench.report import Cell, Report, machine_facts, publish
from hpm_video.config import DataConfig
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.prepare.toy import object_mask
from hpm_video.data.prepare.toy_drawing import render_toy_video
from hpm_video.data.samples.clips import ClipReader, Request
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video.crops import Box
from hpm_video.data.video.frames import open_video
from hpm_video.method.sources import motion_scores
from hpm_video.models.tokens import TokenGrid, patchify

Floats = npt.NDArray[np.float32]

_SIZE, _NUM_FRAMES = 128, 32
_INDICES = 2 * np.arange(16)
_PAN = 3  # pixels a frame
_TUBELET = Tubelet(2, 16)
# Encoder, most B-frames and options; "" is what `data transcode` makes of the first
_KINDS: dict[str, tuple[str, str, int, dict[str, str]]] = {
    "H.264, like toy videos": ("mp4", "libx264", 3, {"crf": "18", "preset": "veryfast"}),
    "H.264, as data transcode writes it": ("mp4", "", 0, {}),
    "H.264, preset medium, crf 23": ("mp4", "libx264", 3, {"crf": "23"}),
    "MPEG-4": ("avi", "mpeg4", 0, {"qmin": "2", "qmax": "3"}),
}
_DIFFERENCES = "differences of frames"
_ENDINGS = (".mp4", ".mkv", ".avi", ".mov")


def write(path: Path, frames: npt.NDArray[np.uint8], kind: str) -> Path:
    """Encode frames (T, H, W, 3); returns the file."""
    suffix, codec, b_frames, options = _KINDS[kind]
    path = path.with_suffix(f".{suffix}")
    if not codec:
        source = write(path.with_name(f"source-{path.stem}"), frames, next(iter(_KINDS)))
        encode_video(str(source), str(path), Encoding(), has_times=True)
        return path
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=12, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.gop_size, context.max_b_frames, context.thread_count = 12, b_frames, 1
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 12)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def coverage(scores: Floats, moving: Floats) -> float:
    """How much of the object the quarter of the highest scores holds; 1: as any quarter."""
    hardest = np.argsort(-scores.ravel(), kind="stable")[: scores.size // 4]
    return float(moving.ravel()[hardest].mean() / moving.mean())


def measure_coverage(num_videos: int, folder: Path) -> list[dict[str, Cell]]:
    """A row for each source of scores."""
    found: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    time_steps, side = len(_INDICES) // _TUBELET.frames, _SIZE // _TUBELET.side
    grid = TokenGrid(time_steps, side, side)
    for camera, pan in {"still": 0, "moves": _PAN}.items():
        for index in range(num_videos):
            frames, places = render_toy_video(0, index, size=_SIZE, num_frames=_NUM_FRAMES)
            # The world is a torus: to roll it is to turn the camera
            frames = np.stack([np.roll(frame, pan * n, 1) for n, frame in enumerate(frames)])
            places[:, 1] = (places[:, 1] + pan * np.arange(_NUM_FRAMES)) % _SIZE
            moving = object_mask(
                places[_INDICES], _SIZE, grid_time=time_steps, grid_height=side, grid_width=side
            )
            clip = torch.from_numpy(frames[_INDICES]).permute(3, 0, 1, 2)[None]
            by_source = {
                _DIFFERENCES: motion_scores(
                    patchify(clip, grid), grid, tubelet_size=_TUBELET.frames
                ).numpy()
            }
            for kind in _KINDS:
                path = write(folder / f"{list(_KINDS).index(kind)}-{camera}-{index}", frames, kind)
                speeds = open_video(path, motion=True).read_motion(_INDICES)[1]
                size, box = (_SIZE, _SIZE), Box(0, 0, _SIZE, _SIZE)
                by_source[kind] = _TUBELET.scores(speeds, box, _SIZE, size=size, flip=False)
            for source, scores in by_source.items():
                tokens = scores.reshape(moving.shape)
                pair = coverage(tokens, moving), coverage(tokens.mean(0), moving.mean(0))
                found[source, camera].append(pair)
    means = {key: np.mean(pairs, axis=0) for key, pairs in found.items()}
    rows: list[dict[str, Cell]] = []
    for source in (_DIFFERENCES, *_KINDS):
        rows.append({"scores by": source})
        for camera in ("still", "moves"):
            for units, mean in zip(("tokens", "tubes"), means[source, camera], strict=True):
                rows[-1][f"camera {camera}, {units}"] = float(mean)
    return rows


def measure_time(paths: Sequence[Path], rounds: int) -> dict[str, Cell]:
    """Median milliseconds to read a clip without scores and with; their ratio, with quartiles."""
    data = DataConfig(decoder="pyav")
    readers = [ClipReader(data), ClipReader(data, tubelet=_TUBELET)]
    rows = [torch.empty(reader.shape, dtype=torch.uint8) for reader in readers]
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 1):  # of which the first warms up
        taken = [0.0, 0.0]
        for path in paths:
            for k in (0, 1) if number % 2 else (1, 0):
                start = time.perf_counter()
                readers[k].read(Request(0, str(path), 0, (number,)), rows[k])
                taken[k] += time.perf_counter() - start
        if number:
            for k in (0, 1):
                seconds[k].append(taken[k] / len(paths))
    ratios = [second / first for first, second in zip(*seconds, strict=True)]
    low, median, high = np.quantile(ratios, [0.25, 0.5, 0.75])
    return {
        "files": len(paths),
        "without scores, ms": 1000 * statistics.median(seconds[0]),
        "with, ms": 1000 * statistics.median(seconds[1]),
        "ratio": float(median),
        "quartiles": f"{low:.2f} to {high:.2f}",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=32, metavar="N", help="videos of each kind")
    parser.add_argument("--rounds", type=int, default=9, metavar="N")
    parser.add_argument(
        "--source", type=Path, metavar="FOLDER", help="folder of more videos to time"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        covered = measure_coverage(args.videos, folder)
        groups: dict[str, list[Path]] = {}
        for number, kind in enumerate(_KINDS):
            groups[f"toy videos, {kind}"] = sorted(folder.glob(f"{number}-still-*"))
        if args.source is not None:
            files = sorted(p for p in args.source.rglob("*") if p.suffix in _ENDINGS)
            groups["the folder"] = files[:: max(1, len(files) // args.videos)][: args.videos]
        timed: list[dict[str, Cell]] = [
            {"clips of": name, **measure_time(paths, args.rounds)} for name, paths in groups.items()
        ]
    facts, settings = machine_facts(torch.device("cpu")), vars(args)
    publish(Report("motion_vectors", facts, settings, covered))
    publish(Report("motion_vectors: time", facts, settings, timed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
