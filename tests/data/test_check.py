"""`hpm-video data check`: the list it writes, its summary, and what a kill may do to it."""

import csv
import fcntl
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import pytest
from damage import flip_bytes
from killable_doubles import InspectDouble
from videos import write_indexed_video

from hpm_video.cli.main import main
from hpm_video.data.lists.frame_index import FrameIndex
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.lists.rows import read_rows
from hpm_video.data.prepare import check
from hpm_video.data.prepare.check_report import make_report, report_page, report_text
from hpm_video.data.prepare.verdict import _places
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.runtime.journal import Journal, read_journal

ROOT = Path(__file__).parents[2]
COLUMNS = [
    "num_frames", "fps", "width", "height", "status", "num_bytes", "duration_s", "damaged",
    "reason",
]  # fmt: skip


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A folder of two good videos and some that are not."""
    write_indexed_video(tmp_path / "a b.mp4", 12)
    write_indexed_video(tmp_path / "long.avi", 40, codec="mpeg4", size=(32, 80))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    return tmp_path


@pytest.mark.parametrize("quick", [False, True])
def test_the_list_gets_what_was_found_out(
    videos: Path, capsys: pytest.CaptureFixture[str], quick: bool
) -> None:
    names = ["text.mp4", "a b.mp4", "pipe.mp4", "empty.mp4", "gone, .mp4", "long.avi", "a b.mp4"]
    lines = [
        f'{k},"{name}",{["", "ok", "bad", "missing"][k % 4]},99,c{k % 2}'
        for k, name in enumerate(names)
    ]
    manifest = videos / "m.csv"
    manifest.write_text("own,path,status,num_frames,label\n" + "\n".join(lines) + "\n")
    options = ["--quick"] if quick else []
    assert main(["data", "check", str(manifest), "--workers", "2", *options]) == 1
    rows = _rows(manifest)
    # Their columns and rows in their order, then ours
    assert list(rows[0])[:5] == ["own", "path", "status", "num_frames", "label"]
    assert set(rows[0]) == {"own", "path", "label", *COLUMNS}
    assert [row["path"] for row in rows] == names
    assert [row["own"] for row in rows] == list("0123456")
    found = [(row["status"], row["num_frames"]) for row in rows]
    assert found == [
        ("bad", ""), ("ok", "12"), ("bad", ""), ("bad", ""), ("bad", ""), ("ok", "40"),
        ("ok", "12"),
    ]  # fmt: skip
    assert [bool(row["reason"]) for row in rows] == [row["status"] == "bad" for row in rows]
    last = rows[5]
    assert (last["width"], last["height"], float(last["fps"])) == ("80", "32", 10)
    assert float(last["duration_s"]) == pytest.approx(4)
    assert int(last["num_bytes"]) == (videos / "long.avi").stat().st_size
    # What training reads
    read = read_manifest(manifest, labels=False)
    assert len(read) == 3
    assert [read.num_frames(k) for k in range(3)] == [12, 40, 12]
    # Nothing but the list, its index and its page is left
    assert {p.name for p in videos.iterdir()} == {
        *(names[:4]), "long.avi", "m.csv", "m.csv.index", "m.check.html",
    }  # fmt: skip
    printed = capsys.readouterr().out
    assert "7 videos: 3 ok, 0 damaged, 4 bad" in printed
    assert "gone, .mp4: no such file" in printed
    assert printed.splitlines()[-1] == str(manifest)


def test_a_quick_check_claims_no_more_than_it_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The damage lies where it decodes nothing."""
    path = write_indexed_video(tmp_path / "a.mp4", 200, options={"g": "5"})
    data = bytearray(path.read_bytes())
    sampled = {frame for place in _places(200) for frame in place}
    skipped = next(k for k in range(40, 200) if not sampled & set(range(k - 16, k + 16)))
    with av.open(str(path)) as container:
        at = [(packet.pos, packet.size) for packet in container.demux() if packet.size][skipped]
    data[at[0] + 24 : at[0] + at[1]] = bytes(at[1] - 24)  # behind its header
    path.write_bytes(data)
    manifest = tmp_path / "m 1.csv"
    manifest.write_text("path\na.mp4\n")
    assert main(["data", "check", str(manifest), "--quick", "-o", str(tmp_path / "q.csv")]) == 0
    full = f"hpm-video data check '{manifest}' --output {tmp_path / 'q.csv'}"
    page, printed = (tmp_path / "q.check.html").read_text(), capsys.readouterr().out
    assert _rows(tmp_path / "q.csv")[0]["status"] == "ok", "the quick check must miss the damage"
    assert "completely" not in page and "All 1 videos decode where they were sampled" in page
    for said in (page, printed):
        assert full in html.unescape(said) and "quick check" in said.lower()
    assert main(shlex.split(full)[1:]) == 0
    assert _rows(tmp_path / "q.csv")[0]["status"] == "damaged"
    page, printed = (tmp_path / "q.check.html").read_text(), capsys.readouterr().out
    assert "quick check" not in (page + printed).lower()


