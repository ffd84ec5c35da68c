"""Lists of videos: reading every usual kind of list, and writing our own.

A `Manifest` keeps its rows in Arrow and NumPy buffers, never as Python objects. Data-loading
workers are forked, and merely looking at a Python object writes its reference count: a list of two
million strings would slowly be copied, page by page, into every worker.
"""

import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hpm_video.data.lists import read_rows

COLUMNS = ("path", "label", "num_frames", "fps", "width", "height", "status")
_INTEGER = re.compile(r"[+-]?\d+")


class Manifest:
    """An immutable list of videos with labels; made by `read_manifest`.

    Attributes:
        classes: class names in the order of their labels, or None where no names are known.
        labels: (number of videos,) int64, -1 where a video has none.
    """

    def __init__(
        self,
        names: Sequence[pa.StringArray],
        roots: Sequence[str],
        labels: npt.NDArray[np.int64],
        frame_counts: npt.NDArray[np.int64],
        classes: tuple[str, ...] | None,
    ) -> None:
        """Join one block of `names` per list; block k is relative to `roots[k]`."""
        self._names = tuple(names)
        self._roots = tuple(roots)
        self._ends = np.cumsum([len(block) for block in names])
        self._frame_counts = frame_counts
        self.labels = labels
        self.classes = classes
        assert len(labels) == len(frame_counts) == len(self)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def _locate(self, index: int) -> tuple[int, int]:
        assert 0 <= index < len(self), f"video {index} of {len(self)}"
        block = int(np.searchsorted(self._ends, index, side="right"))
        return block, index - (int(self._ends[block - 1]) if block else 0)

    def name(self, index: int) -> str:
        """Return the path as written in the list."""
        block, row = self._locate(index)
        return str(self._names[block][row])

    def path(self, index: int) -> str:
        """Return the path to open: absolute, or joined to the root of the list it came from."""
        block, row = self._locate(index)
        return os.path.join(self._roots[block], str(self._names[block][row]))

    def label(self, index: int) -> int:
        """Return the class index, -1 where the video has none."""
        return int(self.labels[index])

    def num_frames(self, index: int) -> int:
        """Return the number of frames the list claims, 0 where it says nothing."""
        return int(self._frame_counts[index])

    @property
    def num_classes(self) -> int:
        """The number of class names, else the largest label + 1 (0 without any label)."""
        return len(self.classes) if self.classes is not None else int(self.labels.max()) + 1


