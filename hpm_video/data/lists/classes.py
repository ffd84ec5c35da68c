"""Class names and labels: `classes.txt` has one name per line, in the order of the labels.

Labels that do not match their class names train a model that confuses classes without any error. So
labels are checked against everything that can reveal a mismatch: their range, class names known
from elsewhere, and the folders of the videos.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.columns import several_labels
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.rows import INTEGER, first_few, is_no_label, open_text, shown
from hpm_video.data.lists.spelling import as_text, same_name
from hpm_video.runtime.files import free_place, shell_path, write_atomically

_LONGEST = 1 << 26  # characters in a classes.txt


@dataclass(frozen=True)
class ClassNames:
    """Class names in the order of their labels, and their source.

    file: a classes.txt of these names, for messages. instead: what to do with a list of classes
    that these names lack.
    """

    names: tuple[str, ...]
    source: str
    file: str = ""
    instead: str = ""

    @cached_property
    def _labels(self) -> dict[str, int]:
        spelled = {same_name(name): label for label, name in enumerate(self.names)}
        return spelled | {name: label for label, name in enumerate(self.names)}

    def label(self, name: str) -> int | None:
        """The label of a class, or None if it has none; the name may be encoded differently."""
        found = self._labels.get(name)
        return found if found is not None else self._labels.get(same_name(name))

    def alike(self, name: str) -> str:
        """A hint for messages on an unknown name: the class that differs only in case or blanks."""
        found = next((other for other in self.names if _loosely(other) == _loosely(name)), None)
        return "" if found is None else f" (differs from '{shown(found)}' only in case or spaces)"


def read_classes(file: str | Path) -> ClassNames:
    """Read a file with one class name per line.

    Raises FileNotFoundError if it does not exist, or ValueError if it is empty or repeats a name.
    """
    if not Path(file).is_file():
        raise FileNotFoundError(f"{file} does not exist (expected one class name per line)")
    with open_text(file) as lines:
        text = lines.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise ValueError(f"{file}: must have at most {_LONGEST} characters")
    names = tuple(line.strip() for line in text.split("\n") if line.strip())
    if not names:
        raise ValueError(f"{file}: must have one class name per line, but is empty")
    for name, count in Counter(names).items():
        if count > 1:
            raise ValueError(f"{file}: class '{shown(name)}' occurs more than once")
    return ClassNames(names, str(file))


def write_classes(file: Path, names: Sequence[str]) -> None:
    """Write class names atomically, unless the file already holds the same names.

    Raises ValueError if the file holds other classes, or a name does not fit on one line.
    """
    for name in names:
        if not name or name != name.strip() or {"\n", "\r"} & set(name):
            raise ValueError(
                f"class name ('{shown(name)}') must be one line, not empty, without outer spaces: "
                "rename the class or its folder"
            )
    if file.exists():
        check_same_classes(read_classes(file), ClassNames(tuple(names), "this data set"))
    else:
        write_atomically(file, (f"{name}\n" for name in names))


def check_same_classes(one: ClassNames, other: ClassNames, *, way: str = "") -> None:
    """Raise ValueError with the first difference between two lists of names, including order.

    ``way``: what to do about it.
    """
    names = [tuple(map(same_name, classes.names)) for classes in (one, other)]
    if names[0] == names[1]:
        return
    shared = min(map(len, names))
    label = next((i for i in range(shared) if names[0][i] != names[1][i]), shared)
    first, second = (
        f"'{shown(names[label])}'" if label < len(names) else ""
        for names in (one.names, other.names)
    )
    said = f"but its label {label} is {first}, not {second}"
    if not (first and second):
        said = (
            f"but has label {label} too: {first}" if first else f"but lacks label {label}: {second}"
        )
    raise ValueError(f"{one.source} must match {other.source} in names and order, {said}{way}")


def classes_beside(files: Sequence[Path]) -> ClassNames | None:
    """Class names of the classes.txt files beside the lists, which must all be equal."""
    beside = (folder / "classes.txt" for folder in dict.fromkeys(file.parent for file in files))
    found = [read_classes(file) for file in beside if file.is_file()]
    for one, other in pairwise(found):
        check_same_classes(other, one)
    return found[-1] if found else None


def similar_classes(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that differ only in case, blanks or Unicode normalization."""
    first: dict[str, str] = {}
    pairs = ((first.setdefault(_loosely(name), name), name) for name in names)
    return [(one, other) for one, other in pairs if one != other]


