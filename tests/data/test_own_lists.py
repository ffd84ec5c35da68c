"""Lists of own videos: what is learnt from, what is judged on, what is no class."""

import os
import shlex
import shutil
from pathlib import Path

import pytest

from hpm_video.data.lists.frame_index import FrameIndex, index_beside
from hpm_video.data.prepare.check import check_manifest
from hpm_video.data.prepare.own_lists import (
    hold_out,
    hold_out_of,
    list_own_videos,
    rows_of,
    start_of,
)


def _videos(toy: Path, *names: str) -> None:
    video = next(toy.parent.rglob("*.mp4"))
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, name)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").mkdir()


def _listed(
    source: str, *, held_out: float = 0.0, **how: object
) -> tuple[dict[str, list[tuple[str, str]]], str]:
    lists, notes = list_own_videos(source, Path("out"), **how)  # type: ignore[arg-type]
    if held_out:
        check_manifest(lists["train"], quick=True, num_workers=2)
        notes += hold_out_of(lists, held_out, start=start_of(source, None))
    found = {
        part: [
            (os.path.relpath(row["path"], os.path.abspath(source)), row.get("label", ""))
            for row in rows_of(file)
        ]
        for part, file in lists.items()
    }
    return found, " | ".join(notes)


def test_a_share_of_each_class_is_held_out(toy: Path) -> None:
    _videos(toy, *(f"v/{name}/{number}.mp4" for name in "ab" for number in range(10)))
    _videos(toy, "v/rare/1.mp4", "v/pair/1.mp4", "v/pair/2.mp4")
    found, notes = _listed("v", held_out=0.2)
    labels = [label for _, label in found["val"]]
    assert sorted(labels) == ["0", "0", "1", "1", "2"] and len(found["train"]) == 18
    assert not set(found["train"]) & set(found["val"])
    assert "held out for evaluation: 5 videos, 20% of each class" in notes
    assert Path("out/classes.txt").read_text().split() == ["a", "b", "pair", "rare"]


def test_unreadable_videos_are_not_held_out(toy: Path) -> None:
    _videos(toy, *(f"v/{name}/{number}.mp4" for name in "ab" for number in range(2)))
    (first, _), (other, _) = _listed("v", held_out=0.2)[0]["val"]
    for name in (first, other):  # what a hash of the paths would pick
        (Path("v") / name).write_bytes(b"no video")
    Path("out/val.csv").unlink()
    found, notes = _listed("v", held_out=0.2)
    assert found.keys() == {"train"} and "nothing is held out for evaluation" in notes
    _videos(toy, "v/a/3.mp4", "v/b/3.mp4")
    found, _ = _listed("v", held_out=0.2)
    assert [label for _, label in found["val"]] == ["0", "1"]
    assert not {first, other} & {path for path, _ in found["val"]}
    for part, size in (("train", 2), ("val", 2)):
        file = Path(f"out/{part}.csv")
        index = FrameIndex(index_beside(file))
        assert len(index) == size
        tables = {row["path"]: index.get(row["path"]) for row in rows_of(file)}
        assert all(tables[row["path"]] for row in rows_of(file) if row["status"] == "ok")


def test_what_is_held_out_is_the_same_elsewhere() -> None:
    rows = [{"path": f"/x/{i}.mp4", "label": str(i % 3)} for i in range(60)]
    moved = [{**row, "path": row["path"].replace("/x/", "/else/where/")} for row in rows]
    _, one = hold_out(rows, 0.2, start="/x")
    _, other = hold_out(moved[::-1], 0.2, start="/else/where")
    assert {os.path.basename(row["path"]) for row in one} == {
        os.path.basename(row["path"]) for row in other
    }
    assert len(one) == 12 and hold_out(rows, 0, start="/x") == (rows, [])


def test_parts_of_a_video_stay_together() -> None:
    rows = [{"path": f"/x/{i // 4}.mp4", "start_s": str(i), "label": str(i % 2)} for i in range(80)]
    learnt, held = hold_out(rows, 0.25, start="/x")
    assert held and not {row["path"] for row in learnt} & {row["path"] for row in held}


