"""Lists of videos as rows of text, with any separator, with or without a header.

Parsing is strict: other text must not pass as a list, and a separator or label that was not
recognized must not become part of a path. File names are bytes: those that are not UTF-8 are
decoded with "surrogateescape", as Python does for paths.
"""

import codecs
import csv
import io
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.places import is_shards
from hpm_video.data.lists.shards import read_shards
from hpm_video.data.video.readers.frame_folder import IMAGE_SUFFIX, is_image_name
from hpm_video.data.video.tar_listing import VIDEO_SUFFIX
from hpm_video.runtime.files import printable, shell_path
from hpm_video.runtime.reading import open_regular

# Endings of videos, in lists without header and in folders
_SUFFIX = VIDEO_SUFFIX
# Lists may also contain images, as still videos
_LISTED = rf"(?:{_SUFFIX}|{IMAGE_SUFFIX})"
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?\d+", re.ASCII)

_JSON = re.compile(r"\s*[\[{]\s*([\[{\"]|$)")  # but not a name that begins with a bracket
_SEPARATOR = re.compile(r"sep=.", re.IGNORECASE)
_ALIASES = {
    **dict.fromkeys(("video", "video_path", "file", "filename", "filepath"), "path"),
    **dict.fromkeys(("class", "class_name", "target", "labels"), "label"),
    **dict.fromkeys(("frames", "total_frames"), "num_frames"),
}
_LABEL_NUMBERS = ("label_id", "class_id", "label_index", "class_index", "label_idx", "class_idx")
_AROUND = ' \t\r\n"\ufeff'  # around column names; lists joined by cat may have a BOM inside
_COLUMN_NAMES = {"path", "label", "num_frames", *_ALIASES, *_LABEL_NUMBERS}
_HEADERLESS = {1: ("path",), 2: ("path", "label"), 3: ("path", "num_frames", "label")}
# The path may contain spaces: it ends with a video's ending. `a b.mp4 120 3` -> a b.mp4, 120, 3
_SPACED = re.compile(rf"(.*{_LISTED})(?:(?:\s+(\d+))?\s+(\S+))?", re.IGNORECASE)
_SPACED_QUOTED = re.compile(r'("(?:[^"]|"")+")(?:(?:\s+("?\d+"?))?\s+("[^"]*"|\S+))?')
# A folder of frames, as in "rawframes" lists: only if both numbers follow
_FOLDER = re.compile(r"((?:[^\s\"]*/)?[^\s\"./]+/?)\s+(\d+)\s+(\d+)", re.ASCII)
_SMALL = 1 << 26  # bytes; in smaller lists, lines may have any length
_LONGEST_LINE = 1 << 20  # csv.reader accepts fields of up to 131,072 characters
_VIDEO_NAME = re.compile(rf".+{_SUFFIX}", re.IGNORECASE | re.DOTALL)
_NAMES_A_VIDEO = re.compile(rf"{_LISTED}(?![^\s,;\"'])", re.IGNORECASE)


