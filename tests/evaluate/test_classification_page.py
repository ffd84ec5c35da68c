"""The page and tables of an evaluation: their figures, pictures of the right clips, no markup."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_predictions import evaluation
from videos import frame_numbers, write_indexed_video

from hpm_video.evaluate.classification_page import (
    MAX_CELLS,
    MAX_WORST,
    class_results,
    confused_pairs,
    evaluation_page,
    frame_strip,
    worst,
    write_evaluation,
)
from hpm_video.evaluate.predictions import Evaluation


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
    assert f"top1 {result.top(1):.4f}" in text
    assert ("<th>unreadable" in text) and ("confusion.csv" in text) == (num_classes > MAX_CELLS)
    head, *rows = _read(tmp_path / "confusion.csv")
    assert head[0] == "class" and head[-1] == "unreadable"
    assert [[int(x) for x in row[1:]] for row in rows] == result.confusion().tolist()
    head, *rows = _read(tmp_path / "per_class.csv")
    assert [row[head.index("name")] for row in rows] == list(result.classes or ())
    for label, row in enumerate(rows):
        assert int(row[head.index("videos")]) == (result.labels == label).sum()
    # The clips cannot be read, which the page says of each
    assert text.count("cannot be read any more: no such file") == len(worst(result, MAX_WORST))


def test_the_cells_of_a_small_matrix() -> None:
    scores = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]], dtype=np.float32)
    result = Evaluation(scores, np.array([0, 1, 1, 1]), ("a", "b", "c", "d"), ())
    text = evaluation_page(result, {})
    rows = re.findall(r"^<tr><th>(\d)<td(.*)$", text, re.MULTILINE)
    cells = [[cell.split(">")[1] for cell in row.split("<td")] for _, row in rows]
    assert [label for label, _ in rows] == ["0", "1"]
    assert [[cell.split("<")[0] for cell in row] for row in cells] == [["1", ""], ["2", "1"]]


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
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.index("called 0 (0.900), is 1 (0.100)") < text.index("called 1 (0.600), is 0")