def test_folders_for_the_parts_are_taken(toy: Path) -> None:
    for part in ("train", "Validation", "test"):
        _videos(toy, f"v/{part}/a/{part}.mp4", f"v/{part}/b/{part}.mp4")
    found, notes = _listed("v", held_out=0.2)
    assert {part: [os.path.basename(path) for path, _ in rows] for part, rows in found.items()} == {
        "train": ["train.mp4"] * 2, "val": ["Validation.mp4"] * 2, "test": ["test.mp4"] * 2,
    }  # fmt: skip
    assert [label for _, label in found["test"]] == ["0", "1"] and "held out" not in notes


def test_a_list_with_a_column_of_splits(toy: Path) -> None:
    _videos(toy, "v/1.mp4", "v/2.mp4", "v/3.mp4")
    Path("v/all.csv").write_text(
        "path,label,split\n1.mp4,x,train\n2.mp4,y,train\n3.mp4,x,validation\n"
    )
    lists, _ = list_own_videos("v/all.csv", Path("out"))
    assert {part: len(rows_of(file)) for part, file in lists.items()} == {"train": 2, "val": 1}


def test_others_to_judge_on(toy: Path) -> None:
    _videos(toy, "v/a/1.mp4", "v/b/2.mp4", "other/b/3.mp4")
    found, _ = _listed("v", val="other")
    assert len(found["train"]) == 2
    assert [label for _, label in found["val"]] == ["1"]


def test_classes_to_judge_on_are_those_learnt(toy: Path) -> None:
    _videos(toy, "v/train/a/1.mp4", "v/train/b/2.mp4", "v/val/b/3.mp4", "v/val/c/4.mp4")
    with pytest.raises(ValueError, match=r"folder \(c\) .* classes \(a, b\), or move them away$"):
        _listed("v")


def test_folders_that_are_no_classes(toy: Path) -> None:
    _videos(toy, "v/monday/1.mp4", "v/tuesday/2.mp4", "v/3.mp4")
    with pytest.raises(ValueError, match="--no-labels lists all videos"):
        _listed("v")
    found, notes = _listed("v", labels=False)
    assert {label for _, label in found["train"]} == {""} and found.keys() == {"train"}
    assert len(found["train"]) == 3 and "no labels" in notes
    assert not Path("out/classes.txt").exists()


def test_one_class_is_none(toy: Path) -> None:
    _videos(toy, "v/only/1.mp4", "v/only/2.mp4")
    found, notes = _listed("v")
    assert {label for _, label in found["train"]} == {""} and "one class" in notes
    assert not Path("out/classes.txt").exists()


def test_tars_are_to_be_named() -> None:
    Path("it's").mkdir()
    Path("it's/b.tar").touch()
    Path("it's/a.tar").touch()
    with pytest.raises(ValueError, match=r"hpm-video start 'it'\"'\"'s/a\.tar'"):
        _listed("it's")


def test_folders_beside_those_of_the_parts(toy: Path) -> None:
    _videos(toy, "v/train/a/1.mp4", "v/train/b/2.mp4", "v/val/a/3.mp4", "v/val/b/4.mp4")
    Path("v/out/check").mkdir(parents=True)  # as of an earlier start, without videos
    found, _ = _listed("v")
    assert found["train"] == [("train/a/1.mp4", "0"), ("train/b/2.mp4", "1")]
    assert found["val"] == [("val/a/3.mp4", "0"), ("val/b/4.mp4", "1")]
    _videos(toy, "v/raw/5.mp4")
    with pytest.raises(ValueError, match=r"v/raw also has videos: move it away, .* --val v/val$"):
        _listed("v")
    Path("out/classes.txt").unlink()
    _videos(toy, "cars/train/1.mp4", "cars/bus/2.mp4")  # vehicles
    found, _ = _listed("cars", held_out=0)
    assert [label for _, label in found["train"]] == ["0", "1"]


