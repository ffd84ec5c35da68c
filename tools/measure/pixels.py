"""Our pixels against those of VideoMAE's released code, step by step, on real videos.

    python tools/measure/pixels.py --source FOLDER [--videos 20] [--rounds 10]

Differences are in levels of 255, over all pixels of all pictures: the mean, and the largest. Test
views need OpenCV, which this project does not depend on: pip install --no-deps --target DIR
opencv-python-headless, and PYTHONPATH=DIR before the command. Without it they are left out.
"""

import argparse
import importlib
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from timm.data import auto_augment

from hpm_video.bench.report import Cell, Report, machine_facts, publish
from hpm_video.data.samples.augment import OPERATIONS
from hpm_video.data.video import crops
from hpm_video.data.video.frame_indices import dense_view_indices
from hpm_video.data.video.frames import VideoReadError, open_video

Frames = npt.NDArray[np.uint8]  # (T, H, W, 3)

_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")
_NUM_FRAMES = 4  # of a video, evenly from its first to its last
_STRENGTH = 0.7  # of RandAugment, as published on average
# What VideoMAE's code calls the operations of RandAugment, which are timm's
_PUBLISHED = {
    "auto_contrast": "AutoContrast", "equalize": "Equalize", "invert": "Invert", "rotate": "Rotate",
    "posterize": "PosterizeIncreasing", "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd", "colour": "ColorIncreasing", "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing", "sharpness": "SharpnessIncreasing", "shear_x": "ShearX",
    "shear_y": "ShearY", "move_x": "TranslateXRel", "move_y": "TranslateYRel",
}  # fmt: skip
_MOVES = ("rotate", "shear_x", "shear_y", "move_x", "move_y")
_BOTH_WAYS = (*_MOVES, "colour", "contrast", "brightness", "sharpness")


@dataclass
class Difference:
    """Between pictures, of levels from 0 to 255."""

    total: float = 0.0
    count: int = 0
    largest: float = 0.0

    def add(self, one: npt.ArrayLike, other: npt.ArrayLike) -> None:
        apart = np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32))
        self.total += float(apart.sum(dtype=np.float64))
        self.count += apart.size
        self.largest = max(self.largest, float(apart.max()))


class Differences:
    """By step: what differs from what."""

    def __init__(self) -> None:
        self._of: defaultdict[tuple[str, str, str], Difference] = defaultdict(Difference)

    def add(
        self, step: str, published: str, ours: str, one: npt.ArrayLike, other: npt.ArrayLike
    ) -> None:
        self._of[step, published, ours].add(one, other)

    def rows(self) -> list[dict[str, Cell]]:
        return [
            {
                "step": step,
                "published": published,
                "ours": ours,
                "mean": found.total / found.count,
                "largest": found.largest,
            }
            for (step, published, ours), found in self._of.items()
        ]


def sizes_of(folder: Path, *, shorter: int) -> tuple[list[Path], list[tuple[int, int]]]:
    """The readable videos below a folder with a short side above ``shorter``, and the height and
    width of each."""
    files, sizes = [], []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _ENDINGS:
            continue
        try:
            video = open_video(path, "pyav")
            height, width = video.read([0, video.num_frames - 1]).shape[1:3]
        except VideoReadError:
            continue
        if min(height, width) > shorter:
            files.append(path)
            sizes.append((height, width))
    return files, sizes


def is_rounded_up(height: int, width: int, size: int) -> bool:
    """Whether the longer side of test views is a pixel longer than the published one."""
    long, short = max(height, width), min(height, width)
    return round(long * size / short) > long * size // short


def with_torch(frames: Frames, box: crops.Box, size: int) -> npt.NDArray[np.float32]:
    """A crop as published for fine-tuning: of floats, which are not rounded."""
    cut = torch.from_numpy(_cut(frames, box).copy()).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(cut, (size, size), mode="bilinear")
    result: npt.NDArray[np.float32] = small.permute(0, 2, 3, 1).numpy()
    return result


def with_pillow(frames: Frames, box: crops.Box, size: int) -> Frames:
    """A crop as published for pre-training."""
    pictures = [Image.fromarray(frame) for frame in _cut(frames, box)]
    small = [picture.resize((size, size), Image.Resampling.BILINEAR) for picture in pictures]
    return np.stack([np.asarray(picture) for picture in small])


