"""Lists and tables that strangers made: no pipe is waited for, nothing is read without end."""

import json
import os
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hpm_video.bench.plan import _read as read_report
from hpm_video.bench.study.calibration import read_calibration
from hpm_video.bench.study.cell import read_row
from hpm_video.cli.main import main
from hpm_video.data.lists.classes import read_classes
from hpm_video.data.lists.frame_index import FrameIndex
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.bad_videos import BadVideos
from hpm_video.data.prepare import toy
from hpm_video.data.prepare.official import _csv, _json, _words
from hpm_video.data.video.frame_table import VERSION, FrameTable
from hpm_video.evaluate.feature_file import read_features, read_metadata, write_features
from hpm_video.evaluate.predictions import read_predictions
from hpm_video.runtime.journal import Journal
from hpm_video.slurm.records import read_records
from hpm_video.slurm.run_progress import read_progress
from hpm_video.visualize.training import _records

_TEXTS = {"deep": "[" * 20_000, "digits": "1" * 5000}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("command", ["check", "list", "evaluate", "classes"])
def test_what_is_no_file_is_no_list(
    tmp_path: Path, kind: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "list.csv"
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    good = tmp_path / "good.csv"
    good.write_text("path,label\na.mp4,0\n")
    words = {
        "check": ["data", "check", path],
        "list": ["data", "list", "--list", path, "-o", tmp_path / "new.csv"],
        "classes": ["data", "list", "--list", good, "--classes", path, "-o", tmp_path / "new.csv"],
        "evaluate": ["features", tmp_path, "--manifest", path, "-o", tmp_path / "a.npz"],
    }
    assert main([str(word) for word in words[command]]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "list.csv" in said


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    for start in (b"", b"path,label\n", b"a.mp4 1\n"):
        path.write_bytes(start)
        os.truncate(path, 1 << 34)  # 16 GiB that take no place on the disk
        with pytest.raises(ValueError, match=r"list\.csv:\d: ") as caught:
            read_manifest(path)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    os.truncate(path, 0)
    os.truncate(path, 1 << 34)
    with pytest.raises(ValueError, match="must have at most"):
        read_classes(path)


@pytest.mark.parametrize("kind", _TEXTS)
def test_json_that_python_cannot_read_is_one_line(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "a.json"
    file.write_text(f'{{"a": {_TEXTS[kind]}}}')
    for name in ("row.json", "about.json", "toy.json"):
        (tmp_path / name).write_text(file.read_text())
    (tmp_path / "predictions.csv").write_text("path,label,predicted,error,score_0\na.mp4,0,0,,1\n")
    cell: Any = SimpleNamespace(folder=tmp_path, name="cell", data_set="", variant="", seed=0)
    calls = [
        lambda: _json(str(file), dict),
        lambda: read_report(str(file), ["step"], option="--step"),
        lambda: read_row(cell),
        lambda: read_predictions(tmp_path),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"\.json") as caught:
            call()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
        assert caught.traceback[-1].frame.f_globals["__name__"].startswith("hpm_video")
    assert toy._differences(tmp_path / "toy.json", {"a": 1})


@pytest.mark.parametrize("kind", _TEXTS)
def test_a_calibration_that_python_cannot_read_is_one_line(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text(_TEXTS[kind])
    monkeypatch.setattr("hpm_video.bench.study.calibration.calibration_file", lambda *_: file)
    study: Any = SimpleNamespace()
    with pytest.raises(ValueError, match=r"a\.json is damaged"):
        read_calibration(study, "toy")


@pytest.mark.parametrize("kind", _TEXTS)
def test_lines_that_python_cannot_read_hide_no_others(tmp_path: Path, kind: str) -> None:
    good, bad = {"step": 1, "epoch": 1.0, "loss": 0.5}, f'{{"step": {_TEXTS[kind]}}}'
    (tmp_path / "metrics.jsonl").write_text(f"{json.dumps(good)}\n{bad}\n")
    assert _records(tmp_path) == (good,)
    assert read_progress(tmp_path).loss == 0.5
    (tmp_path / "jobs.jsonl").write_text(f"{bad}\n")
    assert read_records([tmp_path]) == []
    with Journal(tmp_path / "journal") as journal:
        journal.add("a", {"b": 1})
    with (tmp_path / "journal").open("a") as file:
        file.write(f"[{bad}, 1]\n")
    with Journal(tmp_path / "journal") as journal:
        assert dict(journal.entries) == {"a": {"b": 1}}


def test_records_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines = [
        {"step": "<b>", "epoch": 1, "loss": 1},
        {"step": 10**400, "epoch": 1, "loss": 1},
        {"step": 2, "epoch": 1, "loss": "</script>", "hard_ratio": 0.5},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert _records(tmp_path) == ({"step": 2, "epoch": 1, "hard_ratio": 0.5},)
    assert read_progress(tmp_path).loss is None


@pytest.mark.parametrize("kind", _TEXTS)
def test_metadata_of_features_that_python_cannot_read(tmp_path: Path, kind: str) -> None:
    for suffix in (".npz", ".safetensors"):
        path = tmp_path / f"a{suffix}"
        write_features(path, {"a": np.zeros(2)}, {"b": "MARK"})
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("json.dumps", lambda _: _TEXTS[kind])
            write_features(path, {"a": np.zeros(2)}, {})
        assert read_metadata(path) is None
        with pytest.raises(ValueError, match=r"nested|digits"):
            read_features(path)


def test_pipes_among_the_files_of_a_list_and_a_run_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "metrics.jsonl"
    os.mkfifo(pipe)
    with pytest.raises(ValueError, match="is a pipe"):
        FrameIndex(pipe)
    for read in (lambda: list(_csv(str(pipe))), lambda: list(_words(str(pipe), 1))):
        with pytest.raises(ValueError, match="is a pipe"):
            read()
    with pytest.raises(ValueError, match="is a pipe"):
        _records(tmp_path)
    assert read_progress(tmp_path).loss is None


def test_a_table_of_frames_unpacks_to_so_much_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = bytes([VERSION]) + zlib.compress(bytes(10_000))
    monkeypatch.setattr("hpm_video.data.video.frame_table._MOST_BYTES", 1000)
    with pytest.raises(ValueError, match="cut off, or too long"):
        FrameTable.from_bytes(packed)
    with pytest.raises(ValueError, match="is damaged"):
        FrameTable.from_bytes(packed[:20])


def test_a_label_of_many_digits_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(
        f"path,label,predicted,error,score_0\na.mp4,{'1' * 5000},0,,1\n"
    )
    with pytest.raises(ValueError, match=r"predictions\.csv:2: label .* must be in"):
        read_predictions(tmp_path)


@pytest.mark.parametrize(
    "text", ["a,b\nc,d\n", "path,reason\na.mp4\n", f"path,reason\na.mp4,{'x' * 200_000}\n"]
)
def test_tables_of_a_run_that_are_not_ours_are_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.csv").write_text("path\na.mp4\n")
    manifest = read_manifest(tmp_path / "list.csv", labels=False)
    (tmp_path / "bad_videos.csv").write_text(text)
    with pytest.raises(ValueError, match=r"bad_videos\.csv"):
        BadVideos(tmp_path, manifest, max_fraction=1)
    (tmp_path / "predictions.csv").write_text(
        f"path,label,predicted,error,score_0\na.mp4,0,0,{'x' * 200_000},1\n"
    )
    with pytest.raises(ValueError, match=r"predictions\.csv:2: malformed CSV"):
        read_predictions(tmp_path)


def test_features_that_unpack_to_more_than_they_are(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", metadata=np.array("{}"), a=np.zeros(1 << 20))
    with pytest.raises(ValueError, match="must not be compressed"):
        read_features(tmp_path / "a.npz")
    assert read_metadata(tmp_path / "a.npz") is None