def test_what_is_judged_on_is_not_what_was_learnt(toy: Path) -> None:
    _videos(toy, "v/a/1.mp4", "v/b/2.mp4", "w/a/3.mp4", "w/b/4.mp4", "flat/5.mp4")
    with pytest.raises(ValueError, match=r"must differ .* 2 of 2 videos are in both; with"):
        _listed("v", val="v")
    Path("x/a").mkdir(parents=True)
    Path("x/b").mkdir()
    Path("x/a/6.mp4").symlink_to(Path("v/a/1.mp4").resolve())
    shutil.copy("w/b/4.mp4", "x/b/7.mp4")
    Path("x/b/7.mp4").write_bytes(Path("x/b/7.mp4").read_bytes() + b"other")
    _, notes = _listed("v", val="x")
    assert "1 of 2 videos (1 linked) of out/val.csv are also training videos" in notes
    with pytest.raises(ValueError, match=r"^the val videos must have labels.*--no-labels"):
        _listed("v", val="flat")
    Path("out/classes.txt").unlink()
    Path("all.csv").write_text("path,label\nv/a/1.mp4,x\nv/b/2.mp4,y\n")
    found, _ = _listed("all.csv", val="flat", labels=False)
    assert {label for rows in found.values() for _, label in rows} == {""}


def test_folders_in_folders_may_be_the_classes(toy: Path) -> None:
    _videos(toy, *(f"v/subject{k}/{name}/1.mp4" for k in (1, 2) for name in ("wave", "jump")))
    with pytest.raises(ValueError, match=r"subject1, subject2 have .* same names \(jump, wave\)"):
        _listed("v")
    assert "the folders in them" not in _listed("v", labels=False)[1]
    Path("out/classes.txt").unlink(missing_ok=True)
    _videos(
        toy, "v/train/subject3/wave/1.mp4", "v/train/subject4/wave/2.mp4", "v/val/subject3/3.mp4"
    )
    Path("v/subject1").rename("subject1")
    Path("v/subject2").rename("subject2")
    with pytest.raises(ValueError, match=r"start out_list/list.csv --val v/val -o out$"):
        _listed("v")
    Path("out/classes.txt").unlink(missing_ok=True)
    _videos(toy, "w/wave/monday/1.mp4", "w/jump/tuesday/1.mp4")
    assert "the folders in them" not in _listed("w")[1]


def test_blanks_around_the_names_of_folders(toy: Path) -> None:
    _videos(toy, "v/ a/1.mp4", "v/b /2.mp4", "v/b/3.mp4", "v/c/4.mp4")
    found, notes = _listed("v")
    assert sorted(found["train"]) == [
        (" a/1.mp4", "0"), ("b /2.mp4", "1"), ("b/3.mp4", "1"), ("c/4.mp4", "2"),
    ]  # fmt: skip
    assert Path("out/classes.txt").read_text() == "a\nb\nc\n"
    assert "differ only in outer spaces are one class: b " in notes
    Path("v/c").rename("v/c\n2")
    with pytest.raises(ValueError, match="rename the class or its folder"):
        list_own_videos("v", Path("new"))


def test_a_list_of_which_no_video_is_there(toy: Path) -> None:
    _videos(toy, "videos/a/1.mp4")
    Path("lists").mkdir()
    Path("lists/all.csv").write_text("path,label\na/1.mp4,x\n")
    with pytest.raises(ValueError, match=r"exists, e.g. a/1.mp4: add --root ") as refusal:
        list_own_videos("lists/all.csv", Path("out"))
    (_, root) = shlex.split(str(refusal.value).partition(": add ")[2])
    lists, _ = list_own_videos("lists/all.csv", Path("out"), root=root)
    assert len(rows_of(lists["train"])) == 1
    Path("lists/all.csv").write_text("path,label\nnowhere/1.mp4,x\n")
    with pytest.raises(ValueError, match=r"--root DIR, with the folder .* nowhere/1.mp4"):
        list_own_videos("lists/all.csv", Path("out"))
