"""The page and tables of an evaluation: their figures, pictures of the right clips, no markup."""

import csv
import io
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_predictions import evaluation
from videos import frame_numbers, write_indexed_video

from hpm_video.evaluate.classification_page import (
    MAX_CELLS,
    class_results,
    clips_of,
    confused_pairs,
    ends,
    evaluation_page,
    frame_strip,
    matrix_picture,
    most_confused,
    worst,
    worst_first,
    write_evaluation,
)
from hpm_video.evaluate.predictions import Evaluation, SeveralLabels
from hpm_video.evaluate.several_labels_page import MAX_WORST, several_labels_page


def _read(file: Path) -> list[list[str]]:
    with file.open(newline="") as lines:
        return list(csv.reader(lines))


def test_per_class_figures_against_a_loop() -> None:
    result = evaluation(200, 6, num_bad=9)
    for entry in class_results(result.confusion()):
        mine = [k for k in range(200) if result.labels[k] == entry.label]
        called = [int(result.predicted[k]) for k in mine]
        assert entry.videos == len(mine)
        assert entry.right == called.count(entry.label)
        assert entry.unreadable == called.count(-1)
        assert entry.accuracy == (entry.right / len(mine) if mine else None)
        others = [name for name in called if name not in (entry.label, -1)]
        if others:
            assert entry.confused_with is not None
            assert entry.confused == others.count(entry.confused_with)
            assert entry.confused == max(others.count(name) for name in others)
        else:
            assert (entry.confused_with, entry.confused) == (None, 0)


def test_pairs_and_worst_clips_come_in_order() -> None:
    result = evaluation(200, 6, num_bad=9)
    pairs = confused_pairs(result.confusion())
    counts = [count for _, _, count in pairs]
    assert counts == sorted(counts, reverse=True) and min(counts) > 0
    predicted = result.predicted
    assert sum(counts) == sum((predicted != result.labels) & (predicted >= 0))
    found = worst(result, 10)
    sure = [result.scores[k].max() for k in found]
    assert sure == sorted(sure, reverse=True) and len(found) == 10
    bad = {index for index, _ in result.bad}
    wrong = [k for k in range(200) if predicted[k] != result.labels[k] and k not in bad]
    assert set(found) <= set(wrong)
    assert min(sure) >= max(result.scores[k].max() for k in set(wrong) - set(found))


@pytest.mark.parametrize("num_classes", [1, 2, MAX_CELLS, MAX_CELLS + 1, 400])
def test_a_page_of_any_number_of_classes(tmp_path: Path, num_classes: int) -> None:
    result = evaluation(500, num_classes, num_bad=3)
    page = write_evaluation(result, tmp_path, num_workers=0, timeout_s=None)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("about.json", "classes.txt", "confusion.csv", "index.html"),
        *("per_class.csv", "predictions.csv"),
    ]
    text = page.read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', text)  # no other file is needed
    assert f"<b>{result.top(1):.1%}</b>" in text and f"<b>{1 / num_classes:.1%}</b>" in text
    assert '<span class="steep" title="unreadable">unreadable' in text
    assert ("confusion.csv" in text) == (num_classes > MAX_CELLS)
    head, *rows = _read(tmp_path / "confusion.csv")
    assert head[0] == "class" and head[-1] == "unreadable"
    assert [[int(x) for x in row[1:]] for row in rows] == result.confusion().tolist()
    head, *rows = _read(tmp_path / "per_class.csv")
    assert [row[head.index("name")] for row in rows] == list(result.classes or ())
    for label, row in enumerate(rows):
        assert int(row[head.index("videos")]) == (result.labels == label).sum()
    # The clips cannot be read, which the page says of each
    low, high = ends(worst_first(class_results(result.confusion())))
    clips = [*worst(result, MAX_WORST), *(k for r in low for k in clips_of(result, r, right=False))]
    clips += [k for r in high for k in clips_of(result, r, right=True)]
    assert text.count("can no longer be read: no such file") == len(clips)


