"""`hpm-video data transcode`: the folder and list it makes, and what a kill may do to them."""

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from damage import flip_bytes, packet_ends, truncate
from killable_doubles import TranscodeDouble
from videos import frame_numbers, write_indexed_video

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare import transcode, transcode_video
from hpm_video.data.prepare.encode import Encoded, Encoding, encode_video
from hpm_video.data.prepare.transcode import target_names, transcode_manifest
from hpm_video.data.prepare.transcode_video import TimeReading, Transcode, Work, part_name
from hpm_video.data.prepare.verdict import BAD, OK, Verdict, inspect_video
from hpm_video.data.video.frames import open_video
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.runtime.journal import read_journal

ROOT = Path(__file__).parents[2]
QUICK = Encoding(preset="ultrafast")


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _files(folder: Path) -> set[str]:
    """All files but those of the job itself."""
    own = re.compile(r"transcode\.json|\.transcode.*\.jsonl")
    files = (p for p in folder.rglob("*") if p.is_file() and not own.fullmatch(p.name))
    return {str(path.relative_to(folder)) for path in files}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    write_indexed_video(folder / "jump" / "a b.avi", 12, codec="mpeg4")
    write_indexed_video(folder / "run" / "long.mkv", 40, size=(32, 80))
    (folder / "run" / "text.mp4").write_text("no video")
    (folder / "classes.txt").write_text("jump\nrun\n")
    return folder


def _folder_of_slow_ones(folder: Path, number: int) -> Path:
    source = write_indexed_video(folder / "source.mp4", 12)
    (folder / "text.mp4").write_text("no video")
    for k in range(number):
        shutil.copy(source, folder / f"slow{k:02d}.mp4")
    names = ["text.mp4", *(f"slow{k:02d}.mp4" for k in range(number))]
    (folder / "m.csv").write_text("path\n" + "\n".join(names) + "\n")
    return folder / "m.csv"


