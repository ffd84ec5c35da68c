"""Lists of videos as rows of text, whatever their separator, with or without a header.

Reading is strict: a text that is no list of videos must not become one, nor a separator or label
that was not understood become part of a path. File names are bytes: those that are not UTF-8 are
kept as Python keeps them in paths ("surrogateescape").
"""

import csv
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hpm_video.runtime.files import printable

# What a file of a list without header, or of a folder of videos, must end in to be taken for one
_SUFFIX = (
    r"\.(?:3g2|3gp|asf|avi|divx|f4v|flv|gif|h264|hevc|m2ts|m2v|m4v|mjpeg|mjpg|mkv|mov|mp4|mpe|mpeg"
    r"|mpg|mts|mxf|ogg|ogm|ogv|qt|rm|rmvb|ts|vob|webm|wmv|y4m)"
)
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)

_ALIASES = {
    **dict.fromkeys(("video", "video_path", "file", "filename", "filepath"), "path"),
    **dict.fromkeys(("class", "class_name", "target"), "label"),
    **dict.fromkeys(("frames", "total_frames"), "num_frames"),
}
_HEADERLESS = {1: ("path",), 2: ("path", "label"), 3: ("path", "num_frames", "label")}
# The path may hold spaces: it ends where a video's name does. `a b.mp4 120 3` -> a b.mp4, 120, 3
_SPACED = re.compile(rf"(.*{_SUFFIX})(?:(?:\s+(\d+))?\s+(\S+))?", re.IGNORECASE)
_VIDEO_NAME = re.compile(rf".+{_SUFFIX}", re.IGNORECASE | re.DOTALL)
_NAMES_A_VIDEO = re.compile(rf"{_SUFFIX}(?![^\s,;\"'])", re.IGNORECASE)


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) for every row of a list of any kind.

    Every row has a `path`; a list without header has at most `label` and `num_frames` besides, and
    its paths end like a video's name. Empty lines are left out, and so are comments (lines that
    begin with "# ", or with "#" and name no video) where there is no header above them. Rows are
    neither filtered by status nor interpreted.

    Raises FileNotFoundError: the list does not exist; ValueError: it is no list, or a row is
    malformed; says which file and line.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a list of videos")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (expected a list of videos)")
    try:
        # Line ends as they are: names may hold any
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            numbered = enumerate(file, start=1)
            content = ((n, line) for n, line in numbered if line.strip() and not _is_comment(line))
            start, first = next(content, (1, ""))
            if "\0" in first:
                raise ValueError(f"{path}:{start}: must be UTF-8 text")
            delimiter, header = _detect(f"{path}:{start}", first.strip())
            if header is not None:
                for number, fields in _split_lines(path, start + 1, file, delimiter):
                    if len(fields) != len(header):
                        expected = f"expected {len(header)}, as in the header"
                        raise ValueError(f"{path}:{number}: {len(fields)} columns, {expected}")
                    yield number, dict(zip(header, fields, strict=True))
            else:
                lines = itertools.chain([first], file)
                kept = ("\n" if _is_comment(line) else line for line in lines)
                for number, fields in _split_lines(path, start, kept, delimiter):
                    yield number, _headerless_row(f"{path}:{number}", fields)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error


def read_videos(path: str | Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file:line", row) for every row of a list, bad ones too; see `read_rows`.

    Raises what `read_rows` does, and ValueError for a list without videos or an empty path.
    """
    where = ""
    for line, row in read_rows(path):
        where = f"{path}:{line}"
        if not row["path"].strip():
            raise ValueError(f"{where}: the path is empty")
        yield where, row
    if not where:
        raise ValueError(f"{path} lists no videos")


def is_video_name(name: str) -> bool:
    """Whether a file is named like a video."""
    return _VIDEO_NAME.fullmatch(os.path.basename(name)) is not None


def shown(text: str) -> str:
    """A text from a file as part of a message: on one line, and not too long."""
    text = printable(text)
    return text if len(text) <= 160 else f"{text[:157]}..."


def first_few(names: Sequence[str], most: int) -> str:
    """So many of the names as part of a message."""
    return ", ".join(map(shown, names[:most])) + (", ..." if len(names) > most else "")


def _is_comment(line: str) -> bool:
    # File names may begin with #, too
    text = line.strip()
    return text[:1] == "#" and (text[1:2] in ("", " ") or not _NAMES_A_VIDEO.search(text))


def _detect(where: str, first: str) -> tuple[str, list[str] | None]:
    """Tell from a list's first line its separator and, where it is one, the header's columns."""
    for delimiter in ("\t", ","):
        fields = _fields(first, delimiter)
        header = _column_names(fields)
        # A header of one column is a CSV's: paths below may be quoted
        if "path" in header and (len(header) > 1 or delimiter == ","):
            for column, count in Counter(header).items():
                if count > 1:
                    raise ValueError(f"{where}: column {shown(column)} must be there once")
            return delimiter, header
        if "label" in header and len(header) > 1:
            raise ValueError(f"{where}: the header ({shown(first)}) must have a column path")
        # A path may hold a comma itself: what precedes the first one must be a video's name, and
        # what follows the last one must not
        is_row = len(fields) > 1 and is_video_name(fields[0].strip())
        if is_row and not is_video_name(fields[-1].strip()):
            return delimiter, None
    header = _column_names(first.split())
    # A path with spaces may hold such words too: only a line made of nothing else is a header
    return " ", header if tuple(header) in _HEADERLESS.values() else None


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # longer than any row is
        return []


def _column_names(fields: list[str]) -> list[str]:
    """Return the fields as names of columns, common aliases resolved."""
    columns = [field.strip().lower() for field in fields]
    given = set(columns)
    return [_ALIASES.get(c, c) if _ALIASES.get(c) not in given else c for c in columns]


def _split_lines(
    path: Path, start: int, lines: Iterable[str], delimiter: str
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of every row; ``lines`` begin at number ``start``."""
    if delimiter == " ":
        for number, line in enumerate(map(str.strip, lines), start):
            if match := _SPACED.fullmatch(line):
                yield number, [field for field in match.groups() if field is not None]
            elif line:
                raise ValueError(
                    f"{path}:{number}: row ({shown(line)}) must be a video, perhaps its number of "
                    "frames, perhaps its label, between spaces, commas or tabs; videos that do not "
                    "end in .mp4, .webm, .avi or the like, and labels with spaces, need a CSV with "
                    "the header path,label"
                )
        return
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield reader.line_num + start - 1, fields
    except csv.Error as error:
        raise ValueError(f"{path}: malformed CSV: {error}") from error


def _headerless_row(where: str, fields: Sequence[str]) -> dict[str, str]:
    """A row of a list without header, refused where it cannot be meant."""
    columns = _HEADERLESS.get(len(fields))
    if columns is None:
        expected = "1 to 3: path, or path label, or path num_frames label"
        raise ValueError(f"{where}: {len(fields)} columns, expected {expected}")
    row = dict(zip(columns, map(str.strip, fields), strict=True))
    if not is_video_name(row["path"]):
        raise ValueError(
            f"{where}: path ({shown(row['path'])}) must end in .mp4, .webm, .avi or the like; "
            "lists of other names need a CSV with the header path,label"
        )
    if is_no_label(row.get("label", "")):
        raise ValueError(f"{where}: label ({row['label']}) must be a whole number or a class name")
    return row


def is_no_label(text: str) -> bool:
    """Whether a text is a number that cannot be meant as a class, such as 1.5."""
    return NUMBER.fullmatch(text) is not None and INTEGER.fullmatch(text) is None
