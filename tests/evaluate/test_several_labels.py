"""Several labels per video: figures against scikit-learn and loops, thresholds, files, the page."""

import csv
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from hpm_video.evaluate.along import Along
from hpm_video.evaluate.predictions import (
    SeveralLabels,
    average_precisions,
    best_thresholds,
    figures_line,
    read_predictions,
    write_predictions,
)
from hpm_video.evaluate.several_labels_page import (
    class_rows,
    several_labels_page,
    videos_shown,
    worst_videos,
)


def several_labels(
    num_videos: int, num_classes: int, *, num_bad: int = 0, seed: int = 0, digits: int = 9
) -> SeveralLabels:
    """Scores that know something, with ties where they have few digits; the last class is empty."""
    rng = np.random.default_rng(seed)
    labels = rng.random((num_videos, num_classes)) < rng.uniform(0.05, 0.6, num_classes)
    labels[:, -1] = False
    logits = rng.normal(size=labels.shape) + labels
    scores = np.round(1 / (1 + np.exp(-logits)), digits).astype(np.float32)
    bad = np.sort(rng.permutation(num_videos)[:num_bad])
    scores[bad] = 0
    return SeveralLabels(
        scores,
        labels,
        tuple(f"/videos/clip {k}.mp4" for k in range(num_videos)),
        tuple((int(k), "is empty") for k in bad),
        tuple(f"class {k}" for k in range(num_classes)),
        {"checkpoint": "run/checkpoints/last, step 7"},
        tuple(rng.uniform(0.2, 0.8, num_classes).tolist()),
    )


@pytest.mark.parametrize("digits", [9, 2, 1, 0])
@pytest.mark.parametrize(
    ("num_videos", "num_classes", "num_bad"), [(90, 6, 0), (40, 12, 7), (1, 3, 0)]
)
def test_average_precision_is_that_of_scikit_learn(
    num_videos: int, num_classes: int, num_bad: int, digits: int
) -> None:
    result = several_labels(
        num_videos, num_classes, num_bad=num_bad, seed=num_videos, digits=digits
    )
    with pytest.warns(UserWarning, match="No positive class"):
        expected = [
            average_precision_score(result.labels[:, k], result.scores[:, k])
            for k in range(num_classes)
        ]
    assert result.average_precisions() == pytest.approx(expected, abs=1e-12)
    assert result.average_precisions()[-1] == 0
    # Classes without videos do not enter the mean
    used = result.labels.any(axis=0)
    if used.any():
        whole = average_precision_score(result.labels[:, used], result.scores[:, used])
        assert result.mean_ap() == pytest.approx(whole, abs=1e-12)
        f1 = f1_score(
            result.labels[:, used], result.predicted[:, used], average="macro", zero_division=0
        )
        assert result.mean_f1() == pytest.approx(f1)
    else:
        assert result.mean_ap() is result.mean_f1() is None
        assert "mean_ap" not in figures_line(result)


def test_average_precision_by_hand() -> None:
    """Two equal scores are one step: precision 2/3 for both at once."""
    scores, labels = np.array([[0.9], [0.9], [0.9], [0.1]]), np.array([[1], [1], [0], [1]]) > 0
    assert average_precisions(scores, labels) == pytest.approx([2 / 3 * 2 / 3 + 1 / 3 * 3 / 4])


def test_the_loss_is_the_mean_over_readable_videos_and_classes() -> None:
    result = several_labels(20, 4, num_bad=3)
    bad, losses = dict(result.bad), []
    for index, label in np.ndindex(result.labels.shape):
        if index not in bad:
            score = float(result.scores[index, label])
            losses.append(-np.log(score if result.labels[index, label] else 1 - score))
    assert result.loss() == pytest.approx(np.mean(losses))
    sure = SeveralLabels(np.array([[1, 0]], np.float32), np.array([[False, True]]), ("a",), ())
    assert sure.loss() == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert replace(result, bad=tuple((k, "") for k in range(20))).loss() is None


@pytest.mark.parametrize("digits", [9, 1])
def test_no_threshold_has_a_better_f1_than_the_best(digits: int) -> None:
    result = several_labels(60, 5, num_bad=4, digits=digits)
    thresholds = best_thresholds(result)
    assert thresholds[-1] == 0.5, "a class without videos"
    read = result.readable
    found = replace(result, thresholds=thresholds).f1s()
    for label in range(4):
        scores, labels = result.scores[:, label], result.labels[:, label]
        assert thresholds[label] not in scores.tolist()
        tried = [
            2
            * (labels & (scores >= t) & read).sum()
            / (labels.sum() + ((scores >= t) & read).sum())
            for t in np.unique(scores[read])
        ]
        assert found[label] == pytest.approx(max(tried))


