"""Sets of toy videos: files, a list with labels, and the object's position in every frame.

`hpm_video.data.prepare.toy_drawing` describes the videos.
"""

import csv
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hpm_video.data.lists.classes import write_classes
from hpm_video.data.lists.manifest import write_manifest
from hpm_video.data.lists.rows import read_rows
from hpm_video.data.prepare.toy_drawing import CLASSES, Floats, draw_toy_video
from hpm_video.runtime.files import check_can_be_folder, new_file, write_atomically, write_csv
from hpm_video.runtime.progress import Progress
from hpm_video.runtime.reading import read_json

FORMATS = ("mp4", "webm", "avi")
POSITION_COLUMNS = ("path", "frame", "y", "x", "radius")
KEYFRAME_INTERVAL = 12  # frames

# (encoder, its options). Output is reproducible: one thread, no dates or random ids, and no x264
# mbtree, which is not deterministic for frames this small.
_ENCODERS = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}),
    "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "avi": ("mpeg4", {"qmin": "2", "qmax": "3"}),
}

_LEAST = {"size": 32, "num_frames": 2, "seed": 0, "distractors": 0}  # 1 for all others


def write_toy_videos(
    output_dir: str | Path,
    *,
    num_videos: int,
    size: int = 64,
    num_frames: int = 24,
    seed: int = 0,
    formats: Sequence[str] = FORMATS,
    fps: int = 12,
    num_workers: int = 1,
    distractors: int = 1,
) -> Path:
    """Write a balanced set of toy videos and return the path of its manifest.

    Video i has class i % 8 and format (i // 8) % len(formats), and its content depends on (seed, i)
    alone. So a larger set begins with the same videos, and training and validation sets differ by
    seed. `size` is the side in pixels (even, at least 32), `num_workers` the number of threads.
    Writes `videos/<class>/<class>_00012.<format>`, `classes.txt` (one name per line, in label
    order), `positions.csv` (see `read_positions`), `toy.json` (the settings) and, last,
    `manifest.csv` (path, label, num_frames, fps, width, height; paths relative to it).

    A complete set with the same settings is left as it is; an interrupted one is written again.
    Raises ValueError for a setting out of range, and for a folder that holds another set.
    """
    settings = {
        "num_videos": num_videos, "size": size, "num_frames": num_frames, "seed": seed,
        "fps": fps, "distractors": distractors,
    }  # fmt: skip
    for name, value in {**settings, "num_workers": num_workers}.items():
        if value < (least := _LEAST.get(name, 1)):
            raise ValueError(f"{name} ({value}) must be at least {least}")
    if size % 2 or size == 48:
        raise ValueError(f"size ({size}) must be even, and not 48, which decord cannot read")
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"formats ({formats!r}) must be one or more of {', '.join(FORMATS)}")

    output_dir = Path(output_dir)
    check_can_be_folder(output_dir, name="output_dir")
    manifest, stored = output_dir / "manifest.csv", output_dir / "toy.json"
    described = {**settings, "formats": list(formats), "classes": list(CLASSES)}
    if stored.exists() or manifest.exists():
        if other := _differences(stored, described):
            raise ValueError(f"output_dir ({output_dir}) holds other toy videos: {other}")
        if manifest.exists():
            return manifest
    elif output_dir.is_dir() and any(
        not path.name.startswith(".toy.json.") for path in output_dir.iterdir()
    ):
        raise ValueError(f"output_dir ({output_dir}) must be new or empty, but holds other files")
    output_dir.mkdir(parents=True, exist_ok=True)
    # Written first, to identify an unfinished folder
    write_atomically(stored, [json.dumps(described) + "\n"])
    for name in CLASSES[:num_videos]:
        (output_dir / "videos" / name).mkdir(parents=True, exist_ok=True)
    # One format per round of 8: codecs leave traces in single frames, so every class gets the same
    # ones. Threads suffice: encoding, most of the work, releases the interpreter's lock.
    paths = [
        f"videos/{name}/{name}_{index:05d}.{formats[index // 8 % len(formats)]}"
        for index, name in enumerate(islice(cycle(CLASSES), num_videos))
    ]
    write_classes(output_dir / "classes.txt", CLASSES)

    def write_video(index: int) -> Floats:
        blocks, positions = draw_toy_video(
            seed, index, size=size, num_frames=num_frames, distractors=distractors
        )
        _encode(output_dir / paths[index], chain.from_iterable(blocks), size, fps)
        return positions

    # Threads suffice: encoding, most of the work, runs outside the interpreter's lock.
    tracks = []
    with (
        ThreadPoolExecutor(num_workers) as pool,
        Progress("drawn", total=num_videos) as progress,
    ):
        for track in pool.map(write_video, range(num_videos)):
            tracks.append(track)
            progress.step(bad=False)

    known = {"num_frames": num_frames, "fps": fps, "width": size, "height": size}
    rows = [{"path": path, "label": index % 8, **known} for index, path in enumerate(paths)]
    positions = (
        (path, frame, *map("{:.3f}".format, place))
        for path, track in zip(paths, tracks, strict=True)
        for frame, place in enumerate(track)
    )
    write_csv(output_dir / "positions.csv", POSITION_COLUMNS, positions)
    write_manifest(manifest, rows)
    return manifest


