"""Results of an evaluation per video: metrics, and the CSV file that stores them."""

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpm_video.data.lists.classes import read_classes
from hpm_video.runtime.files import make_folder, quoted, write_atomically
from hpm_video.runtime.reading import read_json

PREDICTIONS = "predictions.csv"
_COLUMNS = ("path", "label", "predicted", "error")  # then the scores: score_0, score_1, ...
_SEVERAL = ("path", "labels", "predicted", "error")  # then the scores, and threshold_0, ...


@dataclass(frozen=True)
class Scores:
    """Results of one pass over a manifest.

    scores (videos, classes): means over a video's views; zero for unreadable videos.
    labels: (videos,) int64, or (videos, classes) bool for multi-label lists.
    paths: of the videos. bad: (manifest index, reason) of unreadable videos; they count as wrong.
    classes: names, if known. about: description of the evaluation, name -> text.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[Any]
    paths: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]
    classes: tuple[str, ...] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.scores.shape[1]

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(videos,): True for readable videos."""
        readable = np.ones(len(self.labels), dtype=bool)
        readable[[index for index, _ in self.bad]] = False
        return readable

    def class_name(self, label: int) -> str:
        """A class for display: number and name."""
        return f"{label} {self.classes[label]}" if self.classes is not None else str(label)


@dataclass(frozen=True)
class Evaluation(Scores):
    """Results of a single-label classifier; scores are the mean softmax."""

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(videos,): class with the highest score, ties to the first; -1 for unreadable videos."""
        predicted = self.scores.argmax(axis=1)
        predicted[[index for index, _ in self.bad]] = -1
        return predicted

    def top(self, k: int) -> float:
        """Share of all videos whose label is among the k highest scores."""
        k = min(k, self.num_classes)
        best = np.argsort(-self.scores, axis=1, kind="stable")[:, :k]
        right = (best == self.labels[:, None]).any(axis=1)
        right[[index for index, _ in self.bad]] = False
        return float(right.mean())

    def confusion(self) -> npt.NDArray[np.int64]:
        """(classes, classes + 1): videos of class i predicted as class j. The last column counts
        unreadable videos of class i."""
        counts = np.zeros((self.num_classes, self.num_classes + 1), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)  # -1 is the last column
        return counts

    def balanced_accuracy(self) -> float:
        """Mean per-class accuracy over the classes with videos."""
        counts = self.confusion()
        videos = counts.sum(axis=1)
        return float((counts.diagonal()[videos > 0] / videos[videos > 0]).mean())

    def loss(self) -> float | None:
        """Mean cross-entropy of the scores over readable videos; None without any. A score of 0
        counts as the smallest float32."""
        readable = self.readable
        scores = self.scores[readable, self.labels[readable]].astype(np.float64)
        if not len(scores):
            return None
        return float(-np.log(np.maximum(scores, np.finfo(np.float32).tiny)).mean())

    def figures(self) -> dict[str, float | int | None]:
        """Metrics by name; top5 is None if there are at most 5 classes."""
        return {
            "top1": self.top(1),
            "top5": self.top(5) if self.num_classes > 5 else None,
            "balanced_accuracy": self.balanced_accuracy(),
            "loss": self.loss(),
            "unreadable": len(self.bad),
        }


@dataclass(frozen=True)
class SeveralLabels(Scores):
    """Results of a multi-label classifier; scores are the mean sigmoid.

    thresholds (classes,): a class is predicted if its score is at least this. separator: between
    classes in a cell.
    """

    thresholds: tuple[float, ...] = ()
    separator: str = ";"

    @property
    def predicted(self) -> npt.NDArray[np.bool_]:
        """(videos, classes): classes that reach their thresholds; none for unreadable videos."""
        return (self.scores >= np.array(self.thresholds)) & self.readable[:, None]

    def average_precisions(self) -> npt.NDArray[np.float64]:
        """(classes,), see `average_precisions`; unreadable videos rank last."""
        return average_precisions(self.scores, self.labels)

    def mean_ap(self) -> float | None:
        """Mean average precision over the classes with videos; None without any."""
        return self._mean(self.average_precisions())

    def mean_f1(self) -> float | None:
        """Mean F1 at the thresholds over the classes with videos; None without any."""
        return self._mean(self.f1s())

    def f1s(self) -> npt.NDArray[np.float64]:
        """(classes,): F1 at the thresholds; 0 without a true positive."""
        predicted, labels = self.predicted, self.labels
        both = predicted.sum(axis=0) + labels.sum(axis=0)
        return 2 * (predicted & labels).sum(axis=0) / np.maximum(both, 1)

    def _mean(self, values: npt.NDArray[np.float64]) -> float | None:
        has_videos = self.labels.any(axis=0)
        return float(values[has_videos].mean()) if has_videos.any() else None

    def loss(self) -> float | None:
        """Mean binary cross-entropy of the scores over readable videos and classes; None without
        any. Scores of 0 and 1 count as the float32 values next to them."""
        readable, step = self.readable, float(np.finfo(np.float32).eps)
        if not readable.any():
            return None
        scores = self.scores[readable].astype(np.float64).clip(step, 1 - step)
        of_label = np.where(self.labels[readable], scores, 1 - scores)
        return float(-np.log(of_label).mean())

    def figures(self) -> dict[str, float | int | None]:
        """Metrics by name."""
        return {
            "mean_ap": self.mean_ap(),
            "mean_f1": self.mean_f1(),
            "loss": self.loss(),
            "unreadable": len(self.bad),
        }


def average_precisions(
    scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """Average precision of each class, from scores and labels (videos, classes).

    It is the mean precision over the recall steps, without interpolation; equal scores form one
    step. A class without videos has 0, as in scikit-learn's average_precision_score.
    """
    found = np.zeros(scores.shape[1])
    for label in np.flatnonzero(labels.any(axis=0)):
        _, right, called = _steps(scores[:, label], labels[:, label])
        found[label] = (np.diff(right, prepend=0) * right / called).sum() / right[-1]
    return found


def best_thresholds(result: SeveralLabels) -> tuple[float, ...]:
    """Threshold with the best F1 for each class, halfway between two neighbouring scores; ties go
    to the highest. 1/2 for classes without readable videos."""
    readable, thresholds = result.readable, []
    for scores, labels in zip(result.scores[readable].T, result.labels[readable].T, strict=True):
        if not labels.any():
            thresholds.append(0.5)
            continue
        values, right, called = _steps(scores, labels)
        best = int((2 * right / (called + right[-1])).argmax())
        below = values[best + 1] if best + 1 < len(values) else 0.0
        thresholds.append(float(values[best] + below) / 2)
    return tuple(thresholds)


def _steps(
    scores: npt.NDArray[np.floating[Any]], labels: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Distinct scores (videos,) of a class in descending order, each with two counts: videos with
    at least this score that have the class, and all videos with at least this score."""
    order = np.argsort(-scores, kind="stable")
    values = scores[order].astype(np.float64)
    last = np.flatnonzero(np.append(np.diff(values) != 0, True))
    return values[last], labels[order].cumsum()[last], last + 1


