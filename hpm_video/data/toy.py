"""Toy videos: a textured object moves over a textured background; its direction is the label.

What must not give the class away, and how it is kept silent:

* Position. The world is a torus of the frame's size: an object that leaves one side enters at the
  other and is drawn on both. With a start drawn uniformly, its position in every single frame is
  then uniform for every class. A start chosen so that the path stays inside would leak the class
  (seen at the right edge, it came from the left); on a larger canvas it would be lost from view.
* Speed. It is constant, and drawn from one range for all classes.
* Looks. Shape, colours, background, flicker and format are drawn without regard to the class;
  still distractors are drawn like the moving object. What is left: compression's faint traces.

Mirroring a video changes the class of most of them, so a classifier must be trained without random
flips.
"""

import csv
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from hpm_video.data.manifest import write_manifest

Floats = NDArray[np.float32]

# Label k moves at k eighths of a full turn, clockwise from right.
CLASSES = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
FORMATS = ("mp4", "webm", "avi")
MANIFEST_HEADER = "path,label,num_frames,fps,width,height"
POSITION_HEADER = "path,frame,y,x,radius"

SPEED = (0.04, 0.06)  # path length per frame, share of the side
RADIUS = (0.16, 0.2)  # of the moving object, share of the side
STILL_RADIUS = (0.1, 0.14)  # of a distractor: small enough not to hide the object
KEYFRAME_INTERVAL = 12  # frames

# Outlines as (corners, inner radius / outer radius): disc, square, bulging triangle, star.
_SHAPES = ((32, math.cos(math.pi / 32)), (4, math.cos(math.pi / 4)), (3, 0.62), (5, 0.58))

# Encoder, its options. The bytes repeat: one thread, no dates or random ids, and no x264 mbtree,
# whose result for frames this small changes from run to run.
_ENCODERS = {
    "mp4": ("libx264", {"crf": "18", "preset": "veryfast", "x264-params": "mbtree=0"}),
    "webm": ("libvpx-vp9", {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "8"}),
    "avi": ("mpeg4", {"qmin": "2", "qmax": "3"}),
}

