"""Class names and labels: `classes.txt`, one name a line in the order of the labels.

Labels that do not fit their class names give a model that learns, without any error, to call one
thing by the name of another. So all that can tell is looked at: the range, names known from
elsewhere, and the folders that videos lie in.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.rows import INTEGER, first_few, is_no_label, shown
from hpm_video.runtime.files import write_atomically


@dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels, and where they are from."""

    names: tuple[str, ...]
    source: str


def read_classes(file: str | Path) -> ClassNames:
    """Read a file with a class name on each line.

    Raises FileNotFoundError: it does not exist; ValueError: it names no class, or one twice.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist (expected a class name a line)")
    text = Path(file).read_text(encoding="utf-8-sig", errors="surrogateescape")
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not names:
        raise ValueError(f"{file}: must have a class name on each line: is empty")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{file}: the class '{shown(name)}' is there more than once")
    return ClassNames(names, str(file))


def write_classes(file: Path, names: Sequence[str]) -> None:
    """Write class names, unless the same are there already; the file appears at once or not at all.

    Raises ValueError: the file holds other classes, or a name cannot be one line of text.
    """
    for name in names:
        if not name or name != name.strip() or {"\n", "\r"} & set(name):
            raise ValueError(f"class name ('{shown(name)}') must be one line without outer spaces")
    if file.exists():
        check_same_classes(read_classes(file), ClassNames(tuple(names), "this data set"))
    else:
        write_atomically(file, (f"{name}\n" for name in names))


def check_same_classes(one: ClassNames, other: ClassNames) -> None:
    """Raise ValueError, naming the first difference, unless both have the same names in order."""
    if one.names == other.names:
        return
    shared = min(len(one.names), len(other.names))
    label = next((i for i in range(shared) if one.names[i] != other.names[i]), shared)
    first, second = (
        f"'{shown(names[label])}'" if label < len(names) else "not there"
        for names in (one.names, other.names)
    )
    raise ValueError(
        f"{one.source} differs from {other.source}: must have the same classes in the same order, "
        f"but label {label} is {first}, there {second}"
    )


def classes_beside(files: Sequence[Path]) -> ClassNames | None:
    """Class names of the classes.txt beside the lists, which must all have the same."""
    beside = (folder / "classes.txt" for folder in dict.fromkeys(file.parent for file in files))
    found = [read_classes(file) for file in beside if file.is_file()]
    for one, other in pairwise(found):
        check_same_classes(other, one)
    return found[-1] if found else None


class Labels:
    """The labels of a list: noted row by row, then turned into numbers all at once.

    Finds numbers that disagree with folders named like the classes: such a folder most of whose
    videos have another label shows that the numbers were given in another order. A few videos may
    have been moved to a better class by hand; and where a video's folder is no class, folders say
    nothing about labels.
    """

    def __init__(self, known: ClassNames | None) -> None:
        """Take the class names to use, where they are known."""
        self.vocabulary: dict[str, tuple[int, str]] = {}  # text -> its code, where it first stood
        self._known = known
        self._index = {name: i for i, name in enumerate(known.names if known is not None else ())}
        # (folder, label's text) -> videos; None where folders say nothing
        self._counts: Counter[tuple[str, str]] | None = Counter() if known is not None else None
        self._where: dict[tuple[str, str], str] = {}

    def add(self, path: str, label: str, where: str) -> int:
        """Note the label of a row, "" for none, and return its code."""
        folder = os.path.basename(os.path.dirname(path))
        if self._counts is not None and label:
            if folder in self._index:
                self._counts[folder, label] += 1
                self._where.setdefault((folder, label), where)
            else:
                self._counts = None
        return self.vocabulary.setdefault(label, (len(self.vocabulary), where))[0]

    def values(
        self, beside: ClassNames | None = None, *, numbers_only: bool = False
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
        """Return the label of every code, -1 for none, and the class names.

        ``beside``: the class names by the lists. ``numbers_only``: whether names must be known.

        Raises ValueError: labels are not of one kind, not whole numbers, or not among the classes;
            or most videos of a folder have another class's number.
        """
        found = _label_values(self.vocabulary, self._known, beside, numbers_only=numbers_only)
        if self._known is not None:
            self._check_folders(self._known)
        return found

    def _check_folders(self, known: ClassNames) -> None:
        counts = self._counts or Counter()
        most: dict[str, str] = {}  # folder -> its most frequent label
        for (folder, label), count in counts.items():
            if count > counts[folder, most.get(folder, "")]:
                most[folder] = label
        if len(most) < 2:  # one folder for all is not a folder per class
            return
        for folder, label in most.items():
            right = self._index[folder]
            if INTEGER.fullmatch(label) and int(label) not in (right, -1):
                raise ValueError(
                    f"{self._where[folder, label]}: label ({label}) must be {right} as the folder "
                    f"'{shown(folder)}' is that class ({known.source}): wrong order of classes?"
                )


def _label_values(
    vocabulary: Mapping[str, tuple[int, str]],
    known: ClassNames | None,
    beside: ClassNames | None,
    *,
    numbers_only: bool = False,
) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    values = np.full(len(vocabulary), -1, dtype=np.int64)
    given = {text: entry for text, entry in vocabulary.items() if text}
    for text, (_, where) in given.items():
        if is_no_label(text):
            raise ValueError(f"{where}: label ({text}) must be a whole number or a class name")
    integers = [text for text in given if INTEGER.fullmatch(text)]
    if 0 < len(integers) < len(given) and known is None:
        name = next(text for text in given if text not in integers)
        raise ValueError(
            f"{given[integers[0]][1]}: label ({integers[0]}) is a number and '{shown(name)}' "
            f"({given[name][1]}) a name: labels must be all of one kind"
        )
    if len(integers) == len(given):
        if known is not None and beside is not None:
            check_same_classes(beside, known)
        for text, (code, where) in given.items():
            value = int(text[:4000])  # Python reads no more digits
            if value < -1:
                raise ValueError(f"{where}: label ({text}) must be at least 0, or -1 for none")
            if known is not None and value >= len(known.names):
                raise ValueError(
                    f"{where}: label ({text}) must be below the number of classes "
                    f"({len(known.names)}, {known.source})"
                )
            values[code] = min(value, np.iinfo(np.int64).max - 1)
        return values, known.names if known is not None else None
    if known is None and numbers_only:
        text, (_, where) = next(iter(given.items()))
        raise ValueError(
            f"{where}: label ({shown(text)}) must be a number: the classes that it is compared "
            "with have no names (classes.txt beside a list, a name a line, gives them)"
        )
    names, source = (known.names, known.source) if known is not None else (tuple(sorted(given)), "")
    index = {name: i for i, name in enumerate(names)}
    for text, (code, where) in given.items():
        if text not in index:
            some = first_few(names, 5)
            raise ValueError(f"{where}: label ({shown(text)}) must be one of {source}: {some}")
        values[code] = index[text]
    return values, names