def test_a_folder_for_training(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["own,path,label,status", "x,run/long.mkv,run,", "y,run/text.mp4,run,ok"]
    lines += ["z,jump/a b.avi,jump,", "z,jump/gone.avi,jump,", "w,run/old.mp4,run,bad"]
    lines += [f"v,{videos / 'run' / 'long.mkv'},1,".replace(",1,", ",run,")]
    (videos / "train.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    arguments = ["data", "transcode", str(videos / "train.csv"), "-o", str(out), "--workers", "2"]
    assert main([*arguments, "--short-side", "24"]) == 1
    assert _files(out) == {
        "train.csv", "train.csv.index", "classes.txt", "run/long.mp4", "jump/a b.mp4",
    }  # fmt: skip
    rows = _rows(out / "train.csv")
    assert list(rows[0])[:4] == ["own", "path", "label", "status"]
    assert [row["own"] for row in rows] == list("xyzzwv")
    assert [row["path"] for row in rows] == [
        "run/long.mp4", "run/text.mp4", "jump/a b.mp4", "jump/gone.mp4", "run/old.mp4",
        "run/long.mp4",
    ]  # fmt: skip
    assert [row["source"] for row in rows][:3] == ["run/long.mkv", "run/text.mp4", "jump/a b.avi"]
    assert [row["status"] for row in rows] == ["ok", "bad", "ok", "bad", "bad", "ok"]
    assert rows[0]["num_frames"] == "40" and rows[0]["height"] == "24" and rows[0]["width"] == "60"
    manifest = read_manifest(out / "train.csv")
    assert manifest.classes == ("jump", "run") and manifest.labels.tolist() == [1, 0, 1]
    for index in range(3):
        video = open_video(manifest.path(index))
        assert manifest.num_frames(index) == video.num_frames
        assert frame_numbers(video.read(range(video.num_frames))) == list(range(video.num_frames))
    printed = capsys.readouterr().out
    assert "left out: run/text.mp4" in printed and "left out: jump/gone.avi: no such" in printed
    assert "6 videos: 3 encoded" in printed
    assert re.search(r"size: \S+ -> \S+ GB \([\d.]+ x\)", printed)
    assert re.search(r"clips of 16 frames: [\d.]+ -> [\d.]+ per second .*2 videos timed", printed)
    # What `data check` says of it
    assert main(["data", "check", str(out / "train.csv")]) == 1
    assert [row["status"] for row in _rows(out / "train.csv")] == [row["status"] for row in rows]


def test_nothing_is_done_twice(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But what has changed: the source, or the result."""
    names = ["run/long.mkv", "jump/a b.avi", "run/text.mp4"]
    (videos / "m.csv").write_text("path\n" + "\n".join(names[:2]) + "\n")
    out = tmp_path / "out"
    monkeypatch.setattr(transcode, "Transcode", TranscodeDouble)

    def tried(**settings: object) -> list[str]:
        for file in videos.rglob("tried.txt"):
            file.unlink()
        transcode_manifest(videos / "m.csv", out, QUICK, **settings)
        return [name for f in videos.rglob("tried.txt") for name in f.read_text().split("\n")[:-1]]

    assert sorted(tried()) == ["a b.avi", "long.mkv"]
    first = {name: (out / name).read_bytes() for name in _files(out)}
    assert tried() == []
    assert {name: (out / name).read_bytes() for name in _files(out)} == first
    (videos / "m.csv").write_text("path\n" + "\n".join(names) + "\n")
    assert tried() == ["text.mp4"]  # a longer list
    assert tried() == []
    (out / "jump" / "a b.mp4").write_bytes(b"cut")
    assert tried() == ["a b.avi"]
    write_indexed_video(videos / "run" / "long.mkv", 7)
    shutil.copy(videos / "run" / "long.mkv", videos / "run" / "text.mp4")
    assert sorted(tried()) == ["long.mkv", "text.mp4"]
    assert [row["num_frames"] for row in _rows(out / "m.csv")] == ["7", "12", "7"]


def test_killed_and_run_again(tmp_path: Path) -> None:
    manifest = _folder_of_slow_ones(tmp_path / "in", 16)
    expected = tmp_path / "expected"
    transcode_manifest(manifest, expected, Encoding(preset="ultrafast"))
    out = tmp_path / "out"
    arguments = ["transcode", str(manifest), "-o", str(out), "--workers", "2"]
    arguments += ["--preset", "ultrafast"]
    command = [sys.executable, str(Path(__file__).parents[1] / "killable_doubles.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    journal = out / ".transcode.jsonl"
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        give_up = time.monotonic() + 60
        while not journal.exists() or len(journal.read_bytes().splitlines()) < 5:
            assert time.monotonic() < give_up and process.poll() is None
            time.sleep(0.01)
        process.kill()
    known = read_journal(journal)
    assert 5 <= len(known) < 17 and not (out / "m.csv").exists()
    for path in out.glob("*.mp4"):  # whatever has its name is whole
        assert inspect_video(str(path)).num_frames == 12
    (out / part_name("slow15.mp4")).write_bytes(b"half")  # as a kill may leave one
    times = {name: (out / name).stat().st_mtime_ns for name in known if name != "text.mp4"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert f"{len(known)} videos were already done" in done.stdout
    assert {name: (out / name).stat().st_mtime_ns for name in times} == times
    (out / "m.csv.index").unlink()  # says when files were written
    (expected / "m.csv.index").unlink()
    assert {name: (out / name).read_bytes() for name in _files(out)} == {
        name: (expected / name).read_bytes() for name in _files(expected)
    }
    tried = (tmp_path / "in" / "tried.txt").read_text().splitlines()
    assert len(tried) <= 17 + 2


def test_in_parts(tmp_path: Path) -> None:
    """As the tasks of a job array do, each without knowing of the others."""
    manifest = _folder_of_slow_ones(tmp_path / "in", 4)
    out = tmp_path / "out"
    out.mkdir()
    starting = out / ".transcode.json.1.tmp"  # a third part is just writing its settings
    starting.touch()
    for part in ((1, 2), (2, 2)):
        done = transcode_manifest(manifest, out, QUICK, part=part)
        assert not done.rows and not done.manifest.exists()
    starting.unlink()
    assert _files(out) == {f"slow{k:02d}.mp4" for k in range(4)}
    done = transcode_manifest(manifest, out, QUICK)
    assert (done.num_before, done.num_new) == (5, 0)
    assert [row["status"] for row in _rows(out / "m.csv")] == ["bad", *["ok"] * 4]


def test_a_video_that_hangs_or_crashes_costs_its_limit_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcode, "Transcode", TranscodeDouble)
    source = write_indexed_video(tmp_path / "in" / "good.mp4", 5)
    names = ["hangs.mp4", "crashes.mp4", "good.mp4", "pipe.mp4"]
    for name in names[:2]:
        shutil.copy(source, tmp_path / "in" / name)
    os.mkfifo(tmp_path / "in" / "pipe.mp4")
    (tmp_path / "in" / "m.csv").write_text("path\n" + "\n".join(names) + "\n")
    out = tmp_path / "out"
    done = transcode_manifest(tmp_path / "in" / "m.csv", out, QUICK, timeout_s=1.5, num_workers=2)
    assert [row["status"] for row in done.rows] == ["bad", "bad", "ok", "bad"]
    assert done.rows[3]["reason"] == "is not a file"
    assert "1.5 s" in done.rows[0]["reason"] and "SIGABRT" in done.rows[1]["reason"]
    assert _files(out) == {"m.csv", "m.csv.index", "good.mp4"}


def test_a_full_disk_stops_it_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor of another video that is under way then."""
    monkeypatch.setattr(transcode, "Transcode", TranscodeDouble)
    source = write_indexed_video(tmp_path / "in" / "full.mp4", 5)
    shutil.copy(source, tmp_path / "in" / "hangs.mp4")
    (tmp_path / "in" / "m.csv").write_text("path\nhangs.mp4\nfull.mp4\n")
    arguments = ["data", "transcode", str(tmp_path / "in" / "m.csv"), "--workers", "2"]
    assert "No space left" in _refusal([*arguments, "-o", str(tmp_path / "out")], capsys)
    assert _files(tmp_path / "out") == set()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_the_folders_fault_is_not_the_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def encode(source: str, target: str, encoding: Encoding, *, has_times: bool) -> Encoded:
        Path(target).write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    _in_this_process(monkeypatch)
    monkeypatch.setattr(transcode_video, "encode_video", encode)
    source = write_indexed_video(tmp_path / "a.mp4", 3)
    with pytest.raises(ValueError, match=f"cannot be written: {os.strerror(number)}"):
        Transcode(QUICK)(Work(str(source), str(tmp_path / "out" / "a.mp4"), None))
    assert _files(tmp_path / "out") == set()


def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transcode_video, "silence", lambda: None)


def test_a_result_that_does_not_read_back_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_this_process(monkeypatch)
    source = write_indexed_video(tmp_path / "a.mp4", 9)
    work = Work(str(source), str(tmp_path / "out" / "a.mp4"), None)
    assert Transcode(QUICK)(work).status == OK
    os.unlink(work.target)
    for read in (Verdict(OK, num_frames=8), Verdict(BAD, "broken")):
        monkeypatch.setattr(transcode_video, "inspect_video", lambda *_, read=read, **__: read)
        assert Transcode(QUICK)(work).status == BAD
        assert _files(tmp_path / "out") == set()


def test_a_source_that_is_not_whole_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _in_this_process(monkeypatch)
    source = write_indexed_video(tmp_path / "a.mkv", 30, codec="mpeg4")
    target = str(tmp_path / "out" / "a.mp4")
    cut = truncate(source, tmp_path / "cut.mkv", packet_ends(source)[19] + 5)
    assert Transcode(QUICK)(Work(str(source), target, 30)).num_frames == 30
    os.unlink(target)
    # The list says that there were more when it was checked
    found = Transcode(QUICK)(Work(str(cut), target, 30))
    assert found.status == BAD and "of 30 frames" in found.reason
    # Or all of it was decoded once, and gave other frames
    table = replace(decoded_table(str(cut)), num_frames=30).to_bytes()
    assert Transcode(QUICK)(Work(str(cut), target, None, table)).status == BAD
    assert _files(tmp_path / "out") == set()


def _damaged(folder: Path) -> Path:
    source = write_indexed_video(folder / "whole.mp4", 60)
    start = source.read_bytes().index(b"mdat") + 100
    return flip_bytes(source, folder / "smeared.mp4", 40, seed=4, start=start)


@pytest.mark.parametrize("is_checked", [True, False])
def test_the_damage_of_a_source_shows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], is_checked: bool
) -> None:
    source = _damaged(tmp_path / "in")
    expected = decoded_table(str(source))
    (tmp_path / "in" / "m.csv").write_text("path,label\nsmeared.mp4,0\nwhole.mp4,1\n")
    if is_checked:
        assert main(["data", "check", str(tmp_path / "in" / "m.csv")]) == 0
    out = tmp_path / "out"
    arguments = ["data", "transcode", str(tmp_path / "in" / "m.csv"), "-o", str(out)]
    assert main(arguments) == 0
    rows = _rows(out / "m.csv")
    assert [row["status"] for row in rows] == ["damaged", "ok"]
    lost = expected.num_lost - expected.num_lost_first
    assert [row["damaged"] for row in rows] == [str(expected.num_damaged + lost), "0"]
    assert rows[0]["num_frames"] == str(expected.num_frames)
    assert f"{lost} of {expected.num_frames + lost} frames lost" in rows[0]["reason"]
    assert f"damaged: smeared.mp4: {rows[0]['reason']}" in capsys.readouterr().out
    # What training reads: both, with the tables of the results
    manifest = read_manifest(out / "m.csv")
    assert len(manifest) == 2
    assert "1 videos have damaged frames (status damaged) and are used" in manifest.notes
    for place in range(2):
        assert manifest.table(place) == decoded_table(manifest.path(place)).to_bytes()
    assert main(arguments) == 0  # nothing is left to do
    assert _rows(out / "m.csv") == rows


