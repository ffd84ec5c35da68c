"""Lists of videos as rows of text, whatever their separator, with or without a header."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

_ALIASES = {
    **dict.fromkeys(("video", "video_path", "file", "filename", "filepath"), "path"),
    **dict.fromkeys(("class", "class_name", "target"), "label"),
    **dict.fromkeys(("frames", "total_frames"), "num_frames"),
}
_HEADERLESS = {1: ("path",), 2: ("path", "label"), 3: ("path", "num_frames", "label")}
_EXTENSION = re.compile(r"\.(?!\d+$)\w{2,5}$")
_SPACED_INTEGERS = re.compile(r"(.*?\S)(?:\s+(\d+))?\s+(-?\d+)")
_SPACED_NAME = re.compile(r"(.*?\.(?!\d+\s)\w{2,5})(?:\s+(\d+))?\s+([^\s./]+)")


def read_rows(path: str | Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) for every row of a list of any kind.

    Every row has a `path`; a list without header has at most `label` and `num_frames` besides.
    Rows are neither filtered by status nor interpreted. Errors are those of `read_manifest`.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a list of videos")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (expected a list of videos)")
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            first = next((line for line in file if line.strip()), "").strip()
            file.seek(0)
            delimiter, header = _detect(path, first)
            for number, fields in _split_rows(file, delimiter, header):
                if header is None:
                    columns: Sequence[str] = _HEADERLESS.get(len(fields), ())
                    expected = "1 to 3: path, or path label, or path num_frames label"
                else:
                    columns, expected = header, f"{len(header)}, as in the header"
                if len(fields) != len(columns):
                    raise ValueError(f"{path}:{number}: {len(fields)} columns, expected {expected}")
                yield number, dict(zip(columns, fields, strict=True))
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
        except csv.Error as error:
            raise ValueError(f"{path}: malformed CSV: {error}") from error


def _detect(path: Path, first: str) -> tuple[str, list[str] | None]:
    """Tell from a list's first line its separator and, where it is one, the header's columns."""
    for delimiter in ("\t", ","):
        fields = next(csv.reader([first], delimiter=delimiter), [])
        header = _column_names(fields)
        # A header of one column is a CSV's: paths below may be quoted
        if "path" in header and (len(header) > 1 or delimiter == ","):
            return delimiter, header
        if "label" in header and len(header) > 1:
            raise ValueError(f"{path}: the header ({first}) must have a column path")
        # A path may hold a comma itself: what follows must look like a label, not like a file name
        is_label = len(fields) > 1 and (
            re.fullmatch(r"-?\d+", fields[-1].strip()) is not None
            or (_EXTENSION.search(fields[0]) is not None and not _EXTENSION.search(fields[-1]))
        )
        if is_label or (delimiter == "\t" and len(fields) > 1):
            return delimiter, None
    header = _column_names(first.split())
    # A path with spaces may hold such words too: only a line made of nothing else is a header
    return " ", header if header[:1] == ["path"] and {*header} <= {*_HEADERLESS[3]} else None


def _column_names(fields: list[str]) -> list[str]:
    """Return the fields as names of columns, common aliases resolved."""
    columns = [field.strip().lower() for field in fields]
    return [_ALIASES.get(c, c) if _ALIASES.get(c) not in columns else c for c in columns]


def _split_rows(
    file: TextIO, delimiter: str, header: list[str] | None
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of every row that is neither empty nor the header."""
    rows: Iterator[tuple[int, list[str]]]
    if delimiter == " ":
        lines = ((number, line.strip()) for number, line in enumerate(file, start=1))
        rows = ((n, _split_spaces(line, header)) for n, line in lines if line)
    else:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        rows = ((reader.line_num, fields) for fields in reader if any(fields))
    if header is not None:
        next(rows)
        yield from rows
    else:  # in such lists spaces beside the separator mean nothing
        yield from ((number, [field.strip() for field in fields]) for number, fields in rows)


def _split_spaces(line: str, header: list[str] | None) -> list[str]:
    """Split from the right, as the path may hold spaces: `a b.mp4 120 3` -> a b.mp4, 120, 3."""
    if header is not None:
        return line.rsplit(None, len(header) - 1)
    match = _SPACED_INTEGERS.fullmatch(line) or _SPACED_NAME.fullmatch(line)
    return [field for field in match.groups() if field is not None] if match else [line]