_LEAST = {"num_videos": 1, "size": 32, "num_frames": 2, "seed": 0, "fps": 1, "distractors": 0}


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

    Video i has class i % 8 and format (i // 8) % len(formats), and its content depends on
    (seed, i) alone: the first videos of a larger set are the same, and training and validation
    sets differ by seed. `size` is the side in pixels (even, at least 32), `num_workers` the number
    of threads. Written are `videos/<class>/<class>_00012.<format>`, `classes.txt` (a name per
    line, in label order), `positions.csv` (see `read_positions`), `toy.json` (the settings) and,
    last, `manifest.csv` (path, label, num_frames, fps, width, height; paths relative to it).

    A finished set with the same settings is left as it is; an interrupted one is written again.
    Raises ValueError for a setting out of range, and for a folder that holds another set.
    """
    numbers = (num_videos, size, num_frames, seed, fps, distractors)  # in the order of _LEAST
    settings = dict(zip(_LEAST, numbers, strict=True))
    for name, value in {**settings, "num_workers": num_workers}.items():
        if value < _LEAST.get(name, 1):
            raise ValueError(f"{name} ({value}) must be at least {_LEAST.get(name, 1)}")
    if size % 2 or size == 48:
        raise ValueError(f"size ({size}) must be even, and not 48, which decord cannot read")
    if isinstance(formats, str) or not formats or not set(formats) <= set(FORMATS):
        raise ValueError(f"formats ({formats!r}) must be one or more of {', '.join(FORMATS)}")

    output_dir = Path(output_dir)
    if output_dir.exists() and not output_dir.is_dir():
        raise ValueError(f"output_dir ({output_dir}) is a file: must be a folder")
    manifest, stored = output_dir / "manifest.csv", output_dir / "toy.json"
    described = {**settings, "formats": list(formats), "classes": list(CLASSES)}
    if stored.exists() or manifest.exists():
        other = _differences(stored, described)
        if other:
            raise ValueError(f"output_dir ({output_dir}) holds a set with other settings: {other}")
        if manifest.exists():
            return manifest
    elif output_dir.is_dir() and any(path.name != ".toy.json.tmp" for path in output_dir.iterdir()):
        raise ValueError(f"output_dir ({output_dir}) holds other files: must be empty or new")
    output_dir.mkdir(parents=True, exist_ok=True)
    _write(stored, json.dumps(described) + "\n")  # first: it says whose an unfinished folder is
    for name in CLASSES[:num_videos]:
        (output_dir / "videos" / name).mkdir(parents=True, exist_ok=True)
    paths = [_video_path(index, formats) for index in range(num_videos)]
    _write(output_dir / "classes.txt", "\n".join(CLASSES) + "\n")

    def write_video(index: int) -> Floats:
        frames, positions = render_toy_video(
            seed, index, size=size, num_frames=num_frames, distractors=distractors
        )
        _encode(output_dir / paths[index], frames, fps)
        return positions

    # Threads suffice: encoding, most of the work, runs outside the interpreter's lock.
    with ThreadPoolExecutor(num_workers) as pool:
        tracks = list(pool.map(write_video, range(num_videos)))

    positions, rows = [POSITION_HEADER], [MANIFEST_HEADER]
    for index, (path, track) in enumerate(zip(paths, tracks, strict=True)):
        rows.append(f"{path},{index % 8},{num_frames},{fps},{size},{size}")
        for frame, (y, x, radius) in enumerate(track):
            positions.append(f"{path},{frame},{y:.3f},{x:.3f},{radius:.3f}")
    _write(output_dir / "positions.csv", "\n".join(positions) + "\n")
    _write(manifest, "\n".join(rows) + "\n")
    return manifest


def first_videos(manifest: Path, path: Path, count: int) -> Path:
    """Write a list of the first ``count`` videos of a toy set, balanced over its classes."""
    with manifest.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:count]
    for row in rows:
        row["path"] = os.path.relpath(manifest.parent / row["path"], path.parent)  # moves along
    write_manifest(path, rows)
    return path


def toy_positions(seed: int, index: int, *, size: int, num_frames: int) -> Floats:
    """Where the object of video `index` is: (T, 3) float32 of y, x, radius in pixels.

    The centre lies in [0, size) on the torus; y = 0 is the middle of the first row of pixels.
    """
    rng = np.random.default_rng((seed, index))
    return _draw_track(rng, CLASSES[index % 8], size, num_frames)


def render_toy_video(
    seed: int, index: int, *, size: int, num_frames: int, distractors: int = 1
) -> tuple[NDArray[np.uint8], Floats]:
    """Draw video `index`: frames (T, size, size, 3) uint8 and positions as `toy_positions`."""
    rng = np.random.default_rng((seed, index))
    positions = _draw_track(rng, CLASSES[index % 8], size, num_frames)
    moving = _draw_object(rng, float(positions[0, 2]))
    flicker_period, flicker_phase = rng.uniform(20, 60), rng.uniform()
    still = _draw_background(rng, size)[None]  # (1, H, W, 3)
    for _ in range(distractors):
        distractor = _draw_object(rng, size * rng.uniform(*STILL_RADIUS))
        _paste(still, distractor, rng.uniform(0, size, (1, 2)))

    frames = np.repeat(still, num_frames, axis=0)  # (T, H, W, 3)
    _paste(frames, moving, positions[:, :2].astype(np.float64))
    turn = np.arange(num_frames) / flicker_period + flicker_phase
    gain = (1 + 0.05 * np.sin(2 * np.pi * turn)).astype(np.float32)
    frames *= 255 * gain[:, None, None, None]
    return np.clip(np.rint(frames), 0, 255).astype(np.uint8), positions


def read_positions(path: str | Path) -> dict[str, Floats]:
    """Read a positions.csv: video path as in the manifest -> (T, 3) float32 of y, x, radius.

    Units as in `toy_positions`. Raises ValueError if the file has other columns or a gap.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = ",".join(next(reader, []))
        if header != POSITION_HEADER:
            raise ValueError(f"header of {path} ({header}) must be {POSITION_HEADER}")
        for video, frame, y, x, radius in reader:
            track = rows.setdefault(video, [])
            if int(frame) != len(track):
                raise ValueError(f"frame ({frame}) of {video} in {path} must be {len(track)}")
            track.append((float(y), float(x), float(radius)))
    return {video: np.array(track, dtype=np.float32) for video, track in rows.items()}


def object_mask(
    positions: Floats, size: int, *, grid_time: int, grid_height: int, grid_width: int
) -> Floats:
    """Share of every token covered by the moving object's disc, over its area and its frames.

    `positions` (T, 3) holds y, x, radius in pixels of the uncropped frame of side `size`, for the
    frames of the clip in their order (index it with the clip's frame indices). Returns
    (grid_time, grid_height, grid_width) float32 in [0, 1]. Raises ValueError if the grid does not
    divide the clip.
    """
    if positions.ndim != 2 or positions.shape[1] != 3 or not len(positions):
        raise ValueError(f"shape of positions {positions.shape} must be (T, 3)")
    grid = {"time": grid_time, "height": grid_height, "width": grid_width}
    for (name, cells), length in zip(grid.items(), (len(positions), size, size), strict=True):
        if cells < 1 or length % cells:
            raise ValueError(f"grid_{name} ({cells}) must divide {length}")
    gaps = np.arange(size) - positions[:, :2, None] + size / 2  # (T, 2, size)
    gaps = gaps % size - size / 2  # signed, the shorter way round the torus
    covered = np.hypot(gaps[:, 0, :, None], gaps[:, 1, None, :]) <= positions[:, 2, None, None]
    area = size // grid_height, grid_width, size // grid_width
    shares = covered.reshape(grid_time, -1, grid_height, *area)  # (t, frames, h, y, w, x)
    return np.asarray(shares.mean(axis=(1, 3, 5)), dtype=np.float32)


def _draw_track(rng: np.random.Generator, name: str, size: int, num_frames: int) -> Floats:
    # Every class draws the same numbers in the same order; the name only turns the path.
    start = rng.uniform(0, size, 2)
    radius, speed = size * rng.uniform(*RADIUS), size * rng.uniform(*SPEED)
    angle = 2 * np.pi * CLASSES.index(name) / len(CLASSES)  # y points down: clockwise
    path = speed * np.arange(num_frames)[:, None] * np.array([np.sin(angle), np.cos(angle)])
    centres = np.round(start + path, 3) % size  # as exact as positions.csv
    return np.column_stack([centres, np.full(num_frames, round(radius, 3))]).astype(np.float32)


def _draw_background(rng: np.random.Generator, size: int) -> Floats:
    # Smooth colour noise: random grids of 2, 4 and 8 cells, interpolated round the torus.
    image = np.zeros((3, size, size))
    for cells, weight in ((2, 1.0), (4, 0.6), (8, 0.2)):
        at = np.arange(size) * cells / size
        left, share = at.astype(int), (1 - np.cos(np.pi * (at % 1))) / 2
        spread = np.zeros((size, cells))
        spread[np.arange(size), left] = 1 - share
        spread[np.arange(size), (left + 1) % cells] += share
        image += weight * (spread @ rng.uniform(-1, 1, (3, cells, cells)) @ spread.T)
    image = rng.uniform(0.35, 0.65, (3, 1, 1)) + 0.12 * image
    return np.clip(image, 0.05, 0.95).transpose(1, 2, 0).astype(np.float32)


def _draw_object(rng: np.random.Generator, radius: float) -> Floats:
    # A patch (n, n, 4) of colour times coverage, and coverage; drawn 4x finer, then averaged.
    (corners, inner), turn = _SHAPES[rng.integers(len(_SHAPES))], rng.uniform(0, 2 * np.pi)
    # Two shades of a colour: an object's inside can be guessed from a part of it, so that what is
    # left to learn for a model that fills in hidden parts is where the object is and goes.
    bright = rng.uniform(0.15, 1, 3)
    dark = 0.8 * bright
    mosaic = rng.permutation(16).reshape(4, 4) < 8  # not periodic: motion stays unambiguous
    half, fine = math.ceil(radius) + 1, 4
    axis = ((np.arange((2 * half + 1) * fine) + 0.5) / fine - half - 0.5) / radius
    y, x, sin, cos = axis[:, None], axis[None, :], np.sin(turn), np.cos(turn)
    u, v = x * cos + y * sin, y * cos - x * sin
    wedge = np.pi / corners
    angle = np.abs((np.arctan2(v, u) + wedge) % (2 * wedge) - wedge)  # from the nearest corner
    edge = inner * np.sin(wedge) / (np.sin(angle) + inner * np.sin(wedge - angle))
    row, column = (np.clip((2 + 2 * w).astype(int), 0, 3) for w in (v, u))
    colour = np.where(mosaic[row, column][..., None], bright, dark)
    patch = np.concatenate([colour, np.ones_like(colour[..., :1])], axis=2)
    patch *= (np.hypot(u, v) <= edge)[..., None]
    n = 2 * half + 1
    return np.asarray(patch.reshape(n, fine, n, fine, 4).mean(axis=(1, 3)), dtype=np.float32)


def _paste(frames: Floats, patch: Floats, centres: NDArray[np.float64]) -> None:
    # Draw the patch into (T, H, W, 3) in place, centred at (T, 2) between pixels, round the torus.
    size, n = frames.shape[1], len(patch)
    whole = np.floor(centres).astype(int)
    fy, fx = np.moveaxis((centres - whole).astype(np.float32), 1, 0)[:, :, None, None, None]
    tall = np.pad(patch, ((1, 1), (0, 0), (0, 0)))
    moved = (1 - fy) * tall[1:] + fy * tall[:-1]  # (T, n + 1, n, 4)
    wide = np.pad(moved, ((0, 0), (0, 0), (1, 1), (0, 0)))
    moved = (1 - fx) * wide[:, :, 1:] + fx * wide[:, :, :-1]  # (T, n + 1, n + 1, 4)
    reach = np.arange(n + 1) - n // 2
    rows, columns = ((whole[:, axis, None] + reach) % size for axis in (0, 1))
    place = np.arange(len(frames))[:, None, None], rows[:, :, None], columns[:, None, :]
    frames[place] = frames[place] * (1 - moved[..., 3:]) + moved[..., :3]


def _encode(path: Path, frames: NDArray[np.uint8], fps: int) -> None:
    codec, options = _ENCODERS[path.suffix[1:]]
    temporary, exact = str(path.with_name(f".{path.name}.tmp")), {"fflags": "bitexact"}
    with av.open(temporary, "w", format=path.suffix[1:], container_options=exact) as container:
        stream = container.add_stream(codec, rate=fps, options=options)
        assert isinstance(stream, VideoStream)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.gop_size = KEYFRAME_INTERVAL
        stream.thread_count = 1
        for number, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    os.replace(temporary, path)


def _video_path(index: int, formats: Sequence[str]) -> str:
    # A format per round of 8: every class gets the same ones, as codecs show in single frames.
    name = CLASSES[index % 8]
    return f"videos/{name}/{name}_{index:05d}.{formats[index // 8 % len(formats)]}"


def _differences(stored: Path, described: dict[str, Any]) -> str:
    """In which settings the set of a toy.json differs; nothing if in none."""
    try:
        found = json.loads(stored.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "without a readable toy.json"
    return ", ".join(
        f"{name} ({found.get(name)}, not {value})"
        for name, value in described.items()
        if found.get(name) != value
    )


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