def figures_line(result: Evaluation | SeveralLabels) -> str:
    """Metrics on one line, for the terminal."""
    figures = result.figures()
    unreadable = figures.pop("unreadable")
    figures |= {"videos": len(result.labels), "unreadable": unreadable}
    shown = ((name, value) for name, value in figures.items() if value is not None)
    return "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown
    )


def make_results_folder(path: str | Path, *, name: str) -> Path:
    """Make a results folder for the setting ``name``: new, empty, or with results to replace.

    Raises ValueError if it cannot be made, or holds other files.
    """
    folder, is_ours = Path(path), False
    if (folder / PREDICTIONS).is_file():
        with (folder / PREDICTIONS).open(encoding="utf-8", errors="surrogateescape") as lines:
            head = lines.read(100)
            is_ours = any(head.startswith(",".join(columns)) for columns in (_COLUMNS, _SEVERAL))
    if not is_ours and folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir()):
        raise ValueError(
            f"{name} ({folder}) must be empty or hold an evaluation: it holds other files"
        )
    return make_folder(folder, name=name)


def write_predictions(result: Evaluation | SeveralLabels, folder: Path) -> None:
    """Write predictions.csv, from which `read_predictions` restores the results.

    It has one row per list row, in order: path, label, predicted class (empty if unreadable),
    error, and the scores with digits that round-trip float32. Multi-label cells join classes with
    blanks, and every row repeats the thresholds. Raises ValueError if a file cannot be written.
    """
    errors = dict(result.bad)

    def lines() -> Iterator[str]:
        yield (
            ",".join(_header(result.num_classes, several=isinstance(result, SeveralLabels))) + "\n"
        )
        predicted = result.predicted
        thresholds = result.thresholds if isinstance(result, SeveralLabels) else ()
        for index, scores in enumerate(result.scores):
            known = "" if index in errors else _in_a_cell(predicted[index])
            label = _in_a_cell(result.labels[index])
            row = (result.paths[index], label, known, errors.get(index))
            numbers = map("{:.9g}".format, scores.tolist())
            yield ",".join([*map(quoted, row), *numbers, *map(str, thresholds)]) + "\n"

    write_atomically(folder / PREDICTIONS, lines())
    write_atomically(folder / "about.json", [json.dumps(dict(result.about), indent=1) + "\n"])
    if result.classes is None:
        (folder / "classes.txt").unlink(missing_ok=True)
    else:
        write_atomically(folder / "classes.txt", (f"{name}\n" for name in result.classes))