def _loosely(name: str) -> str:
    shown_ones = (c for c in same_name(name) if c.isprintable())  # drops zero-width blanks too
    return re.sub(r"[\s_]+", "", "".join(shown_ones)).casefold()


class Labels:
    """The labels of a list: recorded row by row, then converted to numbers all at once.

    Detects numbers that disagree with folders named like classes. If most videos of such a folder
    have another class's label, the numbers follow another order of classes. A few exceptions are
    allowed, as videos may have been relabeled by hand. Folders that are not named like classes are
    not checked.
    """

    def __init__(self, known: ClassNames | None) -> None:
        """``known``: the class names to use, or None if they are not known."""
        self.vocabulary: dict[str, tuple[int, str]] = {}  # text -> its code, where it first occurs
        self._known = known
        # (folder, label's text) -> number of videos; None if folders are not named like classes
        self._counts: Counter[tuple[str, str]] | None = Counter() if known is not None else None
        self._where: dict[tuple[str, str], str] = {}

    def add(self, path: str, label: str, where: str) -> int:
        """Record the label of a row ("" for none) and return its code."""
        if self._counts is not None and label and self._known is not None:
            folder = os.path.basename(os.path.dirname(path))
            if self._known.label(folder) is not None:
                self._counts[folder, label] += 1
                self._where.setdefault((folder, label), where)
            else:
                self._counts = None
        return self.vocabulary.setdefault(label, (len(self.vocabulary), where))[0]

    def values(
        self,
        beside: ClassNames | None = None,
        *,
        numbers_only: bool = False,
        faults: Faults | None = None,
        file: Path | None = None,
    ) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
        """Return the label of every code (-1 for none) and the class names.

        ``beside``: the class names in classes.txt beside the lists. ``numbers_only``: refuse label
        names without known class names. ``file``: the first list, for messages.

        Raises ValueError if labels mix names and numbers, are not whole numbers, are several in one
        cell or are not among the classes, or if most videos of a folder have another class's
        number. The message includes earlier ``faults``.
        """
        faults = Faults() if faults is None else faults
        found = _label_values(
            self.vocabulary, self._known, beside, faults, numbers_only=numbers_only, file=file
        )
        if self._known is not None:
            self._check_folders(self._known, faults)
        faults.check()
        return found

    def notes(self) -> list[str]:
        """Lines about labels that are valid but may be mistakes."""
        notes = []
        if text := next((text for text in self.vocabulary if as_text(text) != text), None):
            notes.append(
                f"{self.vocabulary[text][1]}: label ({shown(text)}) is not UTF-8 and is read "
                f"as '{shown(same_name(text))}'; convert the list with "
                "`iconv -f WINDOWS-1252 -t UTF-8`"
            )
        notes += (
            f"{where}: label ({text}) is read as a class name; leave it empty for no label"
            for text, (_, where) in self.vocabulary.items()
            if text.lower() in _NOTHING and self._known is None
        )
        return notes

    def _check_folders(self, known: ClassNames, faults: Faults) -> None:
        counts = self._counts or Counter()
        most: dict[str, str] = {}  # folder -> its most frequent label
        for (folder, label), count in counts.items():
            if count > counts[folder, most.get(folder, "")]:
                most[folder] = label
        if len(most) < 2:  # a single folder says nothing about classes
            return
        for folder, label in most.items():
            right = known.label(folder)
            if INTEGER.fullmatch(label) and int(label) not in (right, -1):
                faults.add(
                    "order",
                    self._where[folder, label],
                    f"label ({label}) must be {right}: the video is in the folder of that class, "
                    f"'{shown(folder)}' ({known.source}); are the classes in another order?",
                )