def test_a_file_gives_back_the_same(tmp_path: Path) -> None:
    result = several_labels(30, 5, num_bad=2)
    write_predictions(result, tmp_path)
    back = read_predictions(tmp_path)
    assert isinstance(back, SeveralLabels)
    assert back.scores.tobytes() == result.scores.tobytes()
    assert (back.labels == result.labels).all() and (back.predicted == result.predicted).all()
    assert (back.paths, back.bad, back.classes) == (result.paths, result.bad, result.classes)
    assert (back.about, back.thresholds) == (result.about, result.thresholds)
    with (tmp_path / "predictions.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    for index, row in enumerate(rows):
        above = [
            str(k) for k in range(5) if float(row[f"score_{k}"]) >= float(row[f"threshold_{k}"])
        ]
        assert row["predicted"].split() == ([] if row["error"] else above)
        assert row["labels"].split() == [str(k) for k in np.flatnonzero(result.labels[index])]
    text = (tmp_path / "predictions.csv").read_text()
    (tmp_path / "predictions.csv").write_text(text.replace("threshold_4", "threshold_5", 1))
    with pytest.raises(ValueError, match="must have the columns path,label"):
        read_predictions(tmp_path)


def test_the_page_and_the_table_of_classes() -> None:
    result = several_labels(50, 4, num_bad=3)
    rows = class_rows(result)
    for label, row in enumerate(rows):
        predicted, labels = result.predicted[:, label], result.labels[:, label]
        assert row[2] == labels.sum() and row[-1] == predicted.sum()
        assert float(str(row[5])) == pytest.approx(
            (predicted & labels).sum() / predicted.sum(), abs=1e-4
        )
    assert rows[-1][3:5] == ("", "") and rows[-1][6] == "", "a class without videos"
    worst = worst_videos(result, 5)
    bad = dict(result.bad)
    assert len(worst) == 5 and not bad.keys() & set(worst)
    wrong = result.predicted != result.labels
    mistakes = {
        index: max(
            (1 - s if has else s)
            for s, has, is_wrong in zip(
                result.scores[index], result.labels[index], wrong[index], strict=True
            )
            if is_wrong
        )
        for index in range(50)
        if index not in bad and wrong[index].any()
    }
    assert worst == sorted(mistakes, key=lambda index: -mistakes[index])[:5]
    text = several_labels_page(replace(result, classes=("<a>", "b", "c", "d")), {worst[0]: "gone"})
    assert "1 class has none" in text and "&lt;a&gt;" in text and "<a>" not in text
    assert f"<dt>mean AP</dt><dd><b>{result.mean_ap():.3f}</b>" in text
    assert result.paths[worst[0]] in text and "3 unreadable, scored 0" in text


def test_the_page_judges_and_shows_the_ends() -> None:
    """Class 0 is always found, class 1 never: with clips of both, the surest first."""
    scores = np.array([[0.9, 0.1], [0.8, 0.6], [0.1, 0.2], [0.2, 0.7]], np.float32)
    labels = np.array([[1, 1], [1, 0], [0, 1], [0, 0]], dtype=bool)
    paths = tuple(f"{name}.mp4" for name in "pqrs")
    result = SeveralLabels(scores, labels, paths, (), ("good", "odd"), {}, (0.5, 0.5))
    strips = dict.fromkeys(videos_shown(result), "no frames")
    text = several_labels_page(result, strips)
    assert f"mean AP is {result.mean_ap():.3f}; random scores would have 0.500" in text
    low = text.partition("Worst classes")[2].partition("Best classes")[0]
    assert "1 odd" in low and "0 good: average" not in low
    assert re.findall(r'<h3 title="(.)\.mp4', low) == ["p", "r"]  # missed with scores .1 and .2
    assert "found in 0 of its 2 videos, and in 2 without it" in low
    best = text.partition("Best classes")[2].partition("<details")[0]
    assert "0 good: average precision 1.000" in best
    assert re.findall(r'<h3 title="(.)\.mp4', best) == ["p", "q"]
    for label, level in (
        (labels, "fair"),
        (labels ^ [True, False], "poor"),
        (scores > 0.5, "good"),
    ):
        page = several_labels_page(replace(result, labels=label), strips)
        assert f'<p class="verdict {level}">' in page
    digits = re.findall(r'<td class="number">(\d\.\d+)', text)
    assert digits and {len(number) for number in digits} == {5}, "as the tiles have"
    none = several_labels_page(replace(result, labels=np.zeros_like(labels)), strips)
    assert "mean AP cannot be computed" in none and "Worst classes" not in none


def test_events_of_several_classes_overlap() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.7], [0.1, 0.9], [0.9, 0.1]], np.float32)
    times = np.arange(4.0)
    along = Along("v", times, times + 2, scores, (), (0.5, 0.6))
    found = [(e.label, e.start_s, e.end_s, e.num_windows) for e in along.events()]
    assert found == [(0, 0, 3, 2), (1, 1, 4, 2), (0, 3, 5, 1)]
    assert along.events()[1].score == pytest.approx(0.8)
    single = replace(along, thresholds=None)
    assert [(e.label, e.num_windows) for e in single.events()] == [(0, 2), (1, 1), (0, 1)]