def test_the_index_has_the_tables_of_what_can_be_read(videos: Path) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path\n./long.avi\ntext.mp4\na b.mp4\n./long.avi\n")
    check.check_manifest(manifest)
    index = FrameIndex(videos / "m.csv.index")
    assert len(index) == 2
    for name in ("./long.avi", "a b.mp4"):
        assert index.get(name) == decoded_table(str(videos / name)).to_bytes()
    assert index.get("text.mp4") is None
    # A quick check keeps what is known of a file that has not changed
    shutil.copy(videos / "a b.mp4", videos / "text.mp4")
    check.check_manifest(manifest, quick=True)
    index = FrameIndex(videos / "m.csv.index")
    assert index.get("a b.mp4") == decoded_table(str(videos / "a b.mp4")).to_bytes()
    new = FrameTable.from_bytes(index.get("text.mp4") or b"")
    assert new is not None and (new.num_frames, new.is_decoded) == (12, False)


def test_damaged_videos_are_used_and_named(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All on the page, some on the terminal, with what to do."""
    source = write_indexed_video(videos / "whole.mp4", 60)
    start = source.read_bytes().index(b"mdat") + 100
    for number in range(25):
        flip_bytes(source, videos / f"smeared{number}.mp4", 40, seed=4, start=start)
    names = [f"smeared{number}.mp4" for number in range(25)]
    (videos / "m.csv").write_text("path\nwhole.mp4\ntext.mp4\n" + "\n".join(names) + "\n")
    main(["data", "check", str(videos / "m.csv")])
    printed = capsys.readouterr().out
    rows = {row["path"]: row for row in _rows(videos / "m.csv")}
    damaged = [row for row in rows.values() if row["status"] == "damaged"]
    assert len(damaged) == 25
    for row in damaged:
        assert int(row["damaged"]) > 0 and row["reason"]
    assert rows["whole.mp4"]["damaged"] == "0"
    assert len(read_manifest(videos / "m.csv")) == 1 + len(damaged)
    for row in damaged[:20]:
        assert f"  {row['path']}: {row['reason']}\n" in printed
    page = (videos / "m.check.html").read_text()
    assert f"and {len(damaged) - 20} more, in {videos / 'm.check.html'}" in printed
    assert all(row["path"] in page for row in damaged)
    assert "text.mp4: is not a video" in printed and "copy or download it again" in printed
    assert "data.max_damage" in page


def test_an_index_takes_the_place_of_no_other_file(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "m.csv").write_text("path\nlong.avi\n")
    (videos / "m.csv.index").write_text("my own notes")
    assert "m.csv.index is not the index of a list" in _refusal([str(videos / "m.csv")], capsys)
    assert (videos / "m.csv.index").read_text() == "my own notes"


def test_the_journal_of_an_older_version_is_no_use(
    videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (videos / "m.csv").write_text("path\nlong.avi\na b.mp4\n")
    status = (videos / "long.avi").stat()
    entry = {
        "status": "ok", "reason": "", "num_frames": 7, "fps": 10.0, "width": 80, "height": 32,
        "num_bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "quick": False,
        "decoder": "decord", "timeout_s": None,
    }  # fmt: skip
    with Journal(videos / ".m.csv.check.jsonl") as journal:
        journal.add(str(videos / "long.avi"), entry)
    assert main(["data", "check", str(videos / "m.csv")]) == 0
    assert [row["num_frames"] for row in _rows(videos / "m.csv")] == ["40", "12"]
    printed = capsys.readouterr().out
    assert "older version" in printed and "1 videos" in printed


def test_exit_code_0_when_all_are_ok(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path\nlong.avi\n")
    assert main(["data", "check", str(manifest), "-o", str(videos / "checked.csv")]) == 0
    assert manifest.read_text() == "path\nlong.avi\n"
    assert _rows(videos / "checked.csv")[0]["status"] == "ok"
    assert (
        main(["data", "check", str(manifest), "--workers", "1", "--page", str(videos / "p")]) == 0
    )
    assert (videos / "p").read_text().startswith("<!doctype html>")
    assert main(["data", "check", str(manifest), "--page", str(videos / "p")]) == 0
    assert _rows(manifest) == _rows(videos / "checked.csv")


def test_a_checked_list_can_be_checked_again(videos: Path) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path,status\nlong.avi,\ntext.mp4,\nskipped.mp4,my own word\n")
    assert main(["data", "check", str(manifest)]) == 1
    first = manifest.read_bytes()
    assert [row["status"] for row in _rows(manifest)] == ["ok", "bad", "my own word"]
    assert main(["data", "check", str(manifest)]) == 1
    assert manifest.read_bytes() == first
    shutil.copy(videos / "long.avi", videos / "text.mp4")  # mended
    assert main(["data", "check", str(manifest)]) == 0
    assert [row["status"] for row in _rows(manifest)] == ["ok", "ok", "my own word"]


@pytest.mark.parametrize(
    "text", ["a b.mp4 0\nlong.avi 1\n", "video\tclass\na b.mp4\tx\nlong.avi\ty\n"]
)
def test_a_foreign_list_becomes_ours_and_is_kept(videos: Path, text: str) -> None:
    manifest = videos / "train.txt"
    manifest.write_text(text)
    before = read_manifest(manifest)
    assert main(["data", "check", str(manifest)]) == 0
    assert (videos / "train.txt.orig").read_text() == text
    after = read_manifest(manifest)
    assert [after.name(k) for k in range(2)] == [before.name(k) for k in range(2)]
    assert after.labels.tolist() == before.labels.tolist() == [0, 1]
    assert [after.num_frames(k) for k in range(2)] == [12, 40]
    assert main(["data", "check", str(manifest)]) == 0
    assert not (videos / "train.txt.orig2").exists()


def test_paths_start_at_the_root(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    manifest = tmp_path_factory.mktemp("elsewhere") / "m.csv"
    manifest.write_text(f"path\nlong.avi\n{videos / 'a b.mp4'}\n")
    assert main(["data", "check", str(manifest), "--root", str(videos)]) == 0
    assert [row["num_frames"] for row in _rows(manifest)] == ["40", "12"]


def test_a_list_that_is_written_elsewhere_leads_to_the_same_files(
    videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Its index as well; with a root, where all lists' paths start, they stay."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (videos / "sub").mkdir()
    shutil.copy(videos / "long.avi", videos / "sub" / "e\u0301.avi")
    (videos / "m.csv").write_text("path,status\na b.mp4,\nsub/\u00e9.avi,\ntext.mp4,mine\n")
    for folder in (elsewhere, videos / "sub"):
        assert main(["data", "check", str(videos / "m.csv"), "-o", str(folder / "o.csv")]) == 0
        manifest = read_manifest(folder / "o.csv")
        files = [os.path.realpath(manifest.path(k)) for k in range(2)]
        assert files == [str(videos / "a b.mp4"), str(videos / "sub" / "e\u0301.avi")]
        assert manifest.table(0) is not None and manifest.table(1) is not None
        assert os.path.samefile(folder / _rows(folder / "o.csv")[2]["path"], videos / "text.mp4")
    assert _rows(videos / "sub" / "o.csv")[1]["path"] == "\u00e9.avi"
    check.check_manifest(videos / "m.csv", output=elsewhere / "p.csv", root=videos)
    assert _rows(elsewhere / "p.csv")[0]["path"] == "a b.mp4"


@pytest.mark.usefixtures("readers_may_write")
def test_a_video_that_hangs_or_crashes_costs_its_limit_only(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In native code with the interpreter's lock held, where no signal handler ever runs."""
    monkeypatch.setattr(check, "Inspect", InspectDouble)
    for name in ("hangs.mp4", "crashes.mp4"):
        shutil.copy(videos / "a b.mp4", videos / name)
    names = ["hangs.mp4", "long.avi", "crashes.mp4", "a b.mp4"]
    (videos / "m.csv").write_text("path\n" + "\n".join(names) + "\n")
    done = check.check_manifest(videos / "m.csv", num_workers=2, timeout_s=1.5)
    rows = _rows(done.manifest)
    assert [row["status"] for row in rows] == ["bad", "ok", "bad", "ok"]
    assert "1.5 s" in rows[0]["reason"]
    assert "SIGABRT" in rows[2]["reason"]
    assert [row["num_frames"] for row in rows] == ["", "40", "", "12"]


def test_names_of_any_bytes(videos: Path) -> None:
    names = ['it\'s "a", b.mp4', "line\nbreak.mp4", " outer .mp4", "vidéo 視.mp4", "caf\udce9.mp4"]
    for name in names:
        with open(os.path.join(videos, name), "wb") as file:
            file.write((videos / "long.avi").read_bytes())
    write_manifest(videos / "m.csv", [{"path": name} for name in [*names, "no\udce9.mp4"]])
    assert main(["data", "check", str(videos / "m.csv")]) == 1
    manifest = read_manifest(videos / "m.csv")
    assert [manifest.name(k) for k in range(len(manifest))] == names
    assert [manifest.num_frames(k) for k in range(len(manifest))] == [40] * len(names)
    check.check_manifest(videos / "m.csv")
    rows = [row for _, row in read_rows(videos / "m.csv")]
    assert [row["path"] for row in rows] == [*names, "no\udce9.mp4"]
    assert rows[-1]["reason"] == "no such file"


def test_a_video_under_another_spelling_that_vanishes(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.move(videos / "a b.mp4", videos / "e\u0301.mp4")
    (videos / "m.csv").write_text("path\n\u00e9.mp4\nlong.avi\n")
    add = Journal.add

    def add_and_delete(self: Journal, key: str, entry: dict[str, object]) -> None:
        add(self, key, entry)
        (videos / "e\u0301.mp4").unlink(missing_ok=True)

    monkeypatch.setattr(Journal, "add", add_and_delete)
    check.check_manifest(videos / "m.csv")
    assert [row["status"] for row in _rows(videos / "m.csv")] == ["ok", "ok"]


def _slow_list(videos: Path, number: int) -> Path:
    for k in range(number):
        shutil.copy(videos / "a b.mp4", videos / f"slow{k:02d}.mp4")
    manifest = videos / "m.csv"
    manifest.write_text(
        "path,label\ntext.mp4,0\n" + "".join(f"slow{k:02d}.mp4,{k}\n" for k in range(number))
    )
    return manifest


def test_killed_and_run_again(videos: Path) -> None:
    """No half file, nothing done twice but what was under way, and the same list in the end."""
    manifest = _slow_list(videos, 16)
    expected = videos / "expected.csv"
    check.check_manifest(manifest, output=expected)
    before = manifest.read_bytes()
    arguments = ["check", str(manifest), "--workers", "2"]
    script = str(Path(__file__).parents[1] / "killable_doubles.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    journal = videos / ".m.csv.check.jsonl"
    for number in (3, 8):
        with subprocess.Popen(
            [sys.executable, script, *arguments],
            env=environment,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            give_up = time.monotonic() + 60
            while not journal.exists() or len(journal.read_bytes().splitlines()) < number:
                assert time.monotonic() < give_up and process.poll() is None
                time.sleep(0.01)
            process.kill()
        assert manifest.read_bytes() == before
    with journal.open("ab") as file:  # as a failure of the machine may leave it
        file.write(b'["half a li')
    known = set(read_journal(journal))
    assert 8 <= len(known) < 17
    done = subprocess.run(
        [sys.executable, script, *arguments],
        env=environment, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f"interrupted check, which had finished {len(known)} videos" in done.stdout
    assert manifest.read_bytes() == expected.read_bytes()
    assert not journal.exists()
    tried = (videos / "tried.txt").read_text().splitlines()
    assert set(tried) == {"text.mp4", *(f"slow{k:02d}.mp4" for k in range(16))}
    assert len(tried) <= 17 + 2 * 2  # two workers, killed twice
    assert not [p for p in videos.iterdir() if p.name.endswith(".tmp")]


@pytest.mark.usefixtures("readers_may_write")
def test_what_was_journalled_holds_for_the_same_file_only(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mended file, another thoroughness and another limit are tried again, the others not."""
    manifest = videos / "m.csv"
    manifest.write_text("path\nlong.avi\ntext.mp4\na b.mp4\n")
    monkeypatch.setattr(check, "Inspect", InspectDouble)
    monkeypatch.setattr(Journal, "remove", lambda self: None)

    def tried(**settings: object) -> list[str]:
        (videos / "tried.txt").write_text("")
        check.check_manifest(manifest, output=videos / "out.csv", **settings)
        return (videos / "tried.txt").read_text().split("\n")[:-1]

    assert tried() == ["long.avi", "text.mp4", "a b.mp4"]
    assert tried() == []
    shutil.copy(videos / "long.avi", videos / "text.mp4")
    assert tried() == ["text.mp4"]
    (videos / "long.avi").unlink()
    assert tried() == ["long.avi"]
    assert [row["status"] for row in _rows(videos / "out.csv")] == ["bad", "ok", "ok"]
    assert tried(quick=True) == ["long.avi", "text.mp4", "a b.mp4"]
    shutil.copy(videos / "a b.mp4", videos / "long.avi")
    (videos / "long.avi").rename(videos / "hangs.avi")
    manifest.write_text("path\nhangs.avi\ntext.mp4\na b.mp4\n")
    assert tried(quick=True, timeout_s=0.7) == ["hangs.avi"]
    assert tried(quick=True, timeout_s=0.7) == []
    assert tried(quick=True, timeout_s=0.8) == ["hangs.avi"]


def test_a_list_that_changes_meanwhile_is_not_written_over(
    videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path\nlong.avi\n")
    add = Journal.add

    def add_and_edit(self: Journal, key: str, entry: dict[str, object]) -> None:
        add(self, key, entry)
        manifest.write_text("path\nlong.avi\na b.mp4\n")

    monkeypatch.setattr(Journal, "add", add_and_edit)
    with pytest.raises(ValueError, match="changed during the check"):
        check.check_manifest(manifest)
    assert manifest.read_text() == "path\nlong.avi\na b.mp4\n"


def _refusal(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["data", "check", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("hpm-video data: ")
    assert captured.out == ""
    return captured.err


def test_mistakes_are_one_line(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path\nlong.avi\n")
    other, video = videos / "others.csv", (videos / "long.avi").read_bytes()
    other.write_text("path\nlong.avi\n")
    (videos / "zeros").write_bytes(bytes(10**6))
    (videos / "none.csv").write_text("path,label\n")
    (videos / "gap.csv").write_text('path,label\n"",3\n')
    os.mkfifo(videos / "fifo.csv")
    for arguments, words in [
        ([str(videos / "nowhere.csv")], "nowhere.csv"),
        ([str(videos)], "folder"),
        ([str(videos / "fifo.csv")], "fifo.csv must be a file"),
        ([str(videos / "none.csv")], "no videos"),
        ([str(videos / "gap.csv")], "gap.csv:2"),
        ([str(manifest), "--workers", "0"], "workers (0) must be at least 1"),
        ([str(manifest), "--timeout", "0"], "timeout (0) must be above 0"),
        ([str(manifest), "--timeout", "nan"], "timeout (nan) must be above 0"),
        ([str(manifest), "-o", str(videos / "no" / "m.csv")], "output ("),
        ([str(manifest), "-o", str(videos)], "output ("),
        ([str(manifest), "--page", str(videos / "no" / "p.html")], "page ("),
        ([str(manifest), "--page", str(manifest)], "page ("),
        ([str(manifest), "--page", str(other)], "others.csv) must be a new file"),
        ([str(manifest), "--page", "/dev/null"], "page (/dev/null) must be a new file"),
        ([str(manifest), "-o", str(videos / "long.avi")], "long.avi) must be a new file"),
        ([str(manifest), "-o", str(videos / "zeros")], "zeros) must be a new file"),
        ([str(manifest), "-o", "/dev/null"], "output (/dev/null) must be a new file"),
    ]:
        assert words in _refusal(arguments, capsys)
    assert manifest.read_text() == other.read_text() == "path\nlong.avi\n"
    assert (videos / "long.avi").read_bytes() == video
    assert (videos / "zeros").stat().st_size == 10**6
    with (videos / ".m.csv.check.jsonl").open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "already running" in _refusal([str(manifest)], capsys)


def test_a_full_disk_is_one_line(
    videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = videos / "m.csv"
    manifest.write_text("path\nlong.avi\n")
    real = os.replace

    def full(source: str | Path, target: str | Path) -> None:
        if Path(target) == manifest:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", full)
    assert "No space left on device" in _refusal([str(manifest)], capsys)
    assert manifest.read_text() == "path\nlong.avi\n"
    assert not list(videos.glob(".*.tmp"))


def test_a_disk_that_is_too_full_for_the_copy_of_a_list(
    videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (videos / "m.txt").write_text("long.avi 3\n")

    def full(source: Path, target: Path) -> None:
        target.write_text("lon")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    assert "m.txt.orig cannot be written: No space left" in _refusal(
        [str(videos / "m.txt")], capsys
    )
    assert (videos / "m.txt").read_text() == "long.avi 3\n"
    assert not list(videos.glob("*m.txt.*orig*"))


def test_interrupted_by_ctrl_c_leaves_no_process(videos: Path) -> None:
    manifest = _slow_list(videos, 16)
    shutil.copy(videos / "a b.mp4", videos / "hangs.mp4")
    manifest.write_text("path\nhangs.mp4\n" + manifest.read_text().split("\n", 1)[1])
    manifest.write_text(re.sub(r",\d+", "", manifest.read_text()))
    script = str(Path(__file__).parents[1] / "killable_doubles.py")
    with subprocess.Popen(
        [sys.executable, script, "check", str(manifest), "--workers", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        journal = videos / ".m.csv.check.jsonl"
        give_up = time.monotonic() + 60
        while not journal.exists() or not journal.read_bytes():
            assert time.monotonic() < give_up
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert process.returncode == 1
    assert error == "hpm-video data: interrupted\n"
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


def test_page_and_text_escape_names() -> None:
    """Names of videos, classes and reasons are others' text: in a page no markup, no formulas."""
    nasty = '<script>alert("x")</script>$\\frac{1}{0}$\udcff\n'
    good = {"num_frames": "10", "width": "64", "height": "48", "num_bytes": "5", "status": "ok"}
    rows = [
        {"path": nasty, "label": nasty, **good, "duration_s": "1.0"},
        {"path": "b", "label": "", **good, "duration_s": ""},
        {"path": nasty, "label": "", "status": "bad", "reason": f"{nasty} is broken at 17"},
        {"path": "c", "label": "", "status": "bad", "reason": "c is broken at 3.5"},
        {"path": "d", "label": "", "status": nasty},
    ]
    report = make_report(rows, classes=[nasty])
    assert report.bad.kinds == {"FILE is broken at N": 2}
    page = report_page(report, title=nasty)
    assert page.count("<script") == 0 and "&lt;script&gt;" in page
    page.encode()  # is valid Unicode
    assert not re.search(r'(src|href)="(?!data:)', page)  # needs no other file
    text = report_text(report, page="a.html")
    text.encode()
    assert "5 videos: 2 ok, 0 damaged, 2 bad" in text


def test_figures_of_the_report() -> None:
    def row(label: object, side: int, duration_s: float) -> dict[str, str]:
        return {
            "path": "a", "label": str(label), "num_frames": "10", "width": "640",
            "height": str(side), "num_bytes": "1000", "duration_s": str(duration_s), "status": "ok",
        }  # fmt: skip

    rows = [row(2, 360, 1.0), row(2, 360, 3.0), row(0, 480, 10.0), row("-1", 480, 2.0)]
    report = make_report(rows, classes=["cat", "dog", "cow"])
    assert report.labels == {"": 1, "0 cat": 1, "1 dog": 0, "2 cow": 2}
    assert report.sizes == {(640, 360): 2, (640, 480): 2}
    assert (report.num_ok, report.num_frames, report.num_bytes) == (4, 40, 4000)
    text = report_text(report, page="a.html")
    assert "3 classes of 0 to 2 videos, 1 videos without" in text
    assert "1 to 10 s, median 2.5 s" in text
    counts = [int(n) for n in re.findall(r"^ +(\d+) #* +[\d.]+ - [\d.]+ s$", text, re.MULTILINE)]
    assert sum(counts) == 4 and counts[0] == 1 and counts[-1] == 1
    none = make_report([{"path": "a", "status": "bad", "reason": "gone"}])
    assert "1 videos: 0 ok, 0 damaged, 1 bad" in report_text(none, page="a.html")
    page = report_page(none, title="/home/lists/a.csv")
    assert "<svg" not in page and "<title>Check of a.csv</title>" in page
    assert ">1 of 1 videos are bad and left out of training: a.<" in page
    page = report_page(report, title="a")
    assert "All 4 videos decode completely." in page and page.count('<svg class="bars"') == 3
    same = make_report([row(0, 360, 2.0), row(1, 360, 2.0)], classes=["cat", "dog"])
    page, text = report_page(same, title="a"), report_text(same, page="a.html")
    assert "Durations: all 2 seconds. Short sides: all 360 pixels. Sizes of classes: all 1" in page
    assert "<svg" not in page and "duration: all 2 s\nframe size:" in text


def test_journal(tmp_path: Path) -> None:
    path = tmp_path / "j.jsonl"
    with Journal(path) as journal:
        journal.add("a\udcff\n", {"x": 1})
        journal.add("b", {"x": 2})
        journal.add("b", {"x": 3})
    whole = path.read_bytes()
    expected = {"a\udcff\n": {"x": 1}, "b": {"x": 3}}
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        with Journal(path) as journal:
            assert journal.entries == {**expected, "b": {"x": 2}}
            journal.add("b", {"x": 3})
        assert path.read_bytes() == whole
    assert json.loads(whole.splitlines()[1]) == ["b", {"x": 2}]
    assert read_journal(path) == expected


@pytest.mark.parametrize(
    "line",
    [
        "5", "[1]", "[[], {}]", '["a", 5]', "[1, {}]",
        '["PATH", {"table": null}]',
        '["PATH", {"table": null, "quick": false, "timeout_s": null, SAME, "status": "<b>"}]',
        '["PATH", {"table": 5, "quick": false, "timeout_s": null, SAME, "status": "ok"}]',
        '["PATH", {"table": null, "quick": false, "timeout_s": null, SAME, "status": "ok",'
        ' "num_frames": "many"}]',
    ],
)  # fmt: skip
def test_a_journal_that_others_made_says_nothing(tmp_path: Path, line: str) -> None:
    """It lies beside a list, in a folder that came from elsewhere."""
    video = write_indexed_video(tmp_path / "a.mp4", 8)
    about = os.stat(video)
    same = f'"num_bytes": {about.st_size}, "mtime_ns": {about.st_mtime_ns}'
    line = line.replace("PATH", str(video)).replace("SAME", same)
    (tmp_path / "m.csv").write_text("path\na.mp4\n")
    (tmp_path / ".m.csv.check.jsonl").write_text(f"{line}\n")
    assert main(["data", "check", str(tmp_path / "m.csv"), "--workers", "1"]) == 0
    assert ",ok," in (tmp_path / "m.csv").read_text()