def with_opencv(cv2: ModuleType, frames: Frames, size: int) -> Frames:
    """Frames at a short side of ``size`` as published for tests."""
    height, width = frames.shape[1:3]
    short = min(height, width)
    if short == size:
        return frames
    scaled = (width * size // short, height * size // short)
    return np.stack([cv2.resize(frame, scaled, interpolation=cv2.INTER_LINEAR) for frame in frames])


def _cut(frames: Frames, box: crops.Box) -> Frames:
    top, left, height, width = box
    return frames[:, top : top + height, left : left + width]


def compare_crops(found: Differences, frames: Frames, size: int, rng: np.random.Generator) -> None:
    """A crop of pre-training and one of fine-tuning."""
    height, width = frames.shape[1:3]
    box = crops.multi_scale_crop(height, width, rng=rng)
    mine = {a: crops.resize_crop(frames, box, size, antialias=a).numpy() for a in (True, False)}
    pillow = with_pillow(frames, box, size)
    found.add("crop, pre-training", "Pillow", "antialias=true", pillow, mine[True])
    found.add("crop, pre-training", "Pillow", "antialias=false", pillow, mine[False])
    box = crops.random_resized_crop(height, width, rng=rng)
    mine = {a: crops.resize_crop(frames, box, size, antialias=a).numpy() for a in (True, False)}
    floats = with_torch(frames, box, size)
    found.add("crop, fine-tuning", "PyTorch, floats", "antialias=false", floats, mine[False])
    found.add("crop, fine-tuning", "PyTorch, floats", "antialias=true", floats, mine[True])


def compare_views(found: Differences, cv2: ModuleType, frames: Frames, size: int) -> None:
    """The three crops of a test clip."""
    published = with_opencv(cv2, frames, size)
    down = torch.from_numpy(published)
    for antialias in (False, True):
        mine = crops.resize_short_side(frames, size, antialias=antialias)
        for one, other in zip(_views(down), _views(mine), strict=True):
            found.add("test views", "OpenCV", f"antialias={antialias}".lower(), one, other)
    if is_rounded_up(*frames.shape[1:3], size):
        whole = crops.Box(0, 0, *frames.shape[1:3])
        rounded = crops._resize(
            torch.from_numpy(frames), whole, _longer(*published.shape[1:3]), antialias=False
        )
        kept = crops.resize_short_side(frames, size, antialias=False)
        for one, other in zip(_views(kept), _views(rounded), strict=True):
            found.add("test width, where it differs", "rounded down", "nearest", one, other)


def _longer(height: int, width: int) -> tuple[int, int]:
    return (height + 1, width) if height > width else (height, width + 1)


def _views(frames: torch.Tensor) -> Iterator[Frames]:
    height, width = frames.shape[1:3]
    for box in crops.view_crops(height, width, num_crops=3):
        yield _cut(frames.numpy(), box)


def compare_operations(found: Differences, clip: Frames) -> None:
    """RandAugment, operation by operation: published frame by frame."""
    for name, theirs in _PUBLISHED.items():
        for sign in (1, -1) if name in _BOTH_WAYS else (1,):
            to_arguments = auto_augment.LEVEL_TO_ARG[theirs]
            auto_augment._randomly_negate = lambda value, sign=sign: sign * value
            arguments = to_arguments(10 * _STRENGTH, {}) if to_arguments else ()
            mine = OPERATIONS[name](torch.from_numpy(clip), _STRENGTH, sign).numpy()
            published = _as_published(clip, theirs, arguments, Image.Resampling.BICUBIC)
            found.add(name, "frame by frame", "of the clip", published, mine)
            if name in _MOVES:
                bilinear = _as_published(clip, theirs, arguments, Image.Resampling.BILINEAR)
                found.add("these five", "bicubic", "bilinear (before)", published, bilinear)


def _as_published(
    clip: Frames, name: str, arguments: tuple[float, ...], resample: Image.Resampling
) -> Frames:
    how = {"resample": resample, "fillcolor": (128, 128, 128)}
    operation = auto_augment.NAME_TO_OP[name]
    moved = [operation(Image.fromarray(frame), *arguments, **how) for frame in clip]
    return np.stack([np.asarray(picture) for picture in moved])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    text = "folder of videos, searched with its subfolders"
    parser.add_argument("--source", metavar="FOLDER", required=True, help=text)
    text = "number of videos, spread evenly over the folder (default 20)"
    parser.add_argument("--videos", type=int, default=20, help=text)
    parser.add_argument("--rounds", type=int, default=10, help="crops per video (default 10)")
    text = "side of crops in pixels (default 224)"
    parser.add_argument("--crop-size", type=int, default=224, help=text)
    text = "skip videos whose short side has at most so many pixels (default 112)"
    parser.add_argument("--shorter", type=int, default=112, help=text)
    asked = parser.parse_args()
    try:
        cv2: ModuleType | None = importlib.import_module("cv2")
        notes = []
    except ImportError:
        cv2 = None
        notes = ["OpenCV (cv2) is missing, so test views are left out: see --help"]
    torch.set_num_threads(1)
    files, sizes = sizes_of(Path(asked.source), shorter=asked.shorter)
    if not files:
        sys.exit(f"--source ({asked.source}) must hold readable videos with a short side above "
                 f"{asked.shorter} pixels: it has none")  # fmt: skip
    places = np.linspace(0, len(files) - 1, min(asked.videos, len(files))).round().astype(int)
    found, rng = Differences(), np.random.default_rng(0)
    for place in places:
        video = open_video(files[place], "pyav")
        times = np.linspace(0, video.num_frames - 1, _NUM_FRAMES).astype(int)
        frames = np.ascontiguousarray(video.read(times))
        for _ in range(asked.rounds):
            compare_crops(found, frames, asked.crop_size, rng)
        if cv2 is not None:
            compare_views(found, cv2, frames, asked.crop_size)
        (times,) = dense_view_indices(video.num_frames, clip_frames=16, stride=4, num_clips=1)
        (box,) = crops.view_crops(*frames.shape[1:3], num_crops=1)
        clip = crops.resize_crop(video.read(times), box, asked.crop_size)
        compare_operations(found, clip.numpy())
    up = [is_rounded_up(*size, asked.crop_size) for size in sizes]
    notes += [
        f"In {sum(up)} of {len(sizes)} videos, rounding to nearest makes the longer side one pixel "
        f"longer than rounding down ({len(set(sizes))} sizes)."
    ]
    publish(Report("pixels", machine_facts(torch.device("cpu")), vars(asked), found.rows(), notes))


if __name__ == "__main__":
    main()
