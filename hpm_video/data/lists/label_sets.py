"""Several labels per video: in one cell with a separator, or in one 0/1 column per class."""

import hashlib
from array import array
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpm_video.config import LabelsConfig
from hpm_video.data.lists.classes import ClassNames, Labels
from hpm_video.data.lists.columns import is_ours
from hpm_video.data.lists.faults import Faults
from hpm_video.data.lists.rows import first_few, shown

_YES_NO = {"1": True, "1.0": True, "true": True, "0": False, "0.0": False, "false": False}


@dataclass(frozen=True, eq=False)
class LabelSets:
    """The labels of every video, in two NumPy buffers: `Manifest` says why."""

    labels: npt.NDArray[np.int64]  # of all videos one after the other, ascending within each
    ends: npt.NDArray[np.int64]  # (number of videos,): where the labels of each video end
    separator: str | None  # between labels in a cell; None if each class has a column

    def of(self, index: int) -> npt.NDArray[np.int64]:
        """The labels of a video, in ascending order."""
        return self.labels[self.ends[index - 1] if index else 0 : self.ends[index]]

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """The number of labels of each video, (number of videos,)."""
        return np.diff(self.ends, prepend=0)

    def targets(self, indices: npt.NDArray[np.int64], num_classes: int) -> npt.NDArray[np.float32]:
        """Targets (B, classes) for these videos: 1 for each of a video's labels, 0 elsewhere."""
        targets = np.zeros((len(indices), num_classes), dtype=np.float32)
        for row, index in enumerate(indices.tolist()):
            targets[row, self.of(index)] = 1
        return targets

    def update(self, digest: "hashlib._Hash") -> None:
        """Add all labels to a hash."""
        digest.update(self.labels.tobytes())
        digest.update(self.ends.tobytes())

    def in_words(self) -> str:
        """How many labels videos have, as a log line."""
        return f"labels per video: {self.counts.mean():.2f}, at most {self.counts.max(initial=0)}"

    def notes(self) -> list[str]:
        """Lines about videos that may lack labels."""
        counts = self.counts
        notes = []
        if without := int((counts == 0).sum()):
            notes.append(f"{without} videos have no label and count as negatives of every class")
        if counts.max(initial=0) == 1 and self.separator is None:
            notes.append(
                "no video has more than one label; data.labels.columns is for several per video"
            )
        return notes


class LabelCells:
    """Extracts the labels from rows of lists; `sets` then converts them to numbers."""

    def __init__(
        self, config: LabelsConfig, noted: Labels, faults: Faults, known: ClassNames | None
    ) -> None:
        """``noted``: where label texts are recorded. ``known``: the class names, if known.

        Raises ValueError if a class name contains the separator.
        """
        for name in () if known is None else known.names:
            if config.separator is not None and config.separator in name:
                raise ValueError(
                    f"labels.separator ({config.separator!r}) must not occur in class names, "
                    f"but '{shown(name)}' ({known.source if known else ''}) contains it"
                )
        self._config, self._noted, self._faults = config, noted, faults
        self._codes, self._ends = array("q"), array("q")
        self._columns: dict[str, str] = {}  # column of the current list -> class
        self.notes: list[str] = []  # lines to show the user

    def begin(self, file: Path, row: MutableMapping[str, str]) -> None:
        """Find the label columns of a list from its first row."""
        if not self._config.columns:
            return
        usable = [name for name in row if name and not is_ours(name)]
        self._columns = {}
        for asked in self._config.columns:
            # Column names are in lower case here; class names keep the case of the setting
            found = [name for name in usable if fnmatchcase(name, asked.lower())]
            called = {name: asked if name == asked.lower() else name for name in found}
            self._columns = called | self._columns
            if not found:
                raise ValueError(
                    f"labels.columns ({asked}) must name columns of classes in {file}, which has "
                    f"{first_few(usable, 8) or 'none'}"
                )
        if "label" in row:
            self.notes.append(f"{file}: the column label is not used, as labels.columns is set")
        for name in self._columns.values():  # include classes without videos in this list
            self._noted.add("", name, str(file))

    def take(self, row: MutableMapping[str, str], where: str) -> None:
        """Record the labels of a row and remove their columns from it."""
        codes = {self._noted.add("", label, where) for label in self._labels(row, where)}
        self._codes.extend(codes)
        self._ends.append(len(self._codes))

    def _labels(self, row: MutableMapping[str, str], where: str) -> Iterator[str]:
        if (separator := self._config.separator) is not None:
            yield from filter(None, map(str.strip, row.get("label", "").split(separator)))
            return
        for column, label in self._columns.items():
            text = row.pop(column, "").strip()
            if (is_there := _YES_NO.get(text.lower())) is None:
                rule = f"{shown(column)} ({shown(text)}) must be 0 or 1, as in labels.columns"
                self._faults.add("cell", where, rule)
            elif is_there:
                yield label

    def sets(self, values: npt.NDArray[np.int64]) -> LabelSets:
        """The labels of all rows; ``values``: the number of every code, -1 for none."""
        ends = np.array(self._ends, dtype=np.int64)
        numbers = values[np.array(self._codes, dtype=np.int64)]
        rows = np.repeat(np.arange(len(ends)), np.diff(ends, prepend=0))
        is_label = numbers >= 0
        order = np.lexsort((numbers[is_label], rows[is_label]))
        rows, numbers = rows[is_label][order], numbers[is_label][order]
        # Two spellings may mean one class
        again = np.zeros(len(rows), dtype=bool)
        again[1:] = (np.diff(rows) == 0) & (np.diff(numbers) == 0)
        ends = np.searchsorted(rows[~again], np.arange(len(ends)), side="right")
        return LabelSets(numbers[~again], ends.astype(np.int64), self._config.separator)
