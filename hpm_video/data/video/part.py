"""A part of a video: its range, and its name.

The name is the file's plus a fragment as in URLs: ``a.mp4#t=12.5,15`` is displayed from 12.5 s to
just before 15 s, ``a.mp4#frame=300,375`` are frames 300 to 374. Everything that opens a video
accepts such names.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

IN_TAR = re.compile(r"\.tar/", re.IGNORECASE)  # precedes the name of a member

_CALLED = re.compile(r"(.+)#(t|frame)=([\d.e+-]+),([\d.e+-]+)", re.DOTALL)
_LIKE = re.compile(r"(.+)#(?:t|frame)=[^/]*", re.DOTALL)  # looks like the name of a part

SECOND_COLUMNS = ("start_s", "end_s")
FRAME_COLUMNS = ("start_frame", "end_frame")
PART_COLUMNS = (*SECOND_COLUMNS, *FRAME_COLUMNS)  # columns of lists


@dataclass(frozen=True)
class Part:
    """The frames of a video in [start, end), in seconds from its first frame or by number."""

    start: float
    end: float
    in_frames: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError for a range that no video can have."""
        if not 0 <= self.start < self.end < math.inf:
            raise ValueError(f"part ({self}) must have 0 <= start < end")
        if self.in_frames and (self.start % 1 or self.end % 1):
            raise ValueError(f"part ({self}) must have whole frame numbers")

    def __str__(self) -> str:
        """The suffix of the part's name after the file's."""
        return f"#{'frame' if self.in_frames else 't'}={_text(self.start)},{_text(self.end)}"

    @property
    def suffix(self) -> str:
        """The suffix for names of files about the part."""
        return str(self).replace("#", "_").replace("=", "").replace(",", "-")

    @property
    def columns(self) -> dict[str, str]:
        """The part as columns of a list."""
        names = FRAME_COLUMNS if self.in_frames else SECOND_COLUMNS
        return dict(zip(names, (_text(self.start), _text(self.end)), strict=True))


def split_part(path: str) -> tuple[str, Part | None]:
    """The file and the part that ``path`` names; the part is None for a whole file.

    Raises ValueError if the range is invalid, or a file itself is named like a part.
    """
    match = _CALLED.fullmatch(path) if "#" in path else None
    if match is None:
        like = _LIKE.fullmatch(path) if "#" in path else None
        if like and os.path.lexists(like[1]) and not os.path.lexists(path):
            raise ValueError(f"{path}: a part must end in #t=START,END or #frame=START,END")
        return path, None
    file, kind, start, end = match.groups()
    try:
        bounds = float(start), float(end)
    except ValueError:
        return path, None
    if os.path.lexists(path):
        if os.path.lexists(file):
            raise ValueError(f"{path} names a file and a part of {file}; rename the file")
        return path, None
    try:
        return file, Part(*bounds, in_frames=kind == "frame")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def file_of(path: str | Path) -> str:
    """The file of a video or part. Raises as `split_part` does."""
    return split_part(str(path))[0]


def stem_of(path: str | Path) -> str:
    """The stem for names of files about a video or part."""
    file, part = split_part(str(path))
    return Path(file).stem + (part.suffix if part else "")


def _text(number: float) -> str:
    return repr(float(number)).removesuffix(".0")
