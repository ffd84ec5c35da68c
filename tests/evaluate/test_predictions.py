"""Results of an evaluation: figures against loops over videos, and the file they come back from."""

import csv
from pathlib import Path

import numpy as np
import pytest

from hpm_video.evaluate.predictions import (
    Evaluation,
    figures_line,
    read_predictions,
    write_predictions,
)


def evaluation(num_videos: int, num_classes: int, *, num_bad: int = 0, seed: int = 0) -> Evaluation:
    """Scores that know something; classes of unequal size, the last one without any video."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(max(num_classes - 1, 1), size=num_videos) ** 2 // max(num_classes - 1, 1)
    logits = rng.normal(size=(num_videos, num_classes))
    logits[np.arange(num_videos), labels] += 1
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    bad = rng.permutation(num_videos)[:num_bad]
    scores[bad] = 0
    return Evaluation(
        scores.astype(np.float32),
        labels.astype(np.int64),
        tuple(f"/videos/{k % 3}/clip_{k // 3}.mp4" for k in range(num_videos)),
        tuple((int(k), "is empty") for k in sorted(bad)),
        tuple(f"class {k}" for k in range(num_classes)),
        {"checkpoint": "run/checkpoints/last, step 7", "lists": "val.csv"},
    )


@pytest.mark.parametrize(("num_classes", "num_bad"), [(1, 0), (2, 3), (7, 0), (7, 11), (40, 5)])
def test_figures_against_a_loop_over_videos(num_classes: int, num_bad: int) -> None:
    result = evaluation(120, num_classes, num_bad=num_bad)
    bad = {index for index, _ in result.bad}
    right = {1: 0, 5: 0}
    of_class: dict[int, list[bool]] = {}
    confusion = np.zeros((num_classes, num_classes + 1), dtype=int)
    for index, label in enumerate(result.labels.tolist()):
        order = sorted(range(num_classes), key=lambda k: (-result.scores[index, k], k))
        for k in right:
            right[k] += label in order[:k] and index not in bad
        of_class.setdefault(label, []).append(order[0] == label and index not in bad)
        confusion[label, num_classes if index in bad else order[0]] += 1
        assert result.predicted[index] == (-1 if index in bad else order[0])
    figures = result.figures()
    assert figures["top1"] == pytest.approx(right[1] / 120)
    assert figures["top5"] == (pytest.approx(right[5] / 120) if num_classes > 5 else None)
    means = [sum(hits) / len(hits) for hits in of_class.values()]
    assert figures["balanced_accuracy"] == pytest.approx(sum(means) / len(means))
    assert figures["unreadable"] == num_bad
    assert result.confusion().tolist() == confusion.tolist()
    assert ("top5" in figures_line(result)) == (num_classes > 5)


def test_balanced_accuracy_is_not_accuracy() -> None:
    """Nine of one class, all right, and one of another, wrong."""
    scores = np.tile(np.array([[0.9, 0.1]], dtype=np.float32), (10, 1))
    result = Evaluation(scores, np.array([0] * 9 + [1]), ("x",) * 10, ())
    assert result.top(1) == pytest.approx(0.9)
    assert result.balanced_accuracy() == pytest.approx(0.5)


@pytest.mark.parametrize("num_classes", [1, 2, 30])
def test_the_file_gives_back_the_same_to_the_last_bit(tmp_path: Path, num_classes: int) -> None:
    result = evaluation(50, num_classes, num_bad=4)
    write_predictions(result, tmp_path)
    again = read_predictions(tmp_path)
    assert np.array_equal(again.scores, result.scores) and again.scores.dtype == np.float32
    assert again.labels.tolist() == result.labels.tolist()
    assert (again.paths, again.bad) == (result.paths, result.bad)
    assert (again.classes, again.about) == (result.classes, result.about)
    assert again.figures() == result.figures()


def test_the_file_can_be_read_by_others(tmp_path: Path) -> None:
    result = evaluation(20, 3, num_bad=2)
    write_predictions(result, tmp_path)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == list(result.paths)
    for index, row in enumerate(rows):
        scores = [float(row[f"score_{k}"]) for k in range(3)]
        assert int(row["label"]) == result.labels[index]
        if row["error"]:
            assert row["predicted"] == "" and scores == [0, 0, 0]
        else:
            assert int(row["predicted"]) == int(np.argmax(scores))
    assert sum(bool(row["error"]) for row in rows) == 2


def test_names_that_need_care_come_back(tmp_path: Path) -> None:
    names = ('a,"b".mp4', "two\nlines.mp4", "\udcff.mp4", "\r.mp4")
    scores = np.full((4, 2), 0.5, dtype=np.float32)
    bad = ((1, 'a reason, with "quotes"'),)
    write_predictions(Evaluation(scores, np.array([0, 1, 0, 1]), names, bad), tmp_path)
    again = read_predictions(tmp_path)
    assert (again.paths, again.bad, again.classes) == (names, bad, None)


def test_class_names_of_an_older_evaluation_do_not_stay(tmp_path: Path) -> None:
    write_predictions(evaluation(5, 3), tmp_path)
    nameless = Evaluation(np.ones((1, 1), dtype=np.float32), np.array([0]), ("a",), ())
    write_predictions(nameless, tmp_path)
    assert read_predictions(tmp_path).classes is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("path,label", "file,label", "must have the columns path,label,predicted,error,score_0"),
        ("/videos/0/clip_0.mp4,", "a.mp4,7", r":2: label \(7\d\) must be in \[0, 2\]"),
        ("/videos/0/clip_0.mp4,", "a.mp4,x", r":2: label \(x\d\) must be in \[0, 2\]"),
        ("/videos/1/clip_0.mp4,", "a,b.mp4,", ":3: must have 7 fields: has 8"),
        (",0.", ",zero.", ": scores must be numbers"),
        (",0.", ",nan,0.", "must have 7 fields"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, old: str, new: str, words: str) -> None:
    write_predictions(evaluation(5, 3), tmp_path)
    file = tmp_path / "predictions.csv"
    file.write_text(file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=words):
        read_predictions(tmp_path)


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="is not the folder of an evaluation"):
        read_predictions(tmp_path)
    (tmp_path / "predictions.csv").write_text("path,label,predicted,error,score_0\n")
    with pytest.raises(ValueError, match="must have a row for every video"):
        read_predictions(tmp_path)