def test_a_folder_of_an_older_version_goes_on(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose settings and journal know less."""
    (videos / "m.csv").write_text("path\nrun/long.mkv\njump/a b.avi\n")
    out = tmp_path / "out"
    transcode_manifest(videos / "m.csv", out, QUICK)
    settings = json.loads((out / "transcode.json").read_text())
    settings.pop("deinterlace")
    (out / "transcode.json").write_text(json.dumps(settings))
    journal = out / ".transcode.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for _, entry in entries:
        del entry["table"], entry["damaged"]
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    monkeypatch.setattr(transcode, "Transcode", TranscodeDouble)
    done = transcode_manifest(videos / "m.csv", out, QUICK)
    assert (done.num_before, done.num_new) == (2, 0)
    assert [row["num_frames"] for row in _rows(out / "m.csv")] == ["40", "12"]
    with pytest.raises(ValueError, match="deinterlace False, not True"):
        transcode_manifest(videos / "m.csv", out, replace(QUICK, deinterlace=True))


def test_a_source_that_changes_meanwhile_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _in_this_process(monkeypatch)
    source = write_indexed_video(tmp_path / "a.mp4", 9)

    def encode(name: str, target: str, encoding: Encoding, *, has_times: bool) -> Encoded:
        encoded = encode_video(name, target, encoding, has_times=has_times)
        os.utime(source, ns=(1, 1))
        return encoded

    monkeypatch.setattr(transcode_video, "encode_video", encode)
    found = Transcode(QUICK)(Work(str(source), str(tmp_path / "out" / "a.mp4"), None))
    assert (found.status, found.reason) == (BAD, "changed while it was read")
    assert _files(tmp_path / "out") == set()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.avi", "b/c.mp4", "./b/d.e.webm", "a.avi"], ["a.mp4", "b/c.mp4", "b/d.e.mp4", "a.mp4"]),
        (["a.avi", "a.mp4", "a.webm"], ["a.avi.mp4", "a.mp4", "a.webm.mp4"]),
        (["a.avi", "a.avi.mp4", "a.mp4"], ["a.avi.mp4", "a.avi_2.mp4", "a.mp4"]),
        (["/root/x/a.mp4", "c.mp4"], ["x/a.mp4", "c.mp4"]),
        (["../other/y/a.mp4", "/other/z/b.mp4"], ["y/a.mp4", "z/b.mp4"]),
        (["/other/a.mp4"], ["a.mp4"]),
        (["../a.mp4", "a.mp4"], ["a.mp4", "a_2.mp4"]),
        (["no_ending", "line\nbreak.mp4", "caf\udce9.avi"], None),
    ],
)
def test_names_of_results(names: list[str], expected: list[str] | None) -> None:
    found = target_names(names, "/root")
    assert expected is None or found == expected
    paths = {os.path.normpath(os.path.join("/root", name)) for name in names}
    assert len(set(found)) == len(paths)
    assert all(not os.path.isabs(name) and ".." not in name.split("/") for name in found)
    assert all(name.endswith(".mp4") for name in found)


def test_time_of_reading_is_of_either_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is read as often as the other, at the same places."""
    _in_this_process(monkeypatch)
    opened: list[str] = []
    monkeypatch.setattr(
        transcode_video,
        "open_video",
        lambda path, decoder, table: opened.append(path) or open_video(path, table=table),
    )
    pair = [str(write_indexed_video(tmp_path / name, 80)) for name in ("a.mp4", "b.mp4")]
    assert all(seconds > 0 for seconds in TimeReading("decord")(((pair[0], None), (pair[1], None))))
    assert opened == pair * 4


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("hpm-video data: ")
    assert captured.out == ""
    return captured.err


def test_mistakes_are_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "m.csv").write_text("path\nrun/long.mkv\n")
    (videos / "own.csv").write_text("path\na.mp4\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = _files(tmp_path)

    def refusal(manifest: Path, *options: str, out: Path = tmp_path / "out") -> str:
        return _refusal(["data", "transcode", str(manifest), "-o", str(out), *options], capsys)

    manifest = videos / "m.csv"
    assert "nowhere.csv" in refusal(videos / "nowhere.csv")
    assert "must not be the folder of the videos" in refusal(manifest, out=videos)
    assert "must not be the folder of the videos" in refusal(manifest, out=videos / "run" / "..")
    assert "holds other files" in refusal(manifest, out=tmp_path / "full")
    assert "cannot be written" in refusal(manifest, out=tmp_path / "full" / "file" / "out")
    for option, words in [
        ("--workers=0", "workers (0) must be at least 1"),
        ("--timeout=-1", "timeout (-1) must be above 0"),
        ("--short-side=225", "short_side (225)"),
        ("--part=3/2", "part (3/2)"),
        ("--part=1", "part (1)"),
        ("--fps=0", "fps (0)"),
        ("--fps=1/1001", "fps (0.000999001)"),
    ]:
        assert words in refusal(manifest, option)
    assert _files(tmp_path) == before

    assert main(["data", "transcode", str(manifest), "-o", str(tmp_path / "out")]) == 0
    assert "crf 23, not 30" in refusal(manifest, "--crf", "30")
    (videos / "classes.txt").write_text("run\njump\n")
    assert "classes.txt" in refusal(manifest)
    (videos / "classes.txt").unlink()
    with (tmp_path / "out" / ".transcode.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "already running" in refusal(manifest)
    other = write_indexed_video(tmp_path / "others" / "run" / "long.mp4", 5).parents[1]
    (other / "m.csv").write_text("path\nrun/long.mp4\n")
    assert f"was made from {videos / 'run' / 'long.mkv'}" in refusal(other / "m.csv")
    assert open_video(tmp_path / "out" / "run" / "long.mp4").num_frames == 40
    # A list whose videos are there already, under the names of results
    shutil.copy(tmp_path / "out" / "m.csv", tmp_path / "out" / "again.csv")
    assert "must not be the folder of the videos" in refusal(tmp_path / "out" / "again.csv")