def read_rows(
    path: str | Path, faults: Faults | None = None
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, {column: text}) for every row of a list of any format.

    Every row has a `path`. A list without header has at most `label` and `num_frames` besides, and
    its paths end like a video's name. Empty lines are skipped. So are comments if no header
    precedes them: lines that begin with "# ", or with "#" and name no video. Rows are neither
    filtered by status nor interpreted.

    A first column without a name is called "" (the row numbers of pandas and R). Other columns
    without a name, as written by Excel, are dropped from rows in which they are empty.

    Malformed rows are skipped and recorded in ``faults``. Without ``faults``, a ValueError after
    the last row reports them.

    Raises FileNotFoundError if the list does not exist, or ValueError if the file is not a list.
    """
    path = Path(path)
    noted = Faults() if faults is None else faults
    if path.is_dir():
        name = os.path.basename(os.path.abspath(path)) or "videos"
        raise ValueError(
            f"{path} is a folder, not a list of videos: hpm-video data list --folder "
            f"{shell_path(path)} -o {shell_path(f'{name}.csv')} makes one"
        )
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist (expected a list of videos)")
    try:
        with open_text(path) as file:
            is_small = os.fstat(file.fileno()).st_size <= _SMALL
            lines = iter(file) if is_small else _bounded(path, file)
            numbered = enumerate(lines, start=1)
            content = ((n, line) for n, line in numbered if line.strip() and not _is_comment(line))
            start, first = next(content, (1, ""))
            if "\0" in first:
                raise ValueError(
                    f"{path}:{start}: must be UTF-8 text; convert what Windows calls Unicode with "
                    "`iconv -f UTF-16LE -t UTF-8`"
                )
            if _JSON.match(first):
                rule = "must be CSV with the header path,label, or lines `path label`"
                raise ValueError(f"{path}:{start}: {rule}, but is JSON")
            if first.startswith("hpm-video index"):
                raise ValueError(f"{path} must be a list of videos, but is the index of one")
            delimiter, header = _detect(f"{path}:{start}", first.strip(" \r\n"))
            if header is not None:
                below = _split_lines(path, start + 1, lines, delimiter, noted)
                yield from _rows_below_header(path, below, header, noted)
            else:
                kept = (
                    "\n" if _is_comment(line) else line for line in itertools.chain([first], lines)
                )
                rows = _split_lines(path, start, kept, delimiter, noted)
                by_spaces = delimiter == " "
                yield from _headerless_rows(path, rows, noted, may_be_folders=by_spaces)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} begins like UTF-16 text, but cannot be decoded: {error.reason}"
        ) from error
    if faults is None:
        noted.check()


def read_videos(
    path: str | Path, faults: Faults | None = None
) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield ("file:line", row) for every row of a list, or for every video of tars (`read_shards`).

    Includes rows with a bad `status`. Raises as `read_rows` does; invalid paths are faults too.
    """
    noted = Faults() if faults is None else faults
    is_empty = True
    if is_shards(path):
        rows = read_shards(path, noted)
    else:
        rows = ((f"{path}:{line}", row) for line, row in read_rows(path, noted))
    for where, row in rows:
        if not (name := row["path"]).strip():
            noted.add("empty", where, "the path is empty")
        elif "\0" in name:
            noted.add("text", where, f"path ({shown(name)}) must not contain NUL characters")
        else:
            is_empty = False
            yield where, row
    if is_empty or faults is None:
        noted.check()
    if is_empty:
        raise ValueError(
            f"{path} lists no videos: write lines `path,label` into it, or list those of a folder: "
            "hpm-video data list --folder DIR -o LIST.csv"
        )


def open_text(path: str | Path) -> TextIO:
    """Open a list as UTF-8, or UTF-16 if it has that byte order mark.

    Line ends are not translated, as names may contain any. Raises OSError, or ValueError if it is
    not a regular file.
    """
    file = open_regular(path)
    if file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return io.TextIOWrapper(file, encoding="utf-16", newline="")
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _bounded(path: Path, file: TextIO) -> Iterator[str]:
    """The lines of a list, with limited length: a file without line ends must not fill memory."""
    for number in itertools.count(1):
        line = file.readline(_LONGEST_LINE + 1)
        if len(line) > _LONGEST_LINE:
            raise ValueError(
                f"{path}:{number}: a line must have at most {_LONGEST_LINE} characters"
            )
        if not line:
            return
        yield line


def is_video_name(name: str) -> bool:
    """Whether a file name has a video ending."""
    return _VIDEO_NAME.fullmatch(os.path.basename(name)) is not None


def _is_listed(name: str) -> bool:
    """Whether a name can appear in a list without header, where only endings identify paths."""
    return is_video_name(name) or is_image_name(name)


def shown(text: str) -> str:
    """A text from a file for a message: on one line and shortened."""
    text = printable(text)
    return text if len(text) <= 160 else f"{text[:157]}..."


