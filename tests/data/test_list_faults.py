"""Lists as people have them, which were once read wrongly without a word: read rightly, or refused
in one line that says what to do."""

import csv
import json
import os
import random
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pytest
from videos import write_indexed_video

from hpm_video.cli.main import main
from hpm_video.data.lists import overlap
from hpm_video.data.lists.columns import several_labels
from hpm_video.data.lists.manifest import Manifest, label_notes, read_manifest, write_manifest
from hpm_video.data.lists.overlap import find_shared
from hpm_video.data.lists.spelling import as_on_disk
from hpm_video.data.prepare.check import check_manifest
from hpm_video.data.prepare.encode import Encoding
from hpm_video.data.prepare.listing import list_own
from hpm_video.data.prepare.transcode import transcode_manifest

NAMES = [f"{label}_{number}" for label in ("left", "right", "up") for number in range(1, 5)]
PATHS = [f"videos/{name}.mp4" for name in NAMES]
LABELS = [name.split("_")[0] for name in NAMES]
NUMBERS = [0] * 4 + [1] * 4 + [2] * 4


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 24 frames."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_indexed_video(path, 24, size=(32, 32))
    return path


@pytest.fixture
def folder(tmp_path: Path, video: Path) -> Path:
    """Twelve videos in three classes."""
    (tmp_path / "videos").mkdir()
    for path in PATHS:
        (tmp_path / path).symlink_to(video)
    return tmp_path