def read_manifest(
    paths: str | Path | Sequence[str | Path],
    *,
    root: str | None = None,
    classes: Sequence[str] | None = None,
    labels: bool = True,
) -> Manifest:
    """Read one list of videos, or several joined in the order given.

    A list is our CSV (see `COLUMNS`; rows whose status is neither empty nor `ok` are left out), or
    lines `path`, `path label` or `path num_frames label`, separated by spaces, a comma or a tab,
    with or without a header. Labels are integers (-1 or nothing: no label) or class names.

    Names become integers by `classes`, else by the `classes.txt` beside the list (one name a line),
    else by their sorted order. That last order depends on which names occur, so give a validation
    list the `classes` of its training list.

    Args:
        paths: the list or lists.
        root: folder where relative paths start; by default each list's own folder.
        classes: class names in the order of their labels.
        labels: False ignores every label, as pre-training does: lists with different classes
            can then be joined.

    Raises:
        FileNotFoundError: a list does not exist.
        ValueError: a list is a folder or without videos, a row is malformed, or a label is not
            among the classes; says which file and line.
    """
    files = [Path(p) for p in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise ValueError("data.manifest ([]) must name at least one list of videos")

    names: list[pa.StringArray] = []
    frame_counts, codes = array("q"), array("q")
    vocabulary: dict[str, tuple[int, str]] = {}  # label text -> its code, where it first stood
    for file in files:
        builder = pa.lib.StringBuilder()
        for line, row in read_rows(file):
            where = f"{file}:{line}"
            if row.get("status", "").strip() not in ("", "ok"):
                continue
            if not row["path"].strip():
                raise ValueError(f"{where}: the path is empty")
            builder.append(row["path"])
            frame_counts.append(_frame_count(row.get("num_frames", "").strip(), where))
            text = row.get("label", "").strip() if labels else ""
            codes.append(vocabulary.setdefault(text, (len(vocabulary), where))[0])
        names.append(builder.finish())
        if not len(names[-1]):
            raise ValueError(f"{file} lists no videos (or none with status ok)")

    beside = _classes_beside(files) if labels else None
    given = (tuple(classes), "the classes given") if labels and classes is not None else None
    values, class_names = _label_values(vocabulary, given or beside, beside)
    return Manifest(
        names,
        [os.path.abspath(root if root is not None else file.parent) for file in files],
        values[np.frombuffer(codes, dtype=np.int64)],
        np.frombuffer(frame_counts, dtype=np.int64),
        class_names,
    )


def write_manifest(
    path: str | Path,
    rows: Iterable[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
) -> None:
    """Write our CSV of `rows`: `path` first, then the other `COLUMNS` that occur, then any others.

    With `columns` these come first, in that order. The file appears at once or not at all. A value
    of None counts as absent.

    Raises:
        ValueError: a text is not valid Unicode (a file name that is not UTF-8).
    """
    path = Path(path)
    rows = list(rows)
    seen = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    assert all(row.get("path") for row in rows), "every row needs a path"
    known = [c for c in COLUMNS if c in seen]
    columns = list(dict.fromkeys([*(columns or ("path",)), *known, *seen]))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.write(",".join(map(_quoted, columns)) + "\n")
            for row in rows:
                file.write(",".join(_quoted(row.get(c)) for c in columns) + "\n")
        os.replace(temporary, path)
    except UnicodeEncodeError as error:
        raise ValueError(f"{path}: {error.object!r} is not valid UTF-8") from error
    finally:
        temporary.unlink(missing_ok=True)


def _quoted(value: object) -> str:
    # Not csv.writer: with "\n" as line end it leaves "\r" unquoted, which its reader then splits at
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if re.search(r'[,"\r\n]', text) else text


def _frame_count(text: str, where: str) -> int:
    if text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"{where}: num_frames ({text}) must be an integer of at least 0")
    return int(text or 0)


def _classes_beside(files: Sequence[Path]) -> tuple[tuple[str, ...], str] | None:
    """Class names of the classes.txt beside the lists, and that file."""
    found: tuple[tuple[str, ...], str] | None = None
    for folder in dict.fromkeys(file.parent for file in files):
        file = folder / "classes.txt"
        if not file.is_file():
            continue
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        names = tuple(line.strip() for line in lines if line.strip())
        if len(set(names)) < len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"{file}: the class {repeated!r} is there more than once")
        if found is not None and found[0] != names:
            raise ValueError(f"{file} and {found[1]} differ: joined lists must share their classes")
        found = names, str(file)
    return found


def _label_values(
    vocabulary: Mapping[str, tuple[int, str]],
    known: tuple[tuple[str, ...], str] | None,
    beside: tuple[tuple[str, ...], str] | None,
) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    """Return the label of every code of the vocabulary, and the class names.

    ``known``: the class names to use, and where they are from; ``beside``: those by the lists.
    """
    values = np.full(len(vocabulary), -1, dtype=np.int64)
    given = {text: entry for text, entry in vocabulary.items() if text}
    integers = [text for text in given if _INTEGER.fullmatch(text)]
    if 0 < len(integers) < len(given) and known is None:
        name = next(text for text in given if text not in integers)
        raise ValueError(
            f"{given[integers[0]][1]}: label ({integers[0]}) is a number and {name!r} "
            f"({given[name][1]}) a name: labels must be all of one kind"
        )
    if len(integers) == len(given):
        if known is not None and beside is not None and known[0] != beside[0]:
            raise ValueError(
                f"{beside[1]} differs from {known[1]} ({', '.join(known[0][:3])}, ...): "
                "must be the same, as the labels are numbers"
            )
        for text, (code, where) in given.items():
            values[code] = int(text)
            if values[code] < -1:
                raise ValueError(f"{where}: label ({text}) must be at least 0, or -1 for none")
            if known is not None and values[code] >= len(known[0]):
                raise ValueError(
                    f"{where}: label ({text}) must be below the number of classes "
                    f"({len(known[0])}, {known[1]})"
                )
        return values, known[0] if known is not None else None

    names, source = known if known is not None else (tuple(sorted(given)), "")
    index = {name: i for i, name in enumerate(names)}
    for text, (code, where) in given.items():
        if text not in index:
            raise ValueError(f"{where}: label ({text}) must be one of {source}")
        values[code] = index[text]
    return values, names