def test_the_page_says_which_chance_is_whose() -> None:
    """Balanced accuracy is over the classes that have videos: four of five here."""
    result = replace(evaluation(200, 5), labels=np.arange(200) % 5)
    assert "with videos; chance" not in evaluation_page(result, {})
    fewer = replace(result, labels=np.minimum(result.labels, 3))
    text = re.sub(r"(<[^>]*>|\s)+", " ", evaluation_page(fewer, {}))
    assert "20.0% 1 of 5 classes" in text
    assert "mean over the 4 classes with videos; chance 25.0%" in text


@pytest.mark.parametrize(
    ("sizes", "guess"),
    [
        ((2, 2, 2), "one class (33.3%)"),
        ((3, 3, 2), "one of the 2 most frequent classes (37.5%)"),
        ((1, 3, 2), "1, the most frequent class (50.0%)"),
    ],
)
def test_guessing_names_a_class_only_if_it_is_the_most_frequent(
    sizes: tuple[int, ...], guess: str
) -> None:
    labels = np.repeat(np.arange(3), sizes)
    scores = np.eye(3, dtype=np.float32)[labels]
    result = Evaluation(scores, labels, tuple(map(str, labels)), ())
    assert f"the errors of always answering {guess}." in evaluation_page(result, {})


def test_both_axes_of_the_matrix_are_labelled() -> None:
    result = evaluation(40, 3)
    head = re.search(r"<thead>(.*?)</thead>", evaluation_page(result, {}), re.DOTALL)
    assert head is not None and head[1].startswith('<tr><th scope="col" rowspan="2">labelled class')
    width = result.confusion()[:, -1].any() + 3
    assert f'<th scope="colgroup" colspan="{width}">predicted class<tr>' in head[1]
    assert head[1].count('<th scope="col"><') == width


def test_the_cells_of_a_small_matrix() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32)
    result = Evaluation(scores, np.array([0, 1, 1, 1]), ("a", "b", "c", "d"), ())
    text = evaluation_page(result, {})
    rows = re.findall(r'^<tr><th scope="row" title="\d">(\d)(<td class="o.*)$', text, re.MULTILINE)
    assert [label for label, _ in rows] == ["0", "1"]
    cells = [re.findall(r'class="(own|off)"[^>]*>(\d*)', row) for _, row in rows]
    assert cells == [[("own", "1"), ("off", "")], [("off", "2"), ("own", "1")]]


def test_the_ends_are_the_worst_and_the_best_classes() -> None:
    """Ten videos of each of four classes: 10, 9, 5 and 2 right, the wrong ones called 0."""
    labels = np.repeat(np.arange(4), 10)
    predicted = labels.copy()
    for label, right in enumerate((10, 9, 5, 2)):
        predicted[10 * label + right : 10 * label + 10] = 0
    scores = np.full((40, 4), 0.1, dtype=np.float32)
    scores[np.arange(40), predicted] = 0.4 + 0.01 * np.arange(40)
    result = Evaluation(scores, labels, tuple(map(str, range(40))), ())
    low, high = ends(worst_first(class_results(result.confusion())))
    assert ([r.label for r in low], [r.label for r in high]) == ([3, 2], [0, 1])
    assert clips_of(result, low[0], right=False) == [39, 38]  # the surest first
    assert clips_of(result, high[0], right=True) == [9, 8]
    perfect = Evaluation(scores, predicted, result.paths, ())
    assert ends(worst_first(class_results(perfect.confusion())))[0] == []