def first_videos(manifest: Path, path: Path, count: int) -> Path:
    """Write a list of the first ``count`` videos of a toy set, balanced over its classes."""
    rows = [row for _, row in islice(read_rows(manifest), count)]
    for row in rows:
        row["path"] = os.path.relpath(manifest.parent / row["path"], path.parent)  # relocatable
    write_manifest(path, rows)
    return path


def read_positions(path: str | Path) -> dict[str, Floats]:
    """Read a positions.csv: video path as in the manifest -> (T, 3) float32 of y, x, radius.

    Units as in `hpm_video.data.prepare.toy_drawing.toy_positions`. Raises ValueError if the file
    has other columns or a gap.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header, wanted = ",".join(next(reader, [])), ",".join(POSITION_COLUMNS)
        if header != wanted:
            raise ValueError(f"header of {path} ({header}) must be {wanted}")
        for video, frame, y, x, radius in reader:
            track = rows.setdefault(video, [])
            if int(frame) != len(track):
                raise ValueError(f"frame ({frame}) of {video} in {path} must be {len(track)}")
            track.append((float(y), float(x), float(radius)))
    return {video: np.array(track, dtype=np.float32) for video, track in rows.items()}


def object_mask(
    positions: Floats, size: int, *, grid_time: int, grid_height: int, grid_width: int
) -> Floats:
    """Share of every token that the moving object's disc covers, over the token's area and frames.

    `positions` (T, 3) holds y, x, radius in pixels of the uncropped frame with side `size`, for the
    frames of the clip in order (index it with the clip's frame indices). Returns (grid_time,
    grid_height, grid_width) float32 in [0, 1]. Raises ValueError if the grid does not divide the
    clip.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise ValueError(f"shape of positions {positions.shape} must be (T, 3)")
    grid = {"time": grid_time, "height": grid_height, "width": grid_width}
    for (name, cells), length in zip(grid.items(), (len(positions), size, size), strict=True):
        if cells < 1 or length % cells:
            raise ValueError(f"grid_{name} ({cells}) must divide {length}")
    gaps = np.arange(size) - positions[:, :2, None] + size / 2  # (T, 2, size)
    gaps = gaps % size - size / 2  # signed, the shorter way around the torus
    covered = np.hypot(gaps[:, 0, :, None], gaps[:, 1, None, :]) <= positions[:, 2, None, None]
    area = size // grid_height, grid_width, size // grid_width
    shares = covered.reshape(grid_time, -1, grid_height, *area)  # (t, frames, h, y, w, x)
    return np.asarray(shares.mean(axis=(1, 3, 5)), dtype=np.float32)


def _encode(path: Path, frames: Iterable[NDArray[np.uint8]], size: int, fps: int) -> None:
    codec, options = _ENCODERS[path.suffix[1:]]
    # Always the same name, so that remains of a killed process are overwritten
    temporary, exact = str(path.with_name(f".{path.name}.tmp")), {"fflags": "bitexact"}
    new_file(temporary)
    with av.open(temporary, "w", format=path.suffix[1:], container_options=exact) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.height = stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = KEYFRAME_INTERVAL
        stream.thread_count = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(temporary, path)


def _differences(stored: Path, described: dict[str, Any]) -> str:
    """The settings in which a toy.json differs; empty if none do."""
    try:
        found = read_json(stored)
    except (OSError, ValueError):
        return "its toy.json cannot be read"
    return ", ".join(
        f"{name} ({found.get(name)}, not {value})"
        for name, value in described.items()
        if found.get(name) != value
    )
