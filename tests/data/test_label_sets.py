"""Several labels per video in lists: what is read, what is refused, and that nothing else moves."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from hpm_video.config import LabelsConfig
from hpm_video.data.lists.manifest import Manifest, check_fits_model, read_manifest, require_labels

BY_CELL = LabelsConfig(separator=";")
BY_COLUMN = LabelsConfig(columns=["Is_Red", "is_*"])


def _list(folder: Path, text: str, name: str = "list.csv") -> Path:
    file = folder / name
    file.write_text(text)
    return file


def _sets(manifest: Manifest) -> list[list[int]]:
    sets = manifest.label_sets
    assert sets is not None
    return [sets.of(index).tolist() for index in range(len(manifest))]


@pytest.mark.parametrize(
    ("separator", "cells", "expected"),
    [
        (";", ["b;a", "c", "", "a; c ;b"], [[0, 1], [2], [], [0, 1, 2]]),
        ("|", ["b|a|b", "c|", "c;|a", ""], [[0, 1], [2], [0, 3], []]),
        (",", ['"b,a"', "c", '"c,a"', "a"], [[0, 1], [2], [0, 2], [0]]),
        (" ", ["2 0", "-1", "1", "0 0 2"], [[0, 2], [], [1], [0, 2]]),
        ("::", ["b::a", "c", "a", "b"], [[0, 1], [2], [0], [1]]),
    ],
)
def test_labels_in_a_cell(
    tmp_path: Path, separator: str, cells: list[str], expected: list[list[int]]
) -> None:
    rows = "".join(f"v{row}.mp4,{cell}\n" for row, cell in enumerate(cells))
    file = _list(tmp_path, f"path,label\n{rows}")
    manifest = read_manifest(file, several=LabelsConfig(separator=separator))
    assert _sets(manifest) == expected
    assert manifest.num_classes == max(map(max, filter(None, expected))) + 1
    assert all(manifest.label(index) == -1 for index in range(4)), "none is taken for a single one"
    targets = manifest.targets(np.array([3, 0]))
    assert targets.dtype == np.float32
    for row, index in zip(targets, (3, 0), strict=True):
        assert np.flatnonzero(row).tolist() == expected[index]
    without = expected.count([])
    assert any(f"{without} videos have no label" in note for note in manifest.notes) == (
        without > 0
    )


def test_labels_in_columns_are_those_in_cells(tmp_path: Path) -> None:
    columns = _list(
        tmp_path,
        "path,IS_BIG,label,is_red,num_frames,Is_Far\n"
        "a.mp4,1,x,1.0,8,0\nb.mp4,0,,0,8,false\nc.mp4,True,,0,8,0\n",
    )
    manifest = read_manifest(columns, several=BY_COLUMN)
    assert manifest.classes == ("Is_Red", "is_big", "is_far"), "a class without videos counts"
    assert _sets(manifest) == [[0, 1], [], [1]]
    assert any("column label is not used" in note for note in manifest.notes)
    assert not any("unused columns" in note for note in manifest.notes)
    cells = _list(tmp_path, "path,label\na.mp4,is_big;Is_Red\nb.mp4,\nc.mp4,is_big\n", "cells.csv")
    other = read_manifest(cells, classes=manifest.classes, several=BY_CELL)
    assert _sets(other) == _sets(manifest) and other.classes == manifest.classes


def test_lists_are_joined_and_classes_kept(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("z\na\nb\n")
    files = [_list(tmp_path, "path,label\na.mp4,a;z\n", "1.csv")]
    files.append(_list(tmp_path, "path,label\nb.mp4,b\nc.mp4,b;a\n", "2.csv"))
    manifest = read_manifest(files, several=BY_CELL)
    assert _sets(manifest) == [[0, 1], [2], [1, 2]] and manifest.classes == ("z", "a", "b")


def test_labels_stay_in_buffers(tmp_path: Path) -> None:
    rows = "".join(f"v{row}.mp4,a;b;{'c' if row % 3 else 'd'}\n" for row in range(3000))
    sets = read_manifest(_list(tmp_path, f"path,label\n{rows}"), several=BY_CELL).label_sets
    assert sets is not None
    held = [vars(sets)[name] for name in vars(sets).keys() - {"separator"}]
    assert all(type(value) is np.ndarray and value.dtype == np.int64 for value in held)
    assert sum(value.nbytes for value in held) == 8 * (3000 + 9000)


def test_digests(tmp_path: Path) -> None:
    """That of a list of one label is what it was before there were several."""
    one = read_manifest(_list(tmp_path, "path,label\na.mp4,x\nb.mp4,y\n"))
    ends = np.array([5, 10], dtype=np.int64).tobytes()
    labels = np.array([0, 1], dtype=np.int64).tobytes()
    assert one.digest() == hashlib.sha256(b"a.mp4b.mp4" + ends + labels + b"x\ny").hexdigest()
    digests = {one.digest()}
    for number, cells in enumerate((("x;y", "y"), ("x", "y;x"), ("x;y", "x"), ("y; x", "y"))):
        rows = "".join(f"{name}.mp4,{cell}\n" for name, cell in zip("ab", cells, strict=True))
        file = _list(tmp_path, f"path,label\n{rows}", f"{number}.csv")
        digests.add(read_manifest(file, several=BY_CELL).digest())
    assert len(digests) == 4, "the last list is the second one, spelled otherwise"


@pytest.mark.parametrize(
    ("several", "text", "rule"),
    [
        (None, "path,label\na.mp4,x;y\nb.mp4,x\nc.mp4,y\n", "if videos have several, set"),
        (LabelsConfig(separator="|"), "path,label\na.mp4,x;y\nb.mp4,x\nc.mp4,y\n", "label (x;y)"),
        (BY_COLUMN, "path,is_red\na.mp4,2\nb.mp4,1\n", ":2: is_red (2) must be 0 or 1"),
        (BY_COLUMN, "path,is_red\na.mp4,\nb.mp4,1\n", ":2: is_red () must be 0 or 1"),
        (BY_COLUMN, "path,red\na.mp4,1\n", "labels.columns (Is_Red) must name columns of"),
        (LabelsConfig(columns=["num_frames"]), "path,num_frames\na.mp4,1\n", "must name columns"),
        (BY_CELL, "path,label\na.mp4,x;1.5\nb.mp4,y\n", "label (1.5) must be a whole number"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    tmp_path: Path, several: LabelsConfig | None, text: str, rule: str
) -> None:
    with pytest.raises(ValueError) as refused:
        read_manifest(_list(tmp_path, text), several=several)
    assert rule in str(refused.value) and "\n" not in str(refused.value)


def test_a_separator_stands_in_no_class_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("push; pull\nrest\n")
    with pytest.raises(ValueError, match=r"labels.separator \(';'\) must not occur in class names"):
        read_manifest(_list(tmp_path, "path,label\na.mp4,rest\n"), several=BY_CELL)


def test_a_list_of_one_label_does_not_become_one_of_several(tmp_path: Path) -> None:
    file = _list(tmp_path, "path,label\na.mp4,x\nb.mp4,y\n")
    manifest = read_manifest(file, several=BY_CELL)
    with pytest.raises(ValueError, match="no video has several labels; unset it"):
        require_labels(manifest, name="data.manifest", lists=[str(file)])


def test_labels_beyond_the_model_are_named(tmp_path: Path) -> None:
    file = _list(tmp_path, "path,label\na.mp4,0;1\nb.mp4,\nc.mp4,1;3\n")
    manifest = read_manifest(file, several=BY_CELL)
    check_fits_model(manifest, 4)
    with pytest.raises(ValueError, match=r"label \(3\) of .*c\.mp4 must be in \[0, 2\]"):
        check_fits_model(manifest, 3)


@pytest.mark.parametrize("several", [None, BY_CELL])
@pytest.mark.parametrize("text", ["path,is_a\na.mp4,1\nb.mp4,0\n", "path,label\na.mp4,\n"])
def test_a_list_without_labels_is_no_list_to_judge_by(
    tmp_path: Path, text: str, several: LabelsConfig | None
) -> None:
    file = _list(tmp_path, text)
    manifest = read_manifest(file, classes=("a", "b"), several=several)
    with pytest.raises(ValueError, match=r"must have labels, but has none .* labels.columns"):
        check_fits_model(manifest, 2)


@pytest.mark.parametrize("separator", ["", "a", "7", '"', "-", " + "])
def test_separators_that_labels_may_hold_are_refused(separator: str) -> None:
    with pytest.raises(ValueError, match=r"labels.separator \("):
        LabelsConfig(separator=separator)