def first_few(names: Sequence[str], most: int) -> str:
    """The first ``most`` of the names, for a message."""
    return ", ".join(map(shown, names[:most])) + (", ..." if len(names) > most else "")


def _is_comment(line: str) -> bool:
    if _SEPARATOR.fullmatch(line.strip()):  # a hint for Excel, which the rows do not need
        return True
    # File names may begin with # too
    text = line.strip()
    return text[:1] == "#" and (text[1:2] in ("", " ") or not _NAMES_A_VIDEO.search(text))


def _detect(where: str, first: str) -> tuple[str, list[str] | None]:
    """Detect a list's separator and, if its first line is a header, the columns."""
    for delimiter in ("\t", ",", ";"):
        fields = _fields(first, delimiter)
        header = _column_names(fields)
        # A header of one column means CSV: paths below may be quoted
        if "path" in header and (len(header) > 1 or delimiter == ","):
            for column, count in Counter(filter(None, header)).items():
                if count > 1:
                    raise ValueError(f"{where}: column {shown(column)} must occur only once")
            return delimiter, header
        if "label" in header and len(header) > 1:
            kinetics = "; convert Kinetics' lists with `hpm-video data list --kinetics DIR`"
            raise ValueError(
                f"{where}: the header ({shown(first)}) must have a column path"
                f"{kinetics if 'youtube_id' in header else ''}"
            )
        # A path may contain commas: the text before the first one must be a video's name, and the
        # text after the last one must not
        is_row = len(fields) > 1 and _is_listed(fields[0].strip())
        if is_row and not _is_listed(fields[-1].strip()):
            return delimiter, None
    header = _column_names(first.split())
    # A path with spaces may contain such words too: a header consists of nothing else
    return " ", header if tuple(header) in _HEADERLESS.values() else None


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([_tidy_quotes(line, delimiter)], delimiter=delimiter), [])
    except csv.Error:  # longer than any row
        return []


def _column_names(fields: list[str]) -> list[str]:
    """Return the fields as column names, with common aliases resolved; "" for unnamed columns."""
    columns = [field.strip(_AROUND).lower() for field in fields]
    given = set(columns)
    named = [_ALIASES.get(c, c) if _ALIASES.get(c) not in given else c for c in columns]
    if "label" not in named and (number := next((c for c in _LABEL_NUMBERS if c in named), None)):
        named[named.index(number)] = "label"
    return named