_NOTHING = ("nan", "na", "n/a", "none", "null")


def _label_values(
    vocabulary: Mapping[str, tuple[int, str]],
    known: ClassNames | None,
    beside: ClassNames | None,
    faults: Faults,
    *,
    numbers_only: bool,
    file: Path | None = None,
) -> tuple[npt.NDArray[np.int64], tuple[str, ...] | None]:
    values = np.full(len(vocabulary), -1, dtype=np.int64)
    given = {text: entry for text, entry in vocabulary.items() if text}
    new = [text for text in given if known is None or known.label(text) is None]
    for text in several_labels(new, known.names if known is not None else ()):
        faults.add(
            "several",
            given[text][1],
            f"label ({shown(text)}) must be one label; if videos have several, set "
            "labels.separator to the text between them (data.labels.separator or "
            "probe.labels.separator; for `data list`, --separator; for visualize, --no-labels); "
            "if it is the name of one class, list it in classes.txt",
        )
        del given[text]
    for text in [text for text in given if is_no_label(text)]:
        where = given.pop(text)[1]
        faults.add("label", where, f"label ({text}) must be a whole number or a class name")
    integers = [text for text in given if INTEGER.fullmatch(text)]
    if 0 < len(integers) < len(given) and known is None:
        name = next(text for text in given if text not in integers)
        faults.add(
            "kinds",
            given[integers[0]][1],
            f"label ({integers[0]}) is a number, but '{shown(name)}' ({given[name][1]}) is a "
            "name: labels must be all numbers or all names",
        )
    elif len(integers) == len(given):
        if known is not None and beside is not None:
            used = [beside.names[int(n)] for n in given if 0 <= int(n[:9]) < len(beside.names)]
            check_same_classes(beside, known, way=_way_to_order(used, known, file))
        for text, (code, where) in given.items():
            value = int(text[:4000])  # int() refuses longer texts
            if value < -1:
                rule = f"label ({text}) must be at least 0, or -1 for none"
                faults.add("below", where, rule)
            if known is not None and value >= len(known.names):
                rule = f"must be below the number of classes ({len(known.names)}, {known.source})"
                from_1 = "" if "0" in given else ": labels count from 0, but no label is 0"
                faults.add("above", where, f"label ({text}) {rule}{from_1}")
            values[code] = min(value, np.iinfo(np.int64).max - 1)
        return values, known.names if known is not None else None
    elif known is None and numbers_only:
        text, (_, where) = next(iter(given.items()))
        faults.add(
            "names",
            where,
            f"label ({shown(text)}) must be a number: the classes it is compared with have no "
            "names; to name them, put classes.txt beside their list, with one name per line",
        )
    if known is None:
        spelled: dict[str, str] = {}  # the first spelling of each class
        for text in given:
            spelled.setdefault(same_name(text), text)
        known = ClassNames(tuple(sorted(spelled.values())), "")
    for text, (code, where) in given.items():
        if (label := known.label(text)) is None:
            rule = f"must be one of {known.source}: {first_few(known.names, 5)}{known.alike(text)}"
            faults.add("unknown", where, f"label ({shown(text)}) {rule}")
        else:
            values[code] = label
    return values, known.names


def _way_to_order(used: Sequence[str], known: ClassNames, file: Path | None) -> str:
    """What to do about a list whose numbers stand for classes in another order, or for others."""
    if not (known.file and file) or any(known.label(name) is None for name in used):
        return known.instead
    new = file.with_name(f"{file.stem}_renumbered")
    output = (free_place(new) if new.exists() else new) / file.name
    return (
        f"; to number its classes like those: hpm-video data list --manifest {shell_path(file)} "
        f"--classes {shell_path(known.file)} -o {shell_path(output)}"
    )