def test_long_names_of_a_matrix_stay_apart() -> None:
    """And where the picture has no names, the order is said in words."""
    size, names = MAX_CELLS + 1, [f"a rather long class name that ends in {k}" for k in range(31)]
    labels = np.arange(size)
    scores = np.eye(size, dtype=np.float32)[np.roll(labels, 1)]
    result = Evaluation(scores, labels, tuple(map(str, labels)), (), tuple(names))
    text = evaluation_page(result, {})
    heads = re.findall(r'<th scope="row" title="([^"]*)">([^<]+)<td class="o', text)
    assert len(heads) > 10 and len({shown for _, shown in heads}) == len(heads)
    for whole, shown in heads:
        start, _, end = shown.partition("…")
        assert end and whole.startswith(start) and whole.endswith(end)
    assert "from 0 a rather long class name that ends in 0 to 30 a rather" in text


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["single", "several"])
def test_names_without_a_blank_leave_the_page_as_wide_as_the_window(
    browser: Any, tmp_path: Path, kind: str
) -> None:
    names = tuple(f"{letter * 119}{k}" for k, letter in enumerate("abc"))
    scores = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.1, 0.8, 0.1]], dtype=np.float32)
    paths = tuple(f"/{'v' * 120}{k}.mp4" for k in range(3))
    single = Evaluation(scores, np.array([0, 0, 1]), paths, ((2, "gone"),), names)
    labels = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=bool)
    several = SeveralLabels(scores, labels, paths, (), names, {}, (0.5, 0.5, 0.5))
    (file := tmp_path / "index.html").write_text(
        evaluation_page(single, {}) if kind == "single" else several_labels_page(several, {})
    )
    for width in (400, 1400):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(file.as_uri())
        page = "return document.documentElement.scrollWidth"
        assert browser.execute_script(page) <= width
        inside = """return [...document.querySelectorAll(".wide:not(.cells)")].map(
            (box) => [box.getAttribute("aria-label"), box.scrollWidth - box.clientWidth])"""
        if width == 1400:
            assert [name for name, hidden in browser.execute_script(inside) if hidden > 0] == []
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_of_many_classes_those_that_are_confused_are_written_out() -> None:
    confusion = np.diag([5] * 40)
    confusion[7, 30], confusion[30, 7], confusion[2, 9], confusion[4, 5] = 4, 3, 2, 1
    confusion = np.pad(confusion, ((0, 0), (0, 1)))
    assert most_confused(confusion, 4) == [2, 7, 9, 30]
    assert most_confused(confusion, 5) == [2, 7, 9, 30]
    assert most_confused(confusion, 6) == [2, 4, 5, 7, 9, 30]


def test_the_picture_of_a_large_matrix_is_as_opaque_as_cells_are_large() -> None:
    shares = np.zeros((40, 41))
    shares[1, 2], shares[3, 40] = 1.0, 0.25
    picture = Image.open(io.BytesIO(matrix_picture(shares)))
    opacity = np.asarray(picture)[10::20, 10::20, 3]  # in the middle of cells of 20 pixels
    assert (opacity[1, 2], opacity[3, 40]) == (255, 128)  # the root of a share
    assert opacity.shape == (40, 41) and np.count_nonzero(opacity) == 2


def test_nothing_in_a_name_is_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>&$x_{1}$"
    scores = np.array([[0.9, 0.1], [0.9, 0.1]], dtype=np.float32)
    result = Evaluation(
        *(scores, np.array([1, 0]), (f"/{nasty}.mp4", "\udcff.mp4"), ((1, nasty),)),
        *((nasty, "b"), {"checkpoint": nasty}),
    )
    text = write_evaluation(result, tmp_path, num_workers=0, timeout_s=None).read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "\\udcff" in text


def test_a_strip_shows_frames_of_the_whole_video(tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", 80, size=(96, 64))
    strip = np.asarray(Image.open(io.BytesIO(frame_strip(str(path)))))
    assert strip.shape == (96, 8 * 64, 3)
    frames = strip.reshape(96, 8, 64, 3).transpose(1, 0, 2, 3)
    assert frame_numbers(frames[:, 8:-8, 8:-8]) == [5, 15, 25, 35, 45, 55, 65, 75]


def test_the_page_has_the_strips_of_the_worst_clips(tmp_path: Path) -> None:
    paths = tuple(str(write_indexed_video(tmp_path / f"{k}.mp4", 20)) for k in range(3))
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]], dtype=np.float32)
    result = Evaluation(scores, np.array([1, 1, 0]), paths, ())
    text = write_evaluation(result, tmp_path / "out", num_workers=0, timeout_s=None).read_text()
    assert text.count("data:image/jpeg;base64,") == 4  # with those of the classes
    _, mistakes = text.split("Most confident mistakes")
    first, second = "predicted 0 (0.900), labelled 1 (0.100)", "predicted 1 (0.600), labelled 0"
    assert mistakes.index(first) < mistakes.index(second)
