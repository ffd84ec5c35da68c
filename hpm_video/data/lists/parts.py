"""Columns that make the rows of a list parts of videos, see `hpm_video.data.video.part`.

They are ``start_s,end_s``, in seconds from a video's first frame, or ``start_frame,end_frame``.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.rows import NUMBER, shown
from hpm_video.data.video.part import FRAME_COLUMNS, SECOND_COLUMNS, Part

_MOST = 1e9  # seconds or frames: larger values are mistakes
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", re.ASCII)


def part_columns(header: Iterable[str], where: str, faults: Faults) -> tuple[str, ...]:
    """The two part columns in a list's header; empty if its rows are whole videos."""
    named = set(header)
    pairs = [pair for pair in (SECOND_COLUMNS, FRAME_COLUMNS) if named >= set(pair)]
    if len(pairs) > 1:
        rule = "must have the columns start_s,end_s or start_frame,end_frame, not both pairs"
        faults.add("part columns", where, rule)
    return pairs[0] if len(pairs) == 1 else ()


def part_of(
    row: Mapping[str, str],
    columns: tuple[str, ...],
    where: str,
    faults: Faults,
    *,
    called: Sequence[str] = (),
) -> Part | None:
    """The part in a row's `part_columns`; None for a whole video, or with a fault.

    ``called``: the original names of the two columns in the list, if they differ.
    """
    texts = [row.get(name, "").strip() for name in columns]
    if not any(texts):
        return None
    kind = "an integer" if columns == FRAME_COLUMNS else "a number of seconds"
    bounds = []
    names = tuple(called) or columns
    for name, text in zip(names, texts, strict=True):
        number = float(text) if NUMBER.fullmatch(text) else -1.0
        is_whole = columns == SECOND_COLUMNS or number.is_integer()
        if 0 <= number <= _MOST and is_whole:
            bounds.append(number)
        else:
            rule = f"must be {kind} from 0 to {_MOST:,.0f}"
            faults.add(name, where, f"{name} ({shown(text)}) {rule}")
    if len(bounds) < 2:
        return None
    start, end = bounds
    if start >= end:
        (one, other), (first, last) = names, texts
        faults.add("part", where, f"{other} ({last}) must be above {one} ({first})")
        return None
    return Part(start, end, in_frames=columns == FRAME_COLUMNS)


def check_is_inside(part: Part, row: Mapping[str, str], where: str, faults: Faults) -> None:
    """Record a fault if a part begins after its video ends, by the row's other columns."""
    name = "num_frames" if part.in_frames else "duration_s"
    text = row.get(name, "").strip()
    if not NUMBER.fullmatch(text) or row.get("status", "").strip() in ("ok", "damaged"):
        return  # unknown, or measured: see `hpm-video data check`
    if 0 < float(text) <= part.start:
        column, start = next(iter(part.columns.items()))
        faults.add("outside", where, f"{column} ({start}) must be below {name} ({text})")


def seconds_of(text: str) -> float | None:
    """Convert a time (seconds, or hours:minutes:seconds) to seconds; None for other texts."""
    if NUMBER.fullmatch(text):
        return float(text)
    if (match := _CLOCK.fullmatch(text)) is None:
        return None
    hours, minutes, seconds = match.groups()
    return round(int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds), 9)
