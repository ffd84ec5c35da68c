"""What an evaluation found, video by video: the figures, and the file that holds all they need."""

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


@dataclass(frozen=True)
class Evaluation:
    """Results of one pass over a manifest.

    scores (videos, classes): mean softmax over a video's views; zero rows for unreadable videos.
    labels (videos,), paths: of the videos.
    bad: (manifest index, reason) of unreadable videos; they count as wrong.
    classes: their names where they are known. about: what was evaluated, name -> words.
    """

    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    paths: tuple[str, ...]
    bad: tuple[tuple[int, str], ...]
    classes: tuple[str, ...] | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return self.scores.shape[1]

    @property
    def predicted(self) -> npt.NDArray[np.int64]:
        """(videos,): the class of the highest score, of equals the first; -1: unreadable."""
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
        """(classes, classes + 1): videos of class i called class j; in the last column, those of
        class i that are unreadable."""
        counts = np.zeros((self.num_classes, self.num_classes + 1), dtype=np.int64)
        np.add.at(counts, (self.labels, self.predicted), 1)  # -1 is the last column
        return counts

    def balanced_accuracy(self) -> float:
        """Mean over the classes that have videos of the share of each that is right."""
        counts = self.confusion()
        videos = counts.sum(axis=1)
        return float((counts.diagonal()[videos > 0] / videos[videos > 0]).mean())

    def loss(self) -> float | None:
        """Mean of -log of the score of the label, over the videos that can be read; None without
        any. A score of 0 counts as the smallest float32."""
        readable = np.ones(len(self.labels), dtype=bool)
        readable[[index for index, _ in self.bad]] = False
        scores = self.scores[readable, self.labels[readable]].astype(np.float64)
        if not len(scores):
            return None
        return float(-np.log(np.maximum(scores, np.finfo(np.float32).tiny)).mean())

    def figures(self) -> dict[str, float | int | None]:
        """What is said of an evaluation; top5 is None where 5 classes are all there are."""
        return {
            "top1": self.top(1),
            "top5": self.top(5) if self.num_classes > 5 else None,
            "balanced_accuracy": self.balanced_accuracy(),
            "loss": self.loss(),
            "unreadable": len(self.bad),
        }

    def class_name(self, label: int) -> str:
        """A class as it is shown: its number and its name."""
        return f"{label} {self.classes[label]}" if self.classes is not None else str(label)


def figures_line(result: Evaluation) -> str:
    """The figures on one line, for a terminal."""
    figures = {**result.figures(), "videos": len(result.labels)}
    order = ("top1", "top5", "balanced_accuracy", "loss", "videos", "unreadable")
    shown = ((name, figures[name]) for name in order if figures[name] is not None)
    return "  ".join(
        f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in shown
    )


def make_results_folder(path: str | Path, *, name: str) -> Path:
    """A folder for results, the setting ``name``: new, empty, or with others to be replaced.

    Raises ValueError where it cannot be made, or holds other files.
    """
    folder, is_ours = Path(path), False
    if (folder / PREDICTIONS).is_file():
        with (folder / PREDICTIONS).open(encoding="utf-8", errors="surrogateescape") as lines:
            is_ours = lines.read(100).startswith(",".join(_COLUMNS))
    if not is_ours and folder.is_dir() and any(file.name[0] != "." for file in folder.iterdir()):
        raise ValueError(f"{name} ({folder}) holds other files: must be empty or an evaluation")
    return make_folder(folder, name=name)


def write_predictions(result: Evaluation, folder: Path) -> None:
    """Write all that `read_predictions` needs to make the same of it.

    predictions.csv has a row for every row of the list, in its order: path, label, predicted class
    (empty: unreadable), error, and the scores, whose digits give back the same float32. Raises
    ValueError where a file cannot be written.
    """
    errors, predicted = dict(result.bad), result.predicted

    def lines() -> Iterator[str]:
        yield ",".join(_header(result.num_classes)) + "\n"
        for index, scores in enumerate(result.scores):
            known = "" if index in errors else int(predicted[index])
            row = (result.paths[index], result.labels[index], known, errors.get(index))
            numbers = map("{:.9g}".format, scores.tolist())
            yield ",".join([*map(quoted, row), *numbers]) + "\n"

    write_atomically(folder / PREDICTIONS, lines())
    write_atomically(folder / "about.json", [json.dumps(dict(result.about), indent=1) + "\n"])
    if result.classes is None:
        (folder / "classes.txt").unlink(missing_ok=True)
    else:
        write_atomically(folder / "classes.txt", (f"{name}\n" for name in result.classes))


def read_predictions(folder: str | Path) -> Evaluation:
    """Read what `write_predictions` wrote.

    Raises FileNotFoundError where there is no predictions.csv, ValueError, which says which line,
    where it is not as we write it.
    """
    folder = Path(folder)
    file = folder / PREDICTIONS
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist: {folder} is no folder of an evaluation")
    paths: list[str] = []
    labels: list[int] = []
    scores: list[npt.NDArray[np.float32]] = []
    bad: list[tuple[int, str]] = []
    with file.open(newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = csv.reader(lines)
        head = next(_well_formed(rows, file), [])
        num_classes = len(head) - len(_COLUMNS)
        if num_classes < 1 or head != _header(num_classes):
            raise ValueError(f"{file}: must have the columns {','.join(_COLUMNS)},score_0,...")
        for row in _well_formed(rows, file):
            where = f"{file}:{rows.line_num}"
            if len(row) != len(head):
                raise ValueError(f"{where}: must have {len(head)} fields: has {len(row)}")
            path, label, _, error = row[: len(_COLUMNS)]
            if not label.isdecimal() or len(label) > 9 or int(label) >= num_classes:
                raise ValueError(f"{where}: label ({label}) must be in [0, {num_classes - 1}]")
            if error:
                bad.append((len(paths), error))
            paths.append(path)
            labels.append(int(label))
            scores.append(_numbers(row[len(_COLUMNS) :], where))
    if not paths:
        raise ValueError(f"{file}: must have a row for every video: has none")
    classes = _class_names(folder / "classes.txt", num_classes)
    about, of = _about(folder / "about.json"), np.array(labels, dtype=np.int64)
    return Evaluation(np.stack(scores), of, tuple(paths), tuple(bad), classes, about)


def _well_formed(rows: Any, file: Path) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise ValueError(f"{file}:{rows.line_num}: malformed CSV: {error}") from error


def _header(num_classes: int) -> list[str]:
    return [*_COLUMNS, *(f"score_{label}" for label in range(num_classes))]


def _numbers(texts: list[str], where: str) -> npt.NDArray[np.float32]:
    try:
        numbers = np.array(texts, dtype=np.float32)
    except ValueError as error:
        raise ValueError(f"{where}: scores must be numbers") from error
    if not np.isfinite(numbers).all():
        raise ValueError(f"{where}: scores must be finite")
    return numbers


def _class_names(file: Path, num_classes: int) -> tuple[str, ...] | None:
    if not file.is_file():
        return None
    names = read_classes(file).names
    if len(names) != num_classes:
        raise ValueError(f"{file} has {len(names)} classes: must have {num_classes}, as the scores")
    return names


def _about(file: Path) -> dict[str, str]:
    if not file.is_file():
        return {}
    try:
        about = read_json(file)
        return {str(name): str(words) for name, words in about.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{file} must be JSON as an evaluation writes it") from error