def _split_lines(
    path: Path, start: int, lines: Iterable[str], delimiter: str, faults: Faults
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of every row; ``lines`` begin at line number ``start``."""
    if delimiter == " ":
        why = ""  # for the first malformed line; the others are only counted
        for number, line in enumerate(map(str.strip, lines), start):
            match = _SPACED.fullmatch(line) or _SPACED_QUOTED.fullmatch(line)
            if match := match or _FOLDER.fullmatch(line):
                fields = [field for field in match.groups() if field is not None]
                yield number, list(map(_bare, fields)) if '"' in line else fields
            elif line:
                why = why or _no_row(line, path.parent)
                faults.add("row", f"{path}:{number}", why)
        return
    tidy = (_tidy_quotes(line, delimiter) if ' "' in line else line for line in lines)
    reader = csv.reader(tidy, delimiter=delimiter, strict=True)
    try:
        for fields in reader:
            if any(fields):
                yield reader.line_num + start - 1, fields
    except csv.Error as error:
        faults.add("csv", f"{path}:{reader.line_num + start - 1}", f"malformed CSV: {error}")


def _tidy_quotes(line: str, delimiter: str) -> str:
    """Remove blanks between a separator and a quote, which would make the quote part of the field.

    Inside a quoted field this changes nothing: a quote there is either doubled or ends the field.
    """
    return re.sub(rf'(^|{delimiter}) +(?="[^"\r\n{delimiter}])', r"\1", line)


def _bare(field: str) -> str:
    """A field without the surrounding quotes that pandas and the csv module may write."""
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"'
    return field[1:-1].replace('""', '"') if is_quoted else field


def _no_row(line: str, folder: Path) -> str:
    """The message for a malformed line of a list whose columns are separated by spaces."""
    first, *rest = line.split()
    if os.path.isdir(os.path.join(folder, first)):
        return (
            f"row ({shown(line)}) names a folder; write `folder num_frames label`, or a CSV with "
            "the header path,label"
        )
    if _is_listed(first) and len(rest) > 2 and all(map(str.isdecimal, rest)):
        return (
            f"row ({shown(line)}) must have one label; write several without spaces between them "
            "and set labels.separator; parts of videos need a CSV with the header "
            "path,label,start_s,end_s"
        )
    return (
        f"row ({shown(line)}) must be `path`, `path label` or `path num_frames label`, separated "
        "by spaces, commas or tabs; paths that do not end in .mp4, .webm, .avi or the like, "
        "and labels with spaces, need a CSV with the header path,label"
    )


def _rows_below_header(
    path: Path, lines: Iterable[tuple[int, list[str]]], header: Sequence[str], faults: Faults
) -> Iterator[tuple[int, dict[str, str]]]:
    names = [name or (f"column_{i}" if i > 1 else "") for i, name in enumerate(header, start=1)]
    unnamed = [name for name, given in zip(names, header, strict=True) if name and not given]
    width, place = len(names), names.index("path")
    for number, fields in lines:
        if width > 1 and "".join(fields[place : place + 1]).strip(_AROUND).lower() in _COLUMN_NAMES:
            again = _column_names(fields)
            if again == header:  # of another list, appended by cat
                continue
            if "path" in again and _COLUMN_NAMES.issuperset(again):
                rule = (
                    "must have the same columns as the first header; pass joined lists separately"
                )
                faults.add("header", f"{path}:{number}", f"header ({shown(str(fields))}) {rule}")
                continue
        if len(fields) != width and (any(fields[width:]) or len(fields) < width):
            rule = f"{len(fields)} columns, expected {width}, as in the header"
            faults.add("width", f"{path}:{number}", rule)
            continue
        row = dict(zip(names, fields, strict=False))
        for name in unnamed:
            if not row[name]:
                del row[name]
        yield number, row


def _headerless_rows(
    path: Path,
    lines: Iterable[tuple[int, list[str]]],
    faults: Faults,
    *,
    may_be_folders: bool,
) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows of a list without header. Rows of implausible content or of another width are faults."""
    width = 0  # width of all rows, from the first; empty fields beyond two are not columns
    for number, fields in lines:
        where = f"{path}:{number}"
        if not width:
            given = len(fields)
            width = given
            while width > 2 and not fields[width - 1].strip():
                width -= 1
            columns = _HEADERLESS.get(width, ())
            if not columns:
                expected = "1 to 3: path, or path label, or path num_frames label"
                faults.add("width", where, f"{given} columns, expected {expected}")
                return
        if len(fields) != width and (len(fields) < width or any(map(str.strip, fields[width:]))):
            rule = f"{len(fields)} columns, expected {width}, as in the first row"
            faults.add("width", where, rule)
            continue
        row = dict(zip(columns, map(str.strip, fields), strict=False))
        if not (_is_listed(row["path"]) or (may_be_folders and width == 3)):
            rule = (
                f"path ({shown(row['path'])}) must end in .mp4, .webm, .avi or the like; lists of "
                "other names need a CSV with the header path,label"
            )
            faults.add("name", where, rule)
        elif is_no_label(row.get("label", "")):
            rule = f"label ({row['label']}) must be a whole number or a class name"
            faults.add("label", where, rule)
        else:
            yield number, row


def is_no_label(text: str) -> bool:
    """Whether a text is a number that cannot be a class, such as 1.5."""
    return NUMBER.fullmatch(text) is not None and INTEGER.fullmatch(text) is None