def _in_a_cell(labels: Any) -> str:
    """Cell text of one label, or of several (classes,) bool."""
    return " ".join(map(str, np.flatnonzero(labels))) if np.ndim(labels) else str(int(labels))


def read_predictions(folder: str | Path) -> Evaluation | SeveralLabels:
    """Read the results that `write_predictions` wrote.

    Raises FileNotFoundError if there is no predictions.csv; ValueError with the line number if its
    content is not valid.
    """
    folder = Path(folder)
    file = folder / PREDICTIONS
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} does not exist: {folder} is not the folder of an evaluation"
        )
    paths: list[str] = []
    labels: list[list[int]] = []
    numbers: list[npt.NDArray[np.float64]] = []
    bad: list[tuple[int, str]] = []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = csv.reader(lines)
        head = next(_well_formed(rows, file), [])
        several = head[:4] == [*_SEVERAL]
        num_classes = (len(head) - len(_COLUMNS)) // (2 if several else 1)
        if num_classes < 1 or head != _header(num_classes, several=several):
            raise ValueError(f"{file}: must have the columns {','.join(_COLUMNS)},score_0,...")
        for row in _well_formed(rows, file):
            where = f"{file}:{rows.line_num}"
            if len(row) != len(head):
                raise ValueError(f"{where}: must have {len(head)} fields: has {len(row)}")
            path, label, _, error = row[: len(_COLUMNS)]
            given = label.split() if several else [label]
            for text in given:
                if not text.isdecimal() or len(text) > 9 or int(text) >= num_classes:
                    raise ValueError(f"{where}: label ({label}) must be in [0, {num_classes - 1}]")
            if error:
                bad.append((len(paths), error))
            paths.append(path)
            labels.append([int(text) for text in given])
            numbers.append(_numbers(row[len(_COLUMNS) :], where))
    if not paths:
        raise ValueError(f"{file}: must have a row for every video: has none")
    classes = _class_names(folder / "classes.txt", num_classes)
    about, scores = _about(folder / "about.json"), np.stack(numbers)[:, :num_classes]
    found = (tuple(paths), tuple(bad), classes, about)
    if not several:
        of = np.array(labels, dtype=np.int64)[:, 0]
        return Evaluation(scores.astype(np.float32), of, *found)
    sets = np.zeros(scores.shape, dtype=bool)
    for row_of, given_of in zip(sets, labels, strict=True):
        row_of[given_of] = True
    thresholds = tuple(numbers[0][num_classes:].tolist())
    return SeveralLabels(scores.astype(np.float32), sets, *found, thresholds=thresholds)


def _well_formed(rows: Any, file: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: malformed CSV: {error}") from error


def _header(num_classes: int, *, several: bool) -> list[str]:
    names = ("score", "threshold") if several else ("score",)
    columns = [f"{name}_{label}" for name in names for label in range(num_classes)]
    return [*(_SEVERAL if several else _COLUMNS), *columns]


def _numbers(texts: list[str], where: str) -> npt.NDArray[np.float64]:
    try:
        numbers = np.array(texts, dtype=np.float64)
    except ValueError as error:
        raise ValueError(f"{where}: scores must be numbers") from error
    if not np.isfinite(numbers.astype(np.float32)).all():
        raise ValueError(f"{where}: scores must be finite")
    return numbers


def _class_names(file: Path, num_classes: int) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    names = read_classes(file).names
    if len(names) != num_classes:
        raise ValueError(
            f"{file} has {len(names)} classes: must have {num_classes}, as many as scores"
        )
    return names


def _about(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        about = read_json(file)
        return {str(name): str(words) for name, words in about.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be JSON written by an evaluation") from error
