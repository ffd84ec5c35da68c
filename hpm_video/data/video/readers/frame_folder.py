"""Folders of numbered images as videos: which files are frames, and the frame rate.

Only names are examined. The last number in a name gives the order; the text before and after it
must be the same for all frames. Names with a pattern of their own are strays and skipped, as is
optical flow beside the frames (`flow_x_00001.jpg`).
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from hpm_video.data.video.limits import MOST_PACKETS
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.readers.headers import is_animation
from hpm_video.runtime.files import printable
from hpm_video.runtime.reading import read_text

FPS_FILE = "fps.txt"  # holds the frame rate, in the folder of frames or above it
IMAGE_SUFFIX = r"\.(?:jpe?g|png|webp|bmp)"
_IMAGE_NAME = re.compile(rf".+{IMAGE_SUFFIX}", re.IGNORECASE | re.DOTALL)
_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)", re.ASCII | re.DOTALL)  # for names without suffix
_FLOW = ("flow_", "tvl1_")  # prefixes of optical flow
_LEVELS_ABOVE = 3  # class, data set, and one more: folders searched for it
_MOST_FPS = 1000
_LARGEST = 2**63 - 1


def is_image_name(name: str) -> bool:
    """Whether a file name has an image ending."""
    return _IMAGE_NAME.fullmatch(os.path.basename(name)) is not None


def is_pictures(path: str) -> bool:
    """Whether a path is a folder or an image, instead of a video file."""
    return os.path.isdir(path) or (is_image_name(path) and not is_animation(path))


@dataclass(frozen=True)
class FrameFiles:
    """The files of a folder that are its frames, in order.

    pattern: the text before the number, the minimum number of digits, and the text after it, joined
    by "/"; "" if no pattern fits all names, which are then in ``names``.
    """

    numbers: npt.NDArray[np.int64]  # (num_frames,) ascending
    pattern: str
    names: tuple[str, ...] = ()
    num_strays: int = 0  # other images in the folder

    def __len__(self) -> int:
        return len(self.numbers)

    def name(self, index: int) -> str:
        """The name of a frame's file."""
        if not self.pattern:
            return self.names[index]
        before, digits, after = self.pattern.split("/")
        return f"{before}{str(self.numbers[index]).zfill(min(int(digits), 255))}{after}"


def frames_of(folder: str) -> FrameFiles:
    """The frames in a folder. Raises UnreadableError if there are none, or several kinds."""
    with os.scandir(folder) as entries:
        return frames_among(entry.name for entry in entries)


def frames_among(names: Iterable[str]) -> FrameFiles:
    """The frames among the names of files in a folder, see `frames_of`."""
    kinds: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    num_images = 0
    for name in names:
        if name.startswith(".") or not is_image_name(name):
            continue
        num_images += 1
        if num_images > MOST_PACKETS:
            raise UnreadableError(f"frames must be at most {MOST_PACKETS:,}: split the folder")
        match = _NUMBERED.fullmatch(os.path.splitext(name)[0])
        if match and not name.lower().startswith(_FLOW):
            before, digits, after = match.groups()
            kinds.setdefault((before, after), []).append((int(digits), digits, name))
    several = {kind: found for kind, found in kinds.items() if len(found) > 1} or kinds
    if not several:
        raise UnreadableError("is a folder, not a video: it holds no numbered images")
    if len(several) > 1:
        counted = ((*kind, len(found)) for kind, found in several.items())
        said = sorted(f"{before}#{after} ({count})" for before, after, count in counted)
        more = ", ..." if len(said) > 3 else ""
        raise UnreadableError(
            f"is a folder of images with several names: {printable(', '.join(said[:3]))}{more}: "
            "keep the frames of each video in a folder of its own"
        )
    found = sorted(next(iter(several.values())))
    for (number, _, name), (other, _, other_name) in pairwise(found):
        if number == other:
            raise UnreadableError(
                f"has two frames with number {number}: {printable(name)}, {printable(other_name)}"
            )
    return _frame_files(found, num_images - len(found))


def _frame_files(found: list[tuple[int, str, str]], num_strays: int) -> FrameFiles:
    """Make `FrameFiles` from (number, number as written, name) of each frame."""
    names = tuple(name for *_, name in found)
    if found[-1][0] > _LARGEST:
        return FrameFiles(np.arange(len(found)), "", names, num_strays)
    numbers = np.array([number for number, *_ in found], dtype=np.int64)
    width = min(len(digits) for _, digits, _ in found)
    stem, suffix = os.path.splitext(names[0])
    match = _NUMBERED.fullmatch(stem)
    assert match is not None
    files = FrameFiles(numbers, f"{match[1]}/{width}/{match[3]}{suffix}", (), num_strays)
    if any(files.name(index) != name for index, name in enumerate(names)):
        return FrameFiles(numbers, "", names, num_strays)
    return files


def num_missing(numbers: npt.NDArray[np.int64]) -> int:
    """How many numbers are missing from an ascending sequence with a constant step."""
    steps = np.diff(numbers)
    if not len(steps) or steps.min() == steps.max():
        return 0
    return int(numbers[-1] - numbers[0]) // int(np.gcd.reduce(steps)) + 1 - len(numbers)


def gaps(numbers: npt.NDArray[np.int64]) -> str:
    """A description of the numbers missing from an ascending sequence, or ""."""
    if not (missing := num_missing(numbers)):
        return ""
    steps = np.diff(numbers)
    first, last, after = (int(numbers[k]) for k in (0, -1, np.argmax(steps > np.gcd.reduce(steps))))
    return f"{missing:,} of the numbers from {first} to {last} are missing, the first after {after}"


def untimed(*, is_folder: bool) -> str:
    """The message for a video without frame times."""
    said = "has no frame times"
    return f"{said}, and no {FPS_FILE} in the folder or above it" if is_folder else said


def folder_fps(folder: str) -> float:
    """The frame rate of a folder of frames, from the nearest `FPS_FILE`; 0 if there is none.

    It is searched for in the folder and up to three folders above. Raises UnreadableError if it
    holds no number.
    """
    place = os.path.abspath(folder)
    for _ in range(1 + _LEVELS_ABOVE):
        file = os.path.join(place, FPS_FILE)
        try:
            text = read_text(file, encoding="utf-8-sig", most=100).strip()
            fps = float(Fraction(text))
        except FileNotFoundError:
            place = os.path.dirname(place)
            continue
        except (OSError, ValueError, ZeroDivisionError):
            fps = 0.0
        if not 0 < fps <= _MOST_FPS:
            raise UnreadableError(
                f"{printable(file)} must hold only the frames per second, such as 25 or "
                f"30000/1001, above 0 and at most {_MOST_FPS}"
            )
        return fps
    return 0.0
