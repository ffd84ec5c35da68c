"""`hpm-video data list` on small trees with the official files in their official forms."""

import csv
import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.official import DATA_SETS


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# ---- trees as the data sets come -------------------------------------------------------------


def _fill(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"video")


def _text(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


SSV2_LABELS = {"Holding something": "0", "Turning something upside down": "1", "Putting a, b": "2"}


@pytest.fixture
def ssv2(tmp_path: Path) -> Path:
    folder = tmp_path / "ssv2"
    _fill(folder, [f"20bn-something-something-v2/{i}.webm" for i in (78687, 1, 2, 4, 100, 101)])

    def entry(identity: str, template: str) -> dict[str, object]:
        filled = template.replace("[something]", "a cup")
        return {"id": identity, "label": filled, "template": template, "placeholders": ["a cup"]}

    labels = folder / "labels"
    labels.mkdir()
    (labels / "labels.json").write_text(json.dumps(SSV2_LABELS))
    train = [
        entry("78687", "Holding [something]"),
        entry("1", "Turning [something] upside down"),
        entry("3", "Putting [a], [b]"),  # is not there
        entry("2", "Putting [a], [b]"),
    ]
    (labels / "train.json").write_text(json.dumps(train))
    (labels / "validation.json").write_text(json.dumps([entry("4", "Holding [something]")]))
    (labels / "test.json").write_text(json.dumps([{"id": "100"}, {"id": "101"}]))
    _text(labels / "test-answers.csv", "100;Putting a, b", "101;Turning something upside down")
    return folder


@pytest.fixture
def kinetics(tmp_path: Path) -> Path:
    folder = tmp_path / "k400"
    _text(
        folder / "annotations/train.csv",
        "label,youtube_id,time_start,time_end,split,is_cc",
        '"testing apple",---QUuC4vJs,84,94,train,0',
        "abseiling,-0abc_DEF-x,7,17,train,0",
        "zumba,zzzzzzzzzzz,0,10,train,0",
        "zumba,gone0000000,0,10,train,0",
    )
    _text(
        folder / "annotations/val.csv",
        "label,youtube_id,time_start,time_end,split",
        "zumba,vvvvvvvvvvv,1000,1010,val",
    )
    _text(
        folder / "annotations/test.csv",
        "youtube_id,time_start,time_end,split",
        "ttttttttttt,3,13,test",
    )
    _fill(
        folder,
        [
            "train/testing apple/---QUuC4vJs_000084_000094.mp4",
            "train/abseiling/-0abc_DEF-x_000007_000017.mkv",
            "train/zumba/zzzzzzzzzzz.mp4",
            "val/vvvvvvvvvvv_001000_001010.mp4",
            "test/ttttttttttt_000003_000013.mp4",
        ],
    )
    return folder


@pytest.fixture
def ucf101(tmp_path: Path) -> Path:
    folder = tmp_path / "ucf101"
    lists = folder / "ucfTrainTestlist"
    _text(lists / "classInd.txt", "1 ApplyEyeMakeup", "2 YoYo", "3 Archery")
    for fold in (1, 2, 3):
        _text(
            lists / f"trainlist0{fold}.txt",
            f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{fold}_c01.avi 1",
            f"Archery/v_Archery_g0{fold}_c01.avi 3",
        )
        _text(lists / f"testlist0{fold}.txt", f"YoYo/v_YoYo_g0{fold}_c02.avi")
    _fill(
        folder / "UCF-101",
        [
            *(f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{fold}_c01.avi" for fold in (1, 2, 3)),
            *(f"Archery/v_Archery_g0{fold}_c01.avi" for fold in (1, 2, 3)),
            *(f"YoYo/v_YoYo_g0{fold}_c02.avi" for fold in (1, 2, 3)),
        ],
    )
    return folder


HMDB = "#20_Rhythm_{}_u_nm_np1_fr_goo_{}.avi"


@pytest.fixture
def hmdb51(tmp_path: Path) -> Path:
    folder = tmp_path / "hmdb51"
    for name in ("wave", "brush_hair"):
        _fill(folder / "videos" / name, [HMDB.format(name, i) for i in range(4)])
        for fold in (1, 2, 3):
            uses = {0: 1, 1: 2, 2: 0, 3: 1 if fold == 3 else 2}
            _text(
                folder / f"testTrainMulti_7030_splits/{name}_test_split{fold}.txt",
                *(f"{HMDB.format(name, i)} {use} " for i, use in uses.items()),
            )
    return folder


# ---- what is listed ----------------------------------------------------------------------------


def _list(*arguments: object) -> int:
    return main(["data", "list", *map(str, arguments)])


def _rows(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="") as file:
        return [(row["path"], row.get("label", "")) for row in csv.DictReader(file)]


def _refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert _list(*arguments) == 2
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1, printed
    return printed


def test_something_something_v2(ssv2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ssv2 / "train.csv"
    assert _list("--ssv2", ssv2, "-o", output) == 0
    videos = "20bn-something-something-v2"
    assert _rows(output) == [
        (f"{videos}/78687.webm", "0"),
        (f"{videos}/1.webm", "1"),
        (f"{videos}/2.webm", "2"),
    ]
    assert (ssv2 / "classes.txt").read_text().splitlines() == list(SSV2_LABELS)
    assert _rows(ssv2 / "train_missing.csv") == [("3.webm", "2")]
    assert capsys.readouterr().out.splitlines() == [
        f"{output}: 3 videos of 3 classes; 1 of 4 are missing, listed in {ssv2}/train_missing.csv"
    ]
    manifest = read_manifest(output)
    assert os.path.isfile(manifest.path(0)) and manifest.classes == tuple(SSV2_LABELS)

    assert _list("--ssv2", ssv2, "--split", "val", "-o", ssv2 / "val.csv") == 0
    assert capsys.readouterr().out == f"{ssv2}/val.csv: 1 videos of 3 classes, none missing\n"
    assert _rows(ssv2 / "val.csv") == [(f"{videos}/4.webm", "0")]
    assert not (ssv2 / "val_missing.csv").exists()
    assert _list("--ssv2", ssv2, "--split", "test", "-o", ssv2 / "test.csv") == 0
    assert [label for _, label in _rows(ssv2 / "test.csv")] == ["2", "1"]


def test_ssv2_test_split_without_answers_has_no_labels(
    ssv2: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ssv2 / "labels/test-answers.csv").unlink()
    assert _list("--ssv2", ssv2, "--split", "test", "-o", ssv2 / "test.csv") == 0
    assert "note: 2 videos have no label" in capsys.readouterr().out
    assert read_manifest(ssv2 / "test.csv").labels.tolist() == [-1, -1]


def test_videos_that_come_later_are_no_longer_missing(ssv2: Path) -> None:
    assert _list("--ssv2", ssv2, "-o", ssv2 / "train.csv") == 0
    _fill(ssv2, ["mended/3.mp4"])  # re-encoded
    assert _list("--ssv2", ssv2, "-o", ssv2 / "train.csv") == 0
    assert _rows(ssv2 / "train.csv")[2] == ("mended/3.mp4", "2")
    assert not (ssv2 / "train_missing.csv").exists()


def test_kinetics(kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lists" / "train.csv"
    assert _list("--kinetics", kinetics, "-o", output) == 0
    assert _rows(output) == [  # absolute, as the videos do not lie below the manifest
        (f"{kinetics}/train/testing apple/---QUuC4vJs_000084_000094.mp4", "1"),
        (f"{kinetics}/train/abseiling/-0abc_DEF-x_000007_000017.mkv", "0"),
        (f"{kinetics}/train/zumba/zzzzzzzzzzz.mp4", "2"),
    ]
    assert (output.parent / "classes.txt").read_text() == "abseiling\ntesting apple\nzumba\n"
    assert _rows(tmp_path / "lists/train_missing.csv") == [
        ("zumba/gone0000000_000000_000010.mp4", "2")
    ]
    assert "3 videos of 3 classes; 1 of 4 are missing" in capsys.readouterr().out
    # The numbers of the training list's classes, though only one of them occurs
    assert _list("--kinetics", kinetics, "--split", "val", "-o", output.parent / "val.csv") == 0
    assert [label for _, label in _rows(output.parent / "val.csv")] == ["2"]
    assert _list("--kinetics", kinetics, "--split", "test", "-o", output.parent / "test.csv") == 0
    assert _rows(output.parent / "test.csv") == [
        (f"{kinetics}/test/ttttttttttt_000003_000013.mp4", "")
    ]


def test_kinetics_replacements_of_corrupt_videos_come_first(kinetics: Path) -> None:
    """As the CVDF's scripts put both."""
    name = "---QUuC4vJs_000084_000094.mp4"
    (kinetics / "train/testing apple" / name).rename(kinetics / "train" / name)
    _fill(kinetics, [f"replacement/replacement_for_corrupted_k400/{name}"])
    assert _list("--kinetics", kinetics, "-o", kinetics / "m.csv") == 0
    replacement = f"replacement/replacement_for_corrupted_k400/{name}"
    assert _rows(kinetics / "m.csv")[0] == (replacement, "1")


@pytest.mark.parametrize("folder", ["testing_apple", "Testing-Apple", "testing apple"])
def test_a_video_in_its_class_folder_comes_before_a_copy(kinetics: Path, folder: str) -> None:
    name = "---QUuC4vJs_000084_000094.mp4"
    _fill(kinetics, [f"a copy/{name}", f"z/{folder}/{name}"])
    (kinetics / "train/testing apple" / name).unlink()
    assert _list("--kinetics", kinetics, "-o", kinetics / "m.csv") == 0
    assert _rows(kinetics / "m.csv")[0] == (f"z/{folder}/{name}", "1")


def test_a_youtube_id_alone_must_not_stand_for_two_clips(kinetics: Path) -> None:
    with (kinetics / "annotations/train.csv").open("a") as file:
        file.write("abseiling,zzzzzzzzzzz,20,30,train,0\n")
    assert _list("--kinetics", kinetics, "-o", kinetics / "m.csv") == 0
    assert {name for name, _ in _rows(kinetics / "m_missing.csv")} == {
        "zumba/gone0000000_000000_000010.mp4",
        "zumba/zzzzzzzzzzz_000000_000010.mp4",
        "abseiling/zzzzzzzzzzz_000020_000030.mp4",
    }


def test_our_own_lists_are_not_taken_for_official_ones(kinetics: Path) -> None:
    """Both are called train.csv."""
    for _ in range(2):
        assert _list("--kinetics", kinetics, "-o", kinetics / "train.csv") == 0
        assert _list("--kinetics", kinetics, "--split", "val", "-o", kinetics / "val.csv") == 0
    assert len(_rows(kinetics / "train.csv")) == 3


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_ucf101(ucf101: Path, fold: int) -> None:
    arguments = ("--ucf101", ucf101, "--fold", fold, "-o", ucf101 / "m.csv")
    assert _list(*arguments) == 0
    assert _rows(ucf101 / "m.csv") == [
        (f"UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g0{fold}_c01.avi", "0"),
        (f"UCF-101/Archery/v_Archery_g0{fold}_c01.avi", "2"),
    ]
    assert (ucf101 / "classes.txt").read_text().split() == ["ApplyEyeMakeup", "YoYo", "Archery"]
    assert _list(*arguments, "--split", "test") == 0
    assert _rows(ucf101 / "m.csv") == [(f"UCF-101/YoYo/v_YoYo_g0{fold}_c02.avi", "1")]


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_hmdb51(hmdb51: Path, fold: int) -> None:
    uses = {"train": [0, 3] if fold == 3 else [0], "test": [1] if fold == 3 else [1, 3]}
    for split, indices in uses.items():
        output = hmdb51 / f"{split}.csv"
        assert _list("--hmdb51", hmdb51, "--split", split, "--fold", fold, "-o", output) == 0
        assert _rows(output) == [
            (f"videos/{name}/{HMDB.format(name, i)}", str(label))
            for label, name in enumerate(("brush_hair", "wave"))
            for i in indices
        ]
        manifest = read_manifest(output)  # names that begin with #
        assert all(os.path.isfile(manifest.path(i)) for i in range(len(manifest)))


def test_official_files_elsewhere(ucf101: Path, tmp_path: Path) -> None:
    lists = (ucf101 / "ucfTrainTestlist").rename(tmp_path / "lists")
    arguments = ("--ucf101", ucf101, "-o", tmp_path / "m.csv")
    assert _list(*arguments) == 2
    assert _list(*arguments, "--annotations", lists) == 0


def test_classes_in_another_order(ucf101: Path, tmp_path: Path) -> None:
    _text(tmp_path / "order.txt", "Archery", "YoYo", "Sleeping", "ApplyEyeMakeup")
    output = tmp_path / "out" / "m.csv"
    assert _list("--ucf101", ucf101, "--classes", tmp_path / "order.txt", "-o", output) == 0
    assert [label for _, label in _rows(output)] == ["3", "0"]
    assert read_manifest(output).num_classes == 4


# ---- a folder per class ------------------------------------------------------------------------


def test_a_folder_per_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "my set"
    _fill(
        folder,
        [
            *("walk/b.mp4", "walk/deep/er/a.WEBM", "run/c.mov", "run/notes.txt", "run/thumb.jpg"),
            *(".hidden/x.mp4", "run/._c.mov", "docs/read.md"),
        ],
    )
    (folder / "walk/folder.mp4").mkdir()
    (folder / "walk/nowhere.mp4").symlink_to("gone")
    (folder / "walk/loop").symlink_to(folder)
    (folder / "run/linked.avi").symlink_to("c.mov")
    os.mkfifo(folder / "run/pipe.mp4")
    assert _list("--folder", folder, "-o", folder / "m.csv") == 0
    assert _rows(folder / "m.csv") == [
        ("run/c.mov", "0"),
        ("run/linked.avi", "0"),
        ("walk/b.mp4", "1"),
        ("walk/deep/er/a.WEBM", "1"),
    ]
    assert (folder / "classes.txt").read_text() == "run\nwalk\n"
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}/m.csv: 4 videos of 2 classes; 1 of 5 are missing, listed in "
        f"{folder}/m_missing.csv",
        "note: 1 folder has no video: docs",
        "note: 3 other files were left out: docs/read.md, run/thumb.jpg, run/notes.txt",
    ]
    assert _rows(folder / "m_missing.csv") == [("walk/nowhere.mp4", "1")]


def test_links_between_class_folders_move_no_video_to_another_class(tmp_path: Path) -> None:
    """A folder is gone through under its own name, though a link to it comes first."""
    _fill(tmp_path, ["set/run/a.mp4", "set/jump/b.mp4", "else/c.mp4"])
    (tmp_path / "set/jump/see also").symlink_to("../run")
    (tmp_path / "set/climb").symlink_to("../else")
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert _rows(tmp_path / "m.csv") == [
        ("set/jump/b.mp4", "1"),
        ("set/run/a.mp4", "2"),
        ("set/climb/c.mp4", "0"),
    ]


def test_links_that_lead_to_themselves_are_links_to_nothing(tmp_path: Path) -> None:
    _fill(tmp_path, ["set/run/a.mp4"])
    (tmp_path / "set/run/b.mp4").symlink_to("b.mp4")
    (tmp_path / "set/loop").symlink_to("loop")
    assert _list("--folder", tmp_path / "set/run", "-o", tmp_path / "m.csv") == 0
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert ("set/run/a.mp4", "0") in _rows(tmp_path / "m.csv")


def test_links_to_videos_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As git-annex and DVC leave them, and a disk that is not mounted."""
    for label in ("a", "b"):
        (tmp_path / "set" / label).mkdir(parents=True)
        (tmp_path / "set" / label / "1.mp4").symlink_to("/not/mounted/1.mp4")
    (tmp_path / "set/c").symlink_to("/not/mounted/c")
    line = _refusal(capsys, "--folder", tmp_path / "set", "-o", tmp_path / "m.csv")
    assert "none of the 2 videos" in line
    _fill(tmp_path, ["set/b/2.mp4"])
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert (tmp_path / "classes.txt").read_text() == "a\nb\n"
    assert _rows(tmp_path / "m_missing.csv") == [("set/a/1.mp4", "0"), ("set/b/1.mp4", "1")]
    assert "1 folder has no video: c" in capsys.readouterr().out


def test_a_validation_folder_has_the_numbers_of_the_training_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(tmp_path / "train", ["a/1.mp4", "b/1.mp4", "c/1.mp4"])
    _fill(tmp_path / "val", ["c/2.mp4"])
    assert _list("--folder", tmp_path / "train", "-o", tmp_path / "train.csv") == 0
    assert _list("--folder", tmp_path / "val", "-o", tmp_path / "val.csv") == 0
    assert "note: 2 of 3 classes have no video: a, b" in capsys.readouterr().out
    assert _rows(tmp_path / "val.csv") == [("val/c/2.mp4", "2")]
    _fill(tmp_path / "val", ["d/2.mp4"])
    before = (tmp_path / "val.csv").read_text()
    line = _refusal(capsys, "--folder", tmp_path / "val", "-o", tmp_path / "val.csv")
    assert f"folder (d) must be one of the classes of {tmp_path}/classes.txt" in line
    assert (tmp_path / "val.csv").read_text() == before
    _fill(tmp_path / "val", ["e/2.mp4"])
    line = _refusal(capsys, "--folder", tmp_path / "val", "-o", tmp_path / "val.csv")
    assert "folder (d) (and 1 more) must be" in line
    other = shlex.split(line.partition(" of its own: -o ")[2])[0]
    assert _list("--folder", tmp_path / "val", "-o", other) == 0
    with (tmp_path / "classes.txt").open("a") as classes:
        classes.write("d\ne\n")
    assert _list("--folder", tmp_path / "val", "-o", tmp_path / "val.csv") == 0
    assert [label for _, label in _rows(tmp_path / "val.csv")] == ["2", "3", "4"]


def test_folders_that_are_numbers_are_their_labels(tmp_path: Path) -> None:
    _fill(tmp_path, [f"set/{i}/x.mp4" for i in range(12)])
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert all(name == f"set/{label}/x.mp4" for name, label in _rows(tmp_path / "m.csv"))


def test_a_folder_without_classes_has_no_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(tmp_path / "set", ["b.mp4", "a.mp4"])
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert (tmp_path / "m.csv").read_text() == "path\nset/a.mp4\nset/b.mp4\n"
    assert "2 videos, none missing" in capsys.readouterr().out
    assert not (tmp_path / "classes.txt").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("a b.mp4", ' "quoted" .mp4', "it's.mp4", "a,b;c.mp4", "# a.mp4", "new\nline.mp4"),
        *("return\r.mp4", "tab\t.mp4", "視頻.mp4", os.fsdecode(b"latin \xe9\xff.mp4"), "-1 2.mp4"),
        *("${x}.mp4", "%s.mp4", "\u2028.mp4", "path,label.mp4", "'.mp4", " .mp4"),
    ],
)
def test_every_name_comes_back(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = re.sub(r"[\r\n]", "_", f"odd {name[:-4]} class")
    _fill(tmp_path / "set", [f"{folder}/clip.mp4", "x/plain.mp4"])
    (tmp_path / "set/x" / name).write_bytes(b"video")
    for _ in range(2):  # and a second list is made of the first
        assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert _list("--list", tmp_path / "m.csv", "-o", tmp_path / "again.csv") == 0
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "m.csv").read_bytes()
    manifest = read_manifest(tmp_path / "again.csv")
    paths = [manifest.path(i) for i in range(len(manifest))]
    assert len(paths) == 3 and all(map(os.path.isfile, paths))
    assert str(tmp_path / "set/x" / name) in paths
    (tmp_path / "set/x" / name).unlink()
    assert _list("--list", tmp_path / "m.csv", "-o", tmp_path / "again.csv") == 0
    assert [row for row, _ in _rows_bytes(tmp_path / "again_missing.csv")] == [f"set/x/{name}"]


def _rows_bytes(path: Path) -> list[tuple[str, str]]:
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [(row["path"], row["label"]) for row in csv.DictReader(file)]


# ---- lists that users have ---------------------------------------------------------------------


def test_a_list_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path / "videos", ["a b.mp4", "c.mp4"])
    _text(tmp_path / "mine.txt", "a b.mp4 30 run", "c.mp4 20 walk", "d.mp4 10 walk")
    output = tmp_path / "m.csv"
    assert _list("--list", tmp_path / "mine.txt", "--root", tmp_path / "videos", "-o", output) == 0
    lines = ["path,label,num_frames", "videos/a b.mp4,0,30", "videos/c.mp4,1,20"]
    assert output.read_text().splitlines() == lines
    assert (tmp_path / "m_missing.csv").read_text().splitlines() == [
        "path,label,num_frames,status",
        "d.mp4,1,10,missing",
    ]
    assert (tmp_path / "classes.txt").read_text() == "run\nwalk\n"
    assert "2 videos of 2 classes; 1 of 3 are missing" in capsys.readouterr().out


def test_numbers_without_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _fill(tmp_path, [f"{i}.mp4" for i in range(4)])
    _text(tmp_path / "mine.txt", *(f"{i}.mp4 {label}" for i, label in enumerate((0, 1, 2, 999999))))
    assert _list("--list", tmp_path / "mine.txt", "-o", tmp_path / "m.csv") == 0
    assert not (tmp_path / "classes.txt").exists()
    summary, note = capsys.readouterr().out.splitlines()
    assert summary == f"{tmp_path}/m.csv: 4 videos, none missing"
    assert re.match(r"note: .*m\.csv:5: label \(999999\) must follow at most 10 .* 3 to", note)


def test_columns_and_status_of_a_list_are_kept(tmp_path: Path) -> None:
    _fill(tmp_path, ["a.mp4", "b.mp4"])
    text = "path,label,num_frames,status,source\na.mp4,0,9,broken,web\nb.mp4,1,8,ok,\n"
    (tmp_path / "mine.csv").write_text(text)
    assert _list("--list", tmp_path / "mine.csv", "-o", tmp_path / "m.csv") == 0
    assert (tmp_path / "m.csv").read_text() == text


# ---- mistakes ----------------------------------------------------------------------------------


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(
    ("data_set", "file", "edits", "words"),
    [
        ("ssv2", "labels/labels.json", {'"2"': '"3"'}, ["labels.json", "0 to 2"]),
        ("ssv2", "labels/labels.json", {'"2"': '"1"'}, ["labels.json", "0 to 2"]),
        ("ssv2", "labels/labels.json", {'"2"': '"x"'}, ["labels.json", "(x)", "class index"]),
        ("ssv2", "labels/labels.json", {'"2"}': ""}, ["labels.json:1", "not JSON"]),
        ("ssv2", "labels/train.json", {"Putting [a]": "Eating [a]"}, ["entry 2", "(Eating a, b)"]),
        ("ssv2", "labels/train.json", {'"template"': '"x"'}, ["entry 0", "template"]),
        ("ssv2", "labels/train.json", {'"id"': '"x"'}, ["entry 0", "id"]),
        ("kinetics", "annotations/train.csv", {"84,94": "84"}, ["train.csv:2: 5 columns", "6"]),
        ("kinetics", "annotations/train.csv", {"84,94": "84,x"}, ["train.csv:2: time (84, x)"]),
        ("kinetics", "annotations/train.csv", {"time_end": "end"}, ["train.csv:1", "time_end"]),
        ("ucf101", "ucfTrainTestlist/classInd.txt", {"1 A": "0 A"}, ["classInd.txt:1", "(0 Apply"]),
        ("ucf101", "ucfTrainTestlist/classInd.txt", {"YoYo": "Archery"}, ["classInd.txt:3"]),
        (
            "ucf101",
            "ucfTrainTestlist/classInd.txt",  # the order of the names
            {"YoYo": "X", "Archery": "YoYo", "2 X": "2 Archery"},
            ["trainlist01.txt:2: label (3) must be 2", "Archery"],
        ),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", {"avi 3": "avi 2"}, ["01.txt:2", "(2)"]),
        ("ucf101", "ucfTrainTestlist/trainlist01.txt", {"Archery/": "X/"}, ["X/v_Archery"]),
        (
            "hmdb51",
            "testTrainMulti_7030_splits/wave_test_split1.txt",
            {"goo_2.avi 0": "goo_2.avi 3"},
            ["wave_test_split1.txt:3", "(3) must be 0, 1 or 2"],
        ),
    ],
)
def test_official_files_that_do_not_fit(
    data_set: str,
    file: str,
    edits: Mapping[str, str],
    words: list[str],
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder: Path = request.getfixturevalue(data_set)
    for old, new in edits.items():
        _edit(folder / file, old, new)
    before = sorted(folder.rglob("*"))
    line = _refusal(capsys, f"--{data_set}", folder, "-o", folder / "m.csv")
    for word in words:
        assert word in line
    assert sorted(folder.rglob("*")) == before, "a refusal leaves nothing"


def test_a_class_that_training_does_not_have(
    kinetics: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _edit(kinetics / "annotations/val.csv", "zumba", "yodeling")
    line = _refusal(capsys, "--kinetics", kinetics, "--split", "val", "-o", kinetics / "v.csv")
    assert "val.csv:2: label (yodeling) must be a class of" in line and "train.csv" in line


def test_a_classes_txt_of_another_order_is_not_replaced(
    ucf101: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _text(ucf101 / "classes.txt", "ApplyEyeMakeup", "Archery", "YoYo")
    line = _refusal(capsys, "--ucf101", ucf101, "-o", ucf101 / "m.csv")
    assert "classes.txt must match this data set in names and order" in line
    assert "its label 1 is 'Archery', not 'YoYo'" in line
    assert not (ucf101 / "m.csv").exists()


def test_official_files_that_are_not_there(
    ucf101: Path, hmdb51: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (ucf101 / "ucfTrainTestlist/testlist02.txt").unlink()
    arguments = ("--ucf101", ucf101, "--split", "test", "--fold", 2, "-o", ucf101 / "m.csv")
    assert "has no testlist02.txt below it" in _refusal(capsys, *arguments)
    (hmdb51 / "testTrainMulti_7030_splits/wave_test_split2.txt").unlink()
    arguments = ("--hmdb51", hmdb51, "--fold", 2, "-o", hmdb51 / "m.csv")
    assert "has no wave_test_split2.txt below it" in _refusal(capsys, *arguments)
    _text(hmdb51 / "copy/wave_test_split1.txt", "x.avi 1")
    assert "same list" in _refusal(capsys, "--hmdb51", hmdb51, "-o", hmdb51 / "m.csv")
    _text(ucf101 / "copy/classInd.txt", "1 X")
    assert "several classInd.txt" in _refusal(capsys, "--ucf101", ucf101, "-o", ucf101 / "m.csv")


def test_data_that_are_not_there(
    ucf101: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.csv"
    assert "nowhere does not exist" in _refusal(
        capsys, "--folder", tmp_path / "nowhere", "-o", output
    )
    (tmp_path / "empty").mkdir()
    assert "has none" in _refusal(capsys, "--folder", tmp_path / "empty", "-o", output)
    for path in (ucf101 / "UCF-101").rglob("*.avi"):
        path.unlink()
    line = _refusal(capsys, "--ucf101", ucf101, "-o", output)
    assert "none of the 2 videos listed in" in line and "v_ApplyEyeMakeup_g01_c01.avi" in line
    _text(tmp_path / "mine.txt", "a.mp4 1")
    line = _refusal(capsys, "--list", tmp_path / "mine.txt", "-o", output, "--root", tmp_path / "x")
    assert "none of the 1 videos in" in line and f"below {tmp_path}/x" in line
    assert not output.exists() and not (tmp_path / "classes.txt").exists()


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/a/1.mp4", "val/a/1.mp4"], "splits (train, val)"),
        (["a/1.mp4", "2.mp4"], "2.mp4 lies beside a"),
        (["bad\nname/1.mp4", "b/1.mp4"], r"class name ('bad\nname')"),
        ([" /1.mp4", "b/1.mp4"], "class name ('')"),
    ],
)
def test_folders_that_are_no_classes(
    tmp_path: Path, names: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(tmp_path / "set", names)
    assert words in _refusal(capsys, "--folder", tmp_path / "set", "-o", tmp_path / "m.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_loose_videos_are_moved_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    loose = ("-lost 1.mp4", 'it\'s "2".MP4', "$(3).webm", "*.avi", "old.mp4")
    kept = ("classes.txt", "notes on 1.mp4.txt", "-a/1.mp4", "b.mp4/2.mp4")
    _fill(tmp_path / "-my 'set'", [*loose[:4], *kept])
    (tmp_path / "-my 'set'/old.mp4").symlink_to("-lost 1.mp4")
    _text(tmp_path / "-my 'set'/classes.txt", "-a", "b.mp4")
    (tmp_path / "link").symlink_to("-my 'set'")
    monkeypatch.chdir(tmp_path)
    for folder in ("-my 'set'", "link"):
        line = _refusal(capsys, f"--folder={folder}", "-o", "m.csv")
        assert "5 videos ($(3).webm, *.avi, -lost 1.mp4, ...) lie beside -a" in line
        assert "--no-labels lists all videos without labels" in line
        subprocess.run(line.partition("To move away: ")[2], shell=True, check=True)
        aside = tmp_path / f"{folder}_loose"
        assert {path.name for path in aside.iterdir()} == set(loose)
        left = {path.relative_to("-my 'set'") for path in Path("-my 'set'").rglob("*.*")}
        assert left - {Path("b.mp4")} == {*map(Path, kept)}
        assert _list(f"--folder={folder}", "-o", "m.csv") == 0
        for path in aside.iterdir():
            path.rename(f"-my 'set'/{path.name}")
    line = _refusal(capsys, f"--folder={folder}", "-o", "m.csv")
    assert "mkdir link_loose_2" in line  # nothing is overwritten


def test_a_folder_without_videos_names_one_with_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    _fill(tmp_path, ["empty/.hidden.mp4", "notes/1.mp4.txt", "deep/1/2/3.mp4", "train/1.mp4"])
    line = _refusal(capsys, "--folder", "empty", "-o", "m.csv")
    assert "nor other files: name the folder of the videos" in line
    _fill(tmp_path, ["text/read me.nfo", "text/Makefile", "'x' y/-a/1.mp4", "'x' y/b/2.mp4"])
    for folder, has in (("empty", "nor other files"), ("text", "only other files (2, such as")):
        line = _refusal(capsys, "--folder", folder, "-o", "m.csv")
        assert has in line and "find" not in line
        _, *words = shlex.split(line[line.index("hpm-video data list") :])
        assert main(words) == 0
        assert _rows(Path("m.csv")) == [("'x' y/-a/1.mp4", "0"), ("'x' y/b/2.mp4", "1")]
    assert main(["start", "'x' y", "--val", "empty"]) == 2  # not what is trained on
    assert "name the folder of the videos" in capsys.readouterr().err
    assert main(["start", "empty", "--val", "'x' y"]) == 2
    assert "name the folder of the videos" in capsys.readouterr().err
    assert main(["start", "empty"]) == 2
    assert shlex.split(capsys.readouterr().err)[-3:] == ["hpm-video", "start", "'x' y"]


def test_a_list_with_two_labels_of_one_video(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _fill(tmp_path, ["a.mp4"])
    _text(tmp_path / "l.txt", "a.mp4 1", "a.mp4 1", "a.mp4 2")
    line = _refusal(capsys, "--list", tmp_path / "l.txt", "-o", tmp_path / "m.csv")
    assert (
        "l.txt:3: label (2) of a.mp4 must be the same in all rows, but is (1) in" in line
        and "l.txt:1" in line
    )


def test_other_files_are_not_overwritten(
    kinetics: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    official = kinetics / "annotations/train.csv"
    before = official.read_text()
    assert "read as a list" in _refusal(capsys, "--kinetics", kinetics, "-o", official)
    (tmp_path / "notes.txt").write_text("mine\n")
    line = _refusal(capsys, "--kinetics", kinetics, "-o", tmp_path / "notes.txt")
    assert "must be a new file or a list of videos" in line
    assert f"add -o {tmp_path / 'notes_2.csv'}" in line
    assert "is a folder" in _refusal(capsys, "--kinetics", kinetics, "-o", tmp_path)
    assert official.read_text() == before and (tmp_path / "notes.txt").read_text() == "mine\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--split", "dev"], "split (dev) of UCF101 must be one of train, test"),
        (["--split", "val"], "split (val) of UCF101 must be one of train, test"),
        (["--fold", "4"], "fold (4) of UCF101 must be 1, 2 or 3"),
        (["--fold", "0"], "fold (0) of UCF101 must be 1, 2 or 3"),
        (["--root", "x"], "--root (x) must be used with --manifest"),
        (["--classes", "nowhere.txt"], "nowhere.txt does not exist"),
    ],
)
def test_options_that_do_not_fit(
    ucf101: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in _refusal(capsys, "--ucf101", ucf101, "-o", ucf101 / "m.csv", *arguments)


def test_options_of_data_sets_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--folder", tmp_path, "-o", tmp_path / "m.csv", "--split", "val")
    assert (
        "--split (val) must be used with a data set, such as --ucf101, or --manifest"
        in _refusal(capsys, *arguments)
    )
    for given in ([], ["--folder", "a", "--list", "b"]):
        with pytest.raises(SystemExit) as caught:
            _list("-o", tmp_path / "m.csv", *given)
        assert caught.value.code == 2


def test_an_interrupted_list_leaves_the_old_one(
    ssv2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _list("--ssv2", ssv2, "-o", ssv2 / "train.csv") == 0
    before = {path: path.read_bytes() for path in ssv2.rglob("*") if path.is_file()}

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    (ssv2 / "20bn-something-something-v2/1.webm").unlink()
    before.pop(ssv2 / "20bn-something-something-v2/1.webm")
    assert _list("--ssv2", ssv2, "-o", ssv2 / "train.csv") == 1
    assert {path: path.read_bytes() for path in ssv2.rglob("*") if path.is_file()} == before


def test_each_data_set_has_a_page() -> None:
    """datasets/NAME/README.md gives commands that the command line has."""
    datasets = Path(__file__).parents[2] / "datasets"
    pages = {name: name.split("_")[0] for name in DATA_SETS}  # one for all labels of a data set
    assert {path.name for path in datasets.iterdir() if path.is_dir()} == set(pages.values())
    for name, page in pages.items():
        text = (datasets / page / "README.md").read_text()
        option = f"--{name.replace('_', '-')}"
        assert f"hpm-video data list {option} " in text and "hpm-video data check" in text
        given = re.findall(r"--[a-z0-9-]+", " ".join(re.findall("hpm-video data list .*", text)))
        options = {other for other in given if not other.startswith(f"--{page}")}
        assert options <= {"--split", "--fold", "--annotations", "--classes"}
