"""The columns of a list beyond path, label and number of frames.

One line reports all columns that nothing reads. Columns that change the meaning of rows (parts of
videos under other names than ours, splits, several labels) are refused, as ignoring them would
change the meaning of every row.
"""

import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.rows import INTEGER, first_few, shown
from hpm_video.data.video.part import FRAME_COLUMNS, PART_COLUMNS, SECOND_COLUMNS

COLUMNS = ("path", "label", *PART_COLUMNS, "num_frames", "fps", "width", "height", "status")
# Also written by us, for people only; "" holds the row numbers of pandas and R
_ALSO_OURS = ("num_bytes", "duration_s", "reason", "damaged", "source", "features", "")

# start, end_s, time_start, segment_start, t_start, startTime (in lower case), stop_frame, ...
_PART = re.compile(
    r"(t|time|frame|seg|segment|clip|subclip|action|event|video|temporal|trim|window|interval)?"
    r"((start|begin|end|stop)(ing)?|onset|offset|from|to|until)"
    r"(at|t|time|timestamp|frame|f|point|pos|position)?(s|sec|secs|seconds?|ms|idx|index)?"
    r"|t[01]"
)
_DIGIT = re.compile(r"\d")  # all times and frame numbers have one
_SPLIT = re.compile(r"(data|dataset|video)?split(name|type)?|subset|set|partition")
_IS_OF_SPLIT = re.compile(r"is(train|val|test)(ing|idation)?")  # a yes/no column
_NO = ("", "0", "0.0", "false", "f", "no", "n")
_NUMBERED_LABEL = re.compile(r"(label|class|target|action|tag)s?(name|id)?\d+")
SPLITS = {  # common spellings
    "train": ("train", "training", "trn", "tr"),
    "val": ("val", "valid", "validation", "validate", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tst", "te", "holdout"),
}


def is_ours(column: str) -> bool:
    """Whether a column has a predefined meaning, and so cannot be a class."""
    return column in COLUMNS or column in _ALSO_OURS


class Columns:
    """The columns of one list, recorded row by row; unsupported ones become faults."""

    def __init__(self, file: Path, root: str, header: Mapping[str, str]) -> None:
        """``root``: base folder of relative paths; ``header``: a row of the list."""
        self._file, self._root = file, root
        words = {name: re.sub(r"[\W_]+", "", name) for name in header}
        plain = {name: word for name, word in words.items() if name not in COLUMNS}
        is_told = any(set(pair) <= header.keys() for pair in (SECOND_COLUMNS, FRAME_COLUMNS))
        self._parts = [n for n, word in words.items() if _PART.fullmatch(word) and not is_told]
        self._splits = [name for name, word in plain.items() if _SPLIT.fullmatch(word)]
        self._yes = ""  # the split of rows with a yes in the first split column
        if not self._splits:
            found = {name: _IS_OF_SPLIT.fullmatch(word) for name, word in plain.items()}
            self._splits = [name for name, match in found.items() if match]
            self._yes = next((match[1] for match in found.values() if match), "")
        self._labels = [name for name, word in plain.items() if _NUMBERED_LABEL.fullmatch(word)]
        self._values: Counter[str] = Counter()  # of the first split column
        self._first: tuple[str, dict[str, str]] | None = None  # first row that describes a part
        self._has_labels = False
        self.is_watched = bool(self._parts or self._splits or self._labels)
        self._unused = [n for n in plain if n not in (*_ALSO_OURS, *self._splits)]
        # The usual third column of a list without header, which may be something else
        self.has_bare_counts = tuple(header) == ("path", "num_frames", "label")
        self._used = [name for name in header if name in COLUMNS]

    def note(self, row: Mapping[str, str], where: str) -> None:
        """Record a row; needed only if ``is_watched``."""
        if self._first is None and any(_DIGIT.search(row.get(name, "")) for name in self._parts):
            self._first = where, {name: row.get(name, "").strip() for name in self._parts}
        if (split := self.split_of(row)) is not None:
            self._values[split] += 1
        if sum(bool(row.get(name, "").strip()) for name in ("label", *self._labels)) > 1:
            self._has_labels = True

    def split_of(self, row: Mapping[str, str]) -> str | None:
        """The split of a row, from the split column; None if there is no such column."""
        if not self._splits:
            return None
        value = row[self._splits[0]].strip()
        if self._yes:
            return f"not {self._yes}" if value.lower() in _NO else self._yes
        return value

    def choose(self, split: str) -> set[str]:
        """The values of the split column that mean ``split``.

        Raises ValueError if there is no such column or no such value.
        """
        if not self._splits:
            raise ValueError(
                f"--split ({split}) needs a list with a column split: {self._file} has the "
                f"columns {', '.join(map(shown, (*self._used, *self._unused)))}"
            )
        plain = split.strip().lower()
        usual = next((words for words in SPLITS.values() if plain in words), ())
        for word in (plain, *usual):
            if found := {value for value in self._values if value.lower() == word}:
                return found
        raise ValueError(
            f"--split ({split}) must be a value of column {self._splits[0]} in {self._file}: "
            f"{self._counted()}"
        )

    def find_faults(self, faults: Faults, *, chosen: bool = False, labels: bool = True) -> None:
        """Record columns whose meaning is unsupported as faults.

        ``chosen``: rows of one split were selected. ``labels``: labels are read.
        """
        if self._first is not None:
            where, part = self._first
            given = ", ".join(f"{shown(name)} ({shown(text)})" for name, text in part.items())
            names = " ".join(map(shlex.quote, part)) if len(part) == 2 else "START END"
            file = shlex.quote(str(self._file))
            output = shlex.quote(str(self._file.with_name(f"{self._file.stem}_parts.csv")))
            faults.add(
                "parts",
                where,
                f"{given}: parts of videos must be in columns start_s,end_s or "
                f"start_frame,end_frame; make such a list with `hpm-video data list --manifest "
                f"{file} --seconds {names} -o {output}` (or --frames), or remove these columns if "
                "each file is already one part",
            )
        if not chosen and self._splits and self._are_splits():
            name, known = self._splits[0], [v for v in self._values if v]
            usual = next((v for v in known if v.lower() in SPLITS["train"]), known[0])
            file = shlex.quote(str(self._file))
            output = shlex.quote(str(self._file.with_name(f"{self._file.stem}_{usual}.csv")))
            is_own = self._root == os.path.abspath(self._file.parent)
            root = "" if is_own else f"--root {shlex.quote(self._root)} "
            faults.add(
                "splits",
                str(self._file),
                f"column {name} must have one value, but has {self._counted()}; choose one with "
                f"`hpm-video data list --manifest {file} {root}--split {shlex.quote(usual)} "
                f"-o {output}`",
            )
        if self._has_labels and labels:
            names = ", ".join(map(shown, self._labels))
            faults.add(
                "labels",
                str(self._file),
                f"a video must have one label, but {names} hold several; remove all but one, or "
                "join them in one column label and set labels.separator",
            )

    def unused(self) -> str | None:
        """A line about columns that nothing reads."""
        if not self._unused:
            return None
        names = first_few(self._unused, 10)
        return f"{self._file}: unused columns: {names} (used: {', '.join(self._used)})"

    def _are_splits(self) -> bool:
        """Whether there is more than one split; a column named "set" is judged by its values."""
        if len({value.lower() for value in self._values}) < 2:
            return False
        usual = {word for words in SPLITS.values() for word in words}
        return "split" in self._splits[0] or any(v.lower() in usual for v in self._values)

    def _counted(self) -> str:
        most = self._values.most_common(6)
        said = ", ".join(f"{shown(value) or '(empty)'} ({count} rows)" for value, count in most[:5])
        return said + (", ..." if len(most) > 5 else "")


# Several labels in one cell: 0,1 or 0 1 or 0|1 or [0, 1]; and lists of names as pandas writes them
_NUMBERS = re.compile(r"[\[({]?\s*\d+(\s*[,;|]\s*\d+|\s+\d+)+\s*[\])}]?", re.ASCII)
_AS_LIST = re.compile(r"\[.*\]", re.DOTALL)


def several_labels(texts: Iterable[str], classes: Iterable[str] = ()) -> list[str]:
    """The texts among a list's distinct labels that hold several labels in one cell.

    A class may be called "Pushing something, then pulling it". So only these count as several:
    whole numbers, lists in brackets, and texts composed of the list's other labels. Around | and ;,
    which class names do not contain, the pieces may also occur in other cells. ``classes``: known
    names, of which a text may be composed too.
    """
    names = {text for text in texts if not INTEGER.fullmatch(text)}
    found = {text for text in names if _NUMBERS.fullmatch(text) or _AS_LIST.fullmatch(text)}
    for separator in ",;|":
        parts = {
            text: [part.strip() for part in text.split(separator)]
            for text in names
            if separator in text
        }
        uses = Counter(part for split in parts.values() for part in set(split))
        often = {part for part, count in uses.items() if count > 1 and separator != ","}
        known = names | often | {*classes}
        found |= {text for text, split in parts.items() if known.issuperset(split)}
    return sorted(found)