def _write(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def _table(header: str, rows: list[str], end: str = "\n") -> str:
    return end.join([header, *rows] if header else rows) + end


def _read(manifest: Manifest) -> list[tuple[str, int]]:
    return [(manifest.name(i), manifest.label(i)) for i in range(len(manifest))]


def _refusal(path: Path, *, labels: bool = True) -> str:
    with pytest.raises(ValueError) as caught:
        read_manifest(path, labels=labels)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _list(*arguments: object) -> int:
    return main(["data", "list", *map(str, arguments)])


def _error(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert _list(*arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


PAIRS = list(zip(PATHS, LABELS, strict=True))


# ---- read rightly ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        # a blank after the comma before a quoted label
        _table("", [f'"{path}", "{label}"' for path, label in PAIRS]),
        _table("path, label", [f'{path}, "{label}"' for path, label in PAIRS]),
        # Excel: empty columns and rows at the end; semicolons where decimals have commas
        _table("path,label,,", [*(f"{p},{la},," for p, la in PAIRS), ",,,", ",,,"], "\r\n"),
        _table("path,label", [*(f"{p},{la},," for p, la in PAIRS), ",,,"], "\r\n"),
        _table("", [*(f"{p},{la},," for p, la in PAIRS), ",,,"], "\r\n"),
        _table("\ufeffpath;label", [f"{p};{la}" for p, la in PAIRS], "\r\n"),
        _table("", [f"{p};{la}" for p, la in PAIRS], "\r\n"),
        # pandas: with its index; separated by spaces
        _table(",path,label", [f"{i},{p},{la}" for i, (p, la) in enumerate(PAIRS)]),
        _table("", [f'"{p}" {la}' for p, la in PAIRS]),
        _table("", [f'{p} "{la}"' for p, la in PAIRS]),
        # R: write.csv
        _table('"","path","label"', [f'"{i}","{p}","{la}"' for i, (p, la) in enumerate(PAIRS, 1)]),
        # Windows
        _table("path,label", [f"{p},{la}".replace("/", "\\") for p, la in PAIRS], "\r\n"),
        _table("", [f"{p} {la}".replace("/", "\\") for p, la in PAIRS], "\r\n"),
        # a label's name and its number
        _table("path,label_id,label", [f"{p},7,{la}" for p, la in PAIRS]),
        # VideoMAE: path num_frames label; mmaction2 and pytorchvideo: path label
        _table("", [f"{p} 24 {la}" for p, la in PAIRS]),
        _table("", [f"{p} {la}" for p, la in PAIRS]),
        _table("split,path,label", [f"train,{p},{la}" for p, la in PAIRS]),
        _table("path,label,start,end", [f"{p},{la},," for p, la in PAIRS]),  # nothing in them
    ],
)
def test_lists_that_people_have(folder: Path, text: str) -> None:
    manifest = read_manifest(_write(folder, text))
    assert manifest.classes == ("left", "right", "up")
    assert manifest.labels.tolist() == NUMBERS
    assert [manifest.path(i) for i in range(12)] == [str(folder / path) for path in PATHS]
    assert _list("--manifest", folder / "list.csv", "-o", folder / "m.csv") == 0
    assert _read(read_manifest(folder / "m.csv")) == list(zip(PATHS, NUMBERS, strict=True))


def test_numbers_of_classes_under_their_usual_names(folder: Path) -> None:
    for header in ("filename,class_id", "path,label_idx,class_text", "video_path,class_index"):
        extra = ",x" * (header.count(",") - 1)
        rows = [f"{path},{number}{extra}" for path, number in zip(PATHS, NUMBERS, strict=True)]
        assert read_manifest(_write(folder, _table(header, rows))).labels.tolist() == NUMBERS


def test_a_list_of_videomae_without_numbers_of_frames(folder: Path) -> None:
    """VideoMAE V2 pre-trains on `path 0 -1`."""
    manifest = read_manifest(_write(folder, _table("", [f"{path} 0 -1" for path in PATHS])))
    assert not manifest.frame_counts.any() and (manifest.labels == -1).all()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_labels_in_any_encoding_are_the_same_class(folder: Path, encoding: str) -> None:
    rows = [*(f"{path},Fußball" for path in PATHS[:6]), *(f"{path},Rad" for path in PATHS[6:])]
    (folder / "list.csv").write_bytes(_table("path,label", rows).encode(encoding))
    _write(folder, "Rad\nFußball\n", "classes.txt")
    manifest = read_manifest(folder / "list.csv")
    assert manifest.labels.tolist() == [1] * 6 + [0] * 6
    is_said = any(
        "label (Fu\\udcdfball) is not UTF-8 and is read as 'Fußball'" in n for n in manifest.notes
    )
    assert is_said == (encoding in ("cp1252", "latin-1"))


def test_names_of_files_in_any_encoding_are_found(tmp_path: Path, video: Path) -> None:
    for form in ("NFC", "NFD"):
        part = tmp_path / form
        name = unicodedata.normalize(form, "Übung/über é.mp4")
        (part / name).parent.mkdir(parents=True)
        (part / name).symlink_to(video)
        for written in (
            *(unicodedata.normalize(other, name) for other in ("NFC", "NFD")),
            unicodedata.normalize("NFC", name).replace("/", "\\"),
            os.fsdecode(unicodedata.normalize("NFC", name).encode("cp1252")),
            f" {name} ",
        ):
            assert as_on_disk(str(part), written) == str(part / name)
            write_manifest(part / "list.csv", [{"path": written, "label": 0}])
            assert read_manifest(part / "list.csv").path(0) == str(part / name)
    mixed = unicodedata.normalize("NFD", "Übung") + "/" + unicodedata.normalize("NFC", "über é.mp4")
    assert os.path.samefile(as_on_disk(str(tmp_path / "NFC"), mixed), video)
    # A name that is there, or that nothing like it is, stays
    (tmp_path / "a\\b.mp4").symlink_to(video)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.mp4").symlink_to(video)
    assert as_on_disk(str(tmp_path), "a\\b.mp4") == str(tmp_path / "a\\b.mp4")
    assert as_on_disk(str(tmp_path), "gone\\é.mp4") == str(tmp_path / "gone\\é.mp4")


def test_a_class_folder_and_a_list_in_different_forms_of_unicode(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Übung") for form in ("NFC", "NFD"))
    for name in (f"train/{nfd}/a.mp4", "train/Fall/c.mp4", f"val/{nfc}/b.mp4", "val/Fall/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"video")
    assert _list("--folder", tmp_path / "train", "-o", tmp_path / "train.csv") == 0
    assert _list("--folder", tmp_path / "val", "-o", tmp_path / "val.csv") == 0
    assert (tmp_path / "classes.txt").read_text() == f"Fall\n{nfd}\n"
    assert read_manifest(tmp_path / "val.csv").labels.tolist() == [0, 1]
    _write(tmp_path, f"path,label\nx.mp4,{nfc}\ny.mp4,{nfd}\nz.mp4,Fall\n", "mixed.csv")
    assert read_manifest(tmp_path / "mixed.csv").labels.tolist() == [1, 1, 0]
    (tmp_path / "classes.txt").unlink()
    both = read_manifest(tmp_path / "mixed.csv")
    assert both.labels.tolist() == [1, 1, 0] and both.classes == ("Fall", nfc)
    shutil.copytree(tmp_path / "train", tmp_path / "both")
    (tmp_path / "both" / nfc).mkdir()
    (tmp_path / "both" / nfc / "e.mp4").write_bytes(b"video")
    assert _list("--folder", tmp_path / "both", "-o", tmp_path / "both.csv") == 0
    assert "3 videos of 2 classes" in capsys.readouterr().out


# ---- refused -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [
        *(
            "start,end",
            "start_time,end_time",
            "start_sec,stop_sec",
            "t_start,t_end",
        ),
        *("segment_start,segment_end", "start_frame,stop_frame", "startTime,endTime", "begin,end"),
        *("Start (s),End (s)", "time_start,time_end", "start_timestamp,stop_timestamp"),
        *(
            "clip start,clip end",
            "onset,duration",
            "temporalStart,temporalEnd",
            "start_idx,end_idx",
        ),
        *("from,to", "frame_from,frame_to", "offset,duration", "from,until"),
    ],
)
def test_parts_of_videos_are_refused(folder: Path, header: str) -> None:
    rows = [f"{path},0.0,0.9,{label}" for path, label in PAIRS]
    for labels in (True, False):
        said = _refusal(_write(folder, _table(f"path,{header},label", rows)), labels=labels)
        assert "list.csv:2: " in said and "(0.0)" in said
        assert "parts of videos must be in columns start_s,end_s" in said
        assert "hpm-video data list --manifest" in said and "--seconds" in said


def test_parts_of_videos_are_not_listed_either(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        f"{path},{start},left,0,2.0,train" for path in PATHS for start in ("0.0,0.9", "1.0,1.9")
    ]
    header = "path,segment_start,segment_end,label,label_id,duration,subset"
    path = _write(folder, _table(header, rows))
    assert "segment_end (0.9)" in _error(capsys, "--manifest", path, "-o", folder / "m.csv")
    assert sorted(p.name for p in folder.iterdir()) == ["list.csv", "videos"]


def test_where_a_video_is_from_is_no_part(folder: Path) -> None:
    rows = [f"{path},{label},web,someone" for path, label in PAIRS]
    assert len(read_manifest(_write(folder, _table("path,label,from,to", rows)))) == 12


@pytest.mark.parametrize("name", ["weekend", "ending_credits", "friend", "startup", "backend"])
def test_columns_that_only_look_like_parts(folder: Path, name: str) -> None:
    rows = [f"{path},{label},x" for path, label in PAIRS]
    manifest = read_manifest(_write(folder, _table(f"path,label,{name}", rows)))
    assert manifest.notes == (f"{folder}/list.csv: unused columns: {name} (used: path, label)",)


def test_columns_that_are_ours_are_not_named(folder: Path) -> None:
    ours = {"num_bytes": 9, "duration_s": 1, "reason": "", "damaged": 0, "source": "x", "fps": 25}
    rows = [{"path": path, "label": 0, "status": "ok", **ours} for path in PATHS]
    write_manifest(folder / "list.csv", rows)
    assert read_manifest(folder / "list.csv").notes == ()


SPLIT = ["Train", "training", "train", "Validation", "Validation", "test"] * 2


def test_a_split_is_chosen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{path},{label},{s}" for (path, label), s in zip(PAIRS, SPLIT, strict=True)]
    path = _write(folder, _table("path,label,split", rows), "mine.csv")
    for said in (
        _refusal(path),
        _refusal(path, labels=False),
        _error(capsys, "--manifest", path, "-o", folder / "m.csv"),
    ):
        command = f"hpm-video data list --manifest {path} --split Train -o {folder}/mine_Train.csv"
        assert command in said and "test (2 rows)" in said
    assert not (folder / "classes.txt").exists()
    for split, number in {"train": 4, "TRAINING": 2, "val": 4, "valid": 4, "test": 2}.items():
        assert _list("--manifest", path, "--split", split, "-o", folder / f"{split}.csv") == 0
        assert len(read_manifest(folder / f"{split}.csv")) == number
        assert f"{number} of 12 rows" in capsys.readouterr().out
    assert (folder / "classes.txt").read_text() == "left\nright\nup\n"  # of all rows
    said = _error(capsys, "--manifest", path, "--split", "holdout_7", "-o", folder / "m.csv")
    assert "--split (holdout_7) must be a value of column split in " in said
    _write(folder, _table("path,label", [f"{p},{la}" for p, la in PAIRS]))
    said = _error(
        capsys, "--manifest", folder / "list.csv", "--split", "val", "-o", folder / "m.csv"
    )
    assert "needs a list with a column split" in said and "has the columns path, label" in said


@pytest.mark.parametrize("yes", ["1", "True", "yes"])
def test_a_split_of_yes_and_no_is_chosen(folder: Path, yes: str) -> None:
    no = {"1": "0", "True": "False", "yes": ""}[yes]
    rows = [f"{path},{label},{no if i % 3 else yes}" for i, (path, label) in enumerate(PAIRS)]
    path = _write(folder, _table("path,label,is_train", rows))
    assert "not train (8 rows)" in _refusal(path) and "--split train" in _refusal(path)
    for split, number in {"train": 4, "not train": 8}.items():
        assert _list("--manifest", path, "--split", split, "-o", folder / "out.csv") == 0
        assert len(read_manifest(folder / "out.csv")) == number


def test_a_command_that_a_refusal_names_is_one_that_works(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "lists of mine").mkdir()
    rows = [f"{path},{label},{s}" for (path, label), s in zip(PAIRS, SPLIT, strict=True)]
    path = _write(folder / "lists of mine", _table("path,label,Set", rows), "my list.csv")
    with pytest.raises(ValueError, match="--root") as caught:
        read_manifest(path, root=str(folder))
    command = str(caught.value).split("`")[1].removeprefix("hpm-video ")
    words = subprocess.check_output(["bash", "-c", f"printf '%s\\n' {command}"], text=True)
    assert main(words.splitlines()) == 0
    assert len(read_manifest(folder / "lists of mine" / "my list_Train.csv")) == 4


def test_a_set_may_be_anything_else(folder: Path) -> None:
    rows = [f"{path},{label},{'in' if i % 2 else 'out'}" for i, (path, label) in enumerate(PAIRS)]
    assert len(read_manifest(_write(folder, _table("path,label,subset", rows)))) == 12
    assert "column split must have one value" in _refusal(
        _write(folder, _table("path,label,split", rows))
    )


@pytest.mark.parametrize(
    "cells",
    [
        *('"0,1" "1,2" "2,0"', "0|1 1|2 2|0", "0;1 1;2 2;0", '"[0, 1]" "[1, 2]" "[2]"'),
        *('"a,b" a b', "a|b b|c c|a", "['a','b'] ['a'] ['b']".replace(" ", " ")),
    ],
)
def test_several_labels_in_a_cell_are_refused(folder: Path, cells: str) -> None:
    given = cells.split(" ") if '"[' not in cells else ['"[0, 1]"', '"[1, 2]"', '"[2]"']
    given = [cell if cell[0] == '"' else f'"{cell}"' for cell in given]
    rows = [f"{path},{given[i % 3]}" for i, path in enumerate(PATHS)]
    said = _refusal(_write(folder, _table("path,label", rows)))
    assert "list.csv:2: label (" in said and "set labels.separator to the text between them" in said
    read_manifest(folder / "list.csv", labels=False)  # pre-training ignores labels


def test_names_of_classes_that_look_like_several_labels() -> None:
    ssv2 = [
        "Lifting up one end of something, then letting it drop down",
        "Lifting something up completely, then letting it drop down",
        "Pushing something so that it falls off the table",
        "Putting something, something and something on the table",
        "Moving something and something closer to each other",
    ]
    assert several_labels(ssv2) == []
    assert several_labels(["playing guitar", "playing", "guitar", "1st place", "a|b", "x;y"]) == []
    assert several_labels(["0", "17", "-1", "2024-01", "3d", "4 wheels", "C (major)"]) == []
    assert several_labels(["walk", "run", "walk, run"]) == ["walk, run"]
    assert several_labels(["walk|run", "run|jump", "jump|walk"]) == [
        *("jump|walk", "run|jump", "walk|run")
    ]
    assert several_labels(["0 1", "3,4", "5"]) == ["0 1", "3,4"]


def test_a_class_of_such_a_name_is_one_that_classes_txt_has(folder: Path) -> None:
    rows = [f'{path},"{"walk, run" if i % 2 else "walk"}"' for i, path in enumerate(PATHS)]
    _write(folder, "walk\nrun\nwalk, run\n", "classes.txt")
    assert read_manifest(_write(folder, _table("path,label", rows))).labels.tolist() == [0, 2] * 6


def test_several_columns_of_labels_are_refused(folder: Path) -> None:
    rows = [f"{path},{label},x" for path, label in PAIRS]
    for header in ("path,label_1,label_2", "path,label,label2", "path,class1,class2"):
        said = _refusal(_write(folder, _table(header, rows)))
        assert "a video must have one label" in said and header.split(",")[2] in said
    rows = [f"{path},{label}," for path, label in PAIRS]  # nobody has a second one
    read_manifest(_write(folder, _table("path,label,label2", rows)))


@pytest.mark.parametrize("first", [[0, 0, 0, 1, 1, 2], [1, 1, 1, 2, 2, 3], [0, 1, 0, 1, 0, 1]])
def test_labels_in_the_place_of_numbers_of_frames(folder: Path, first: list[int]) -> None:
    rows = [f"{path} {first[i % 6]} {(i + 1) % 3}" for i, path in enumerate(PATHS)]
    for labels in (True, False):  # pre-training, too, would see still pictures
        said = _refusal(_write(folder, _table("", rows)), labels=labels)
        assert "must be about 24, as in the file" in said and "write `path label`" in said
    rows = [f"{path} {24 - i} {i % 3}" for i, path in enumerate(PATHS)]  # nearly all of them
    assert read_manifest(_write(folder, _table("", rows))).frame_counts.tolist() == [
        *range(24, 12, -1)
    ]


def test_numbers_of_frames_are_checked_in_each_of_several_lists(folder: Path) -> None:
    good = _write(folder, _table("", [f"{path} 24 0" for path in PATHS]))
    bad = _write(folder, _table("", [f"{path} 1 0" for path in PATHS]), "bad.txt")
    assert read_manifest([good, good]).frame_counts.tolist() == [24] * 24
    for files in ([good, bad], [bad, good]):
        with pytest.raises(ValueError, match=r"bad\.txt: num_frames \(1\) of videos/left_1"):
            read_manifest(files)


def test_more_labels_than_two(folder: Path) -> None:
    rows = [f"{path} 0 1 2" for path in PATHS]
    said = _refusal(_write(folder, _table("", rows)))
    assert "must have one label; write several without spaces between them" in said
    assert said.endswith("(and 11 more: line 2, 3, 4, 5, ...)")


def test_all_faults_of_a_list_at_once(tmp_path: Path) -> None:
    rows = ["a.mp4,0,9", "b.mp4,1", ",1,9", "c.mp4,1.5,9", "d.mp4,1,many", "e.mp4,1", "f.mp4,-3,9"]
    said = _refusal(_write(tmp_path, _table("path,label,num_frames", rows)))
    file = f"{tmp_path}/list.csv"
    assert said.split("; ") == [
        f"{file}:3: 2 columns, expected 3, as in the header (and 1 more: line 7)",
        f"{file}:4: the path is empty",
        f"{file}:6: num_frames (many) must be an integer of at least 0",
        f"{file}:5: label (1.5) must be a whole number or a class name",
        f"{file}:8: label (-3) must be at least 0, or -1 for none",
    ]


def test_rows_have_one_width(tmp_path: Path) -> None:
    for text, line in (
        ("a.mp4 1\nb.mp4 9 1\n", "list.csv:2: 3 columns, expected 2, as in the first row"),
        ("a.mp4\nb.mp4 1\n", "list.csv:2: 2 columns, expected 1"),
        ("a.mp4,run,,\nb.mp4,9,run,\n", "list.csv:2: 4 columns, expected 2"),
        ("path,label\na.mp4,1,2\n", "list.csv:2: 3 columns, expected 2, as in the header"),
    ):
        assert line in _refusal(_write(tmp_path, text))


# ---- said --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes", "said"),
    [
        (["left", "Left", "up"], None, "classes 'Left' and 'left' differ only in case or spaces"),
        (["turn left", "turn_left", "up"], None, "differ only in case or spaces"),
        (["left", "left\u200b", "up"], None, "differ only in case or spaces"),
        (["1", "2", "3"], None, "the smallest label is 1, but labels count from 0"),
        (["left", "up"], "left\nright\nup\n", "1 of 3 classes have no video: right"),
        (["left", "left"], None, "all videos have the same label (0)"),
        (["0", "1", "2"], None, None),
        (["left", "up", "right"], "left\nright\nup\n", None),
    ],
)
def test_labels_from_which_a_model_may_not_learn_what_is_meant(
    folder: Path,
    labels: list[str],
    classes: str | None,
    said: str | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if classes is not None:
        _write(folder, classes, "classes.txt")
    rows = [f"{path},{label}" for path, label in zip(PATHS, labels, strict=False)]
    manifest = read_manifest(_write(folder, _table("path,label", rows)))
    notes = label_notes(manifest)
    assert bool(notes) == (said is not None) and (said or "") in "; ".join(notes)
    assert _list("--manifest", folder / "list.csv", "-o", folder / "m.csv") == 0
    assert (said or "none missing") in capsys.readouterr().out


def test_a_label_that_another_case_would_make_known(folder: Path) -> None:
    _write(folder, "Left\nRight\n", "classes.txt")
    rows = [f"{path},{label}" for path, label in PAIRS]
    said = _refusal(_write(folder, _table("path,label", rows)))
    assert "label (left) must be one of" in said
    assert "differs from 'Left' only in case or spaces" in said


def test_labels_from_1_that_reach_beyond_the_classes(folder: Path) -> None:
    _write(folder, "left\nright\nup\n", "classes.txt")
    rows = [f"{path} {number + 1}" for path, number in zip(PATHS, NUMBERS, strict=True)]
    said = _refusal(_write(folder, _table("", rows)))
    assert "must be below the number of classes (3" in said
    assert "labels count from 0, but no label is 0" in said


def test_words_for_nothing(folder: Path) -> None:
    rows = [f"{path},{'NA' if i == 5 else label}" for i, (path, label) in enumerate(PAIRS)]
    manifest = read_manifest(_write(folder, _table("path,label", rows)))
    assert manifest.notes == (
        f"{folder}/list.csv:7: label (NA) is read as a class name; leave it empty for no label",
    )


def test_validation_videos_that_are_training_videos(tmp_path: Path) -> None:
    contents = {name: random.Random(name).randbytes(40_000) for name in "abcde"}
    for part in ("train", "val"):
        (tmp_path / part).mkdir()
    for name in "abcd":
        (tmp_path / "train" / f"{name}.mp4").write_bytes(contents[name])
    (tmp_path / "val/link.mp4").symlink_to("../train/a.mp4")
    os.link(tmp_path / "train/b.mp4", tmp_path / "val/hard.mp4")
    (tmp_path / "val/copy.mp4").write_bytes(contents["c"])
    (tmp_path / "val/other.mp4").write_bytes(contents["e"])  # of the same size
    for name in ("empty", "empty2"):
        (tmp_path / "train" / f"{name}.mp4").touch()
        (tmp_path / "val" / f"{name}.mp4").touch()
    for part in ("train", "val"):
        rows = [{"path": f"{part}/{p.name}"} for p in sorted((tmp_path / part).iterdir())]
        if part == "val":
            rows += [{"path": "train/../train/d.mp4"}, {"path": "val/gone.mp4"}]
        write_manifest(tmp_path / f"{part}.csv", rows)
    train, val = (read_manifest(tmp_path / f"{part}.csv") for part in ("train", "val"))
    found = find_shared(train, val)
    assert (found.num_named, found.num_linked, found.num_copied) == (1, 2, 1)
    assert str(found) == "4 of 8 videos (2 linked, 1 copied)"
    late = find_shared(train, val, most_seconds=-1)
    assert (late.num_named, late.num_shared) == (1, 1)
    assert str(late) == "1 of 8 videos (only 0 of 6 files compared within the time limit)"
    assert str(find_shared(train, train)) == "6 of 6 videos"
    assert find_shared(val, train).num_shared == 4


# ---- what is written ---------------------------------------------------------------------------

_NASTY = ["\\", '"', "'", ",", ";", "\t", "\n", "\r", " ", "#", "|", "\u2028", "é", "e\u0301", "視"]
_NASTY += [
    "path",
    "label",
    ".mp4",
    ".avi",
    "0",
    "1",
    "-",
    "\udcff",
    "\x0b",
    "\x1c",
    "\ufeff",
    "[",
    "=",
]


def _nasty(random_: random.Random) -> str:
    return "".join(random_.choices(_NASTY, k=random_.randint(1, 6)))


@pytest.mark.parametrize("seed", range(60))
def test_what_is_written_is_what_is_read(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    drawn_names = dict.fromkeys(_nasty(drawn) for _ in range(40))
    names = [name for name in drawn_names if name.strip()]
    write_manifest(tmp_path / "out.csv", [{"path": n, "label": i} for i, n in enumerate(names)])
    manifest = read_manifest(tmp_path / "out.csv")
    read = [(os.fsencode(name), label) for name, label in _read(manifest)]
    assert read == [(os.fsencode(name), label) for label, name in enumerate(names)]


@pytest.mark.parametrize("seed", range(30))
def test_what_is_listed_is_what_is_read(tmp_path: Path, seed: int) -> None:
    drawn = random.Random(seed)
    classes = {_nasty(drawn).strip() for _ in range(5)}
    classes = {c for c in classes if c[:1] not in ("", ".") and not {"\n", "\r"} & set(c)}
    there = set()
    for name in (*classes, "plain", "other"):
        folder = tmp_path / "set" / name
        folder.mkdir(parents=True)
        for _ in range(3):
            file = folder / f"{_nasty(drawn)}.mp4"
            file.write_bytes(b"video")
            if not file.name.startswith("."):
                there.add(os.fsencode(file))
    assert _list("--folder", tmp_path / "set", "-o", tmp_path / "m.csv") == 0
    assert _list("--manifest", tmp_path / "m.csv", "-o", tmp_path / "again.csv") == 0
    for file in ("m.csv", "again.csv"):
        manifest = read_manifest(tmp_path / file)
        assert {os.fsencode(manifest.path(i)) for i in range(len(manifest))} == there
        for i in range(len(manifest)):
            folder = os.path.basename(os.path.dirname(manifest.path(i)))
            named = manifest.classes and manifest.classes[manifest.label(i)]
            assert unicodedata.normalize("NFC", folder) == unicodedata.normalize("NFC", named or "")


@pytest.mark.parametrize("path", ["", "  ", "a\0.mp4"])
def test_paths_that_no_file_has_are_not_written(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match=r"path \(.*\) must be a file name"):
        write_manifest(tmp_path / "out.csv", [{"path": "a.mp4"}, {"path": path}])
    assert not list(tmp_path.iterdir())


def test_a_command_that_fails_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _write(folder, _table("path,label", [*(f"{p},{la}" for p, la in PAIRS), "gone.mp4,up"]))
    output = folder / "new" / "deep" / "m.csv"
    before = sorted(folder.rglob("*"))

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("hpm_video.data.prepare.listing.read_manifest", refuse)
        with pytest.raises(ValueError, match="refused"):
            list_own(path, output)
    assert sorted(folder.rglob("*")) == before
    assert _list("--manifest", path, "-o", output) == 0
    assert sorted(p.name for p in output.parent.iterdir()) == [
        *("classes.txt", "m.csv", "m_missing.csv")
    ]


def test_a_list_that_says_more_is_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = _write(folder, _table("path,label", [f"{p},{la}" for p, la in PAIRS]), "mine.csv")
    output, kept = folder / "m.csv", folder / "m.csv.orig"
    for _ in range(2):
        assert _list("--manifest", source, "-o", output) == 0
    written = output.read_text()
    assert "kept as" not in capsys.readouterr().out and not kept.exists()
    output.write_text(
        _table("path,label", [f"{p},{n}" for p, n in zip(PATHS[:5], NUMBERS, strict=False)])
    )
    assert _list("--manifest", source, "-o", output) == 0 and not kept.exists()  # it has grown
    own = _table("path,label,comment", [f"{path},{label},mine" for path, label in PAIRS])
    for _ in range(2):
        output.write_text(own)
        assert _list("--manifest", source, "-o", output) == 0
        assert f"the previous list is kept as {kept}" in capsys.readouterr().out
    assert kept.read_text() == own and output.read_text() == written
    assert not (folder / "m.csv.orig2").exists()
    output.write_text("path,label\nother.mp4,0\n")
    assert _list("--manifest", source, "-o", output) == 0
    assert (folder / "m.csv.orig2").read_text() == "path,label\nother.mp4,0\n"
    _write(folder, "path,label\nmine.mp4,3\n", "m_missing.csv")
    said = _error(capsys, "--manifest", source, "-o", output)
    assert "m_missing.csv) must be a new file or a list of videos" in said


# ---- as programs write lists -------------------------------------------------------------------


def test_what_json_to_csv_scripts_write(folder: Path) -> None:
    """Dictionaries by csv.DictWriter, CRLF as it does, nested values as Python prints them."""
    entries = [{"path": p, "label": la, "meta": {"fps": 25}, "tags": ["x", "y"]} for p, la in PAIRS]
    with (folder / "list.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(entries[0]))
        writer.writeheader()
        writer.writerows(entries)
    manifest = read_manifest(folder / "list.csv")
    assert manifest.labels.tolist() == NUMBERS
    assert "unused columns: meta, tags" in manifest.notes[0]
    for text in (json.dumps(entries), "\n".join(map(json.dumps, entries))):
        assert "list.csv:1: must be CSV" in _refusal(_write(folder, text))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        # Kinetics: no paths
        (
            "label,youtube_id,time_start,time_end,split\nrun,abc,1,11,train\n",
            "must have a column path; convert Kinetics' lists with `hpm-video data list",
        ),
        # R: write.table, which leaves out the header of the row numbers
        ('"path" "label"\n"1" "a.mp4" "left"\n', 'list.csv:2: row ("1" "a.mp4" "left") must'),
        # pandas: numbers that became floats as some are missing
        (",path,label\n0,a.mp4,3.0\n1,b.mp4,\n", "label (3.0) must be a whole number"),
        # UCF101's classInd.txt
        ("1 ApplyEyeMakeup\n2 Archery\n", "list.csv:1: row (1 ApplyEyeMakeup)"),
        ('path,label\n"a.mp4" ,1\n', "list.csv:2: malformed CSV"),
    ],
)
def test_lists_of_programs_that_are_refused(tmp_path: Path, text: str, said: str) -> None:
    assert said in _refusal(_write(tmp_path, text))


def test_the_separator_that_excel_is_told(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("sep=;\r\npath;label\r\na.mp4;x\r\nb.mp4;y\r\n")
    assert read_manifest(tmp_path / "list.csv").classes == ("x", "y")


def test_parts_by_other_names(tmp_path: Path) -> None:
    listed, rule = tmp_path / "list.csv", "parts of videos must be in columns start_s,end_s"
    listed.write_text("path,t0,t1\na.mp4,0,5\nb.mp4,3,9\n")
    with pytest.raises(ValueError, match=rule):
        read_manifest(listed)
    with pytest.raises(ValueError, match=rule):
        check_manifest(listed)
    with pytest.raises(ValueError, match=rule):
        transcode_manifest(listed, tmp_path / "out", Encoding())
    assert [file.name for file in tmp_path.iterdir()] == ["list.csv"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_lists_that_were_joined_by_cat(folder: Path, mark: str) -> None:
    """With the mark and the header of each in the middle."""
    lists = [PAIRS[:5], PAIRS[5:]]
    rows = [[f"{path},{label}" for path, label in pairs] for pairs in lists]
    for header in ("path,label", '"path","label"', "video_path,class"):
        text = "".join(mark + _table(header, part) for part in rows)
        assert _read(read_manifest(_write(folder, text))) == _read(
            read_manifest(_write(folder, _table("path,label", rows[0] + rows[1])))
        )
    manifest = read_manifest(_write(folder, "".join(mark + _table("", part) for part in rows)))
    assert manifest.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert all(os.path.exists(manifest.path(index)) for index in range(12))
    other = _table("label,path", [f"{label},{path}" for path, label in lists[1]])
    said = _refusal(_write(folder, _table("path,label", rows[0]) + mark + other))
    assert "list.csv:7: header" in said and "must have the same columns as the first" in said


def test_row_numbers_and_quotes_without_commas(folder: Path) -> None:
    """pandas: to_csv with tabs, whose header begins with one; R: write.table(row.names=FALSE)."""
    numbered = [f"{i}\t{path}\t{label}" for i, (path, label) in enumerate(PAIRS)]
    quoted = [f'"{path}" "{label}"' for path, label in PAIRS]
    for text in (_table("\tpath\tlabel", numbered), _table('"path" "label"', quoted)):
        assert read_manifest(_write(folder, text)).labels.tolist() == NUMBERS


def test_videos_that_are_left_out_by_their_status_are_counted(folder: Path) -> None:
    status = ["", "ok", "OK", "bad", "bad", "nudity", *["ok"] * 6]
    rows = [f"{path},{label},{s}" for (path, label), s in zip(PAIRS, status, strict=True)]
    manifest = read_manifest(_write(folder, _table("path,label,status", rows)))
    assert len(manifest) == 8
    assert manifest.notes == (
        "4 videos are left out because of their status: bad (2), OK (1), nudity (1)",
    )


def test_rows_that_give_a_video_two_labels(folder: Path) -> None:
    rows = [f"{path},{label}" for path, label in PAIRS]
    manifest = read_manifest(
        _write(folder, _table("path,label", [*rows, rows[3], f"./{PATHS[2]},right"]))
    )
    (said,) = label_notes(manifest)
    assert manifest.num_repeated == 2
    assert said.startswith("1 videos have several rows with different labels") and PATHS[2] in said
    assert label_notes(read_manifest(_write(folder, _table("path,label", [*rows, rows[3]])))) == []


def test_copies_are_told_where_all_files_have_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As raw video has: each file is opened once, not once for each file of the other list."""
    for part, numbers in {"train": range(30), "val": range(20, 40)}.items():
        (tmp_path / part).mkdir()
        for number in numbers:
            (tmp_path / part / f"{number}.avi").write_bytes(bytes([number]) * 999)
        write_manifest(
            tmp_path / f"{part}.csv", [{"path": f"{part}/{number}.avi"} for number in numbers]
        )
    train, val = (read_manifest(tmp_path / f"{part}.csv") for part in ("train", "val"))
    opened, real = [], overlap._ends
    monkeypatch.setattr(overlap, "_ends", lambda path: opened.append(path) or real(path))
    assert find_shared(train, val).num_copied == 10
    assert len(opened) == len(set(opened)) == 50
