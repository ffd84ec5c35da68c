"""Tars of videos: which are read, where in them, what is refused, and that they are as files."""

import contextlib
import csv
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import numpy as np
import pytest
from runs import assert_same_run, run_until_stopped
from shards import STEP, bad_tars, video_bytes, write_shards, write_tar
from videos import frame_numbers

from hpm_video.cli.main import main
from hpm_video.config.values import Decoder
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.prepare.encode import Encoding
from hpm_video.data.prepare.pack import Shards
from hpm_video.data.prepare.transcode import transcode_manifest
from hpm_video.data.video.frame_table import fitting_table
from hpm_video.data.video.frames import VideoReadError, missing, open_video
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.data.video.source import locate, open_bytes


@pytest.fixture(scope="module")
def pattern(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two tars of three videos each."""
    return write_shards(tmp_path_factory.mktemp("shards"))


def _firsts(manifest: Manifest) -> list[int]:
    """The first frame of each video."""
    return [
        frame_numbers(open_video(manifest.path(index), "pyav").read([0]))[0]
        for index in range(len(manifest))
    ]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_pattern_is_a_list(pattern: str) -> None:
    manifest = read_manifest(pattern)
    assert [manifest.name(index) for index in range(6)] == [
        f"train-{n:04d}.tar/{n:05d}{k:04d}.mp4" for n in range(2) for k in range(3)
    ]
    assert manifest.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert _firsts(manifest) == [number * STEP for number in range(6)]


@pytest.mark.parametrize("decoder", get_args(Decoder))
def test_every_reader_reads_in_place(pattern: str, decoder: str) -> None:
    if reason := missing(cast("Decoder", decoder)):
        pytest.skip(reason)
    path = read_manifest(pattern).path(4)
    table = decoded_table(path)
    assert table.num_bytes == len(open_bytes(path).read())
    video = open_video(path, cast("Decoder", decoder), table=table.to_bytes())
    assert (video.decoder, video.num_frames) == (decoder, 24)
    assert frame_numbers(video.read([23, 0, 7])) == [4 * STEP + frame for frame in (23, 0, 7)]


def test_a_name_that_ffmpeg_takes_for_a_pattern(tmp_path: Path) -> None:
    files = [("a%03d*?.mp4", video_bytes(tmp_path, 1)), ("b.mp4", video_bytes(tmp_path, 2))]
    manifest = read_manifest(write_tar(tmp_path / "odd, x%d.tar", files))
    assert _firsts(manifest) == [STEP, 2 * STEP]


def test_a_part_of_a_file_is_a_file(tmp_path: Path) -> None:
    content = bytes(range(256)) * 40
    tar = write_tar(tmp_path / "a.tar", [("x.mp4", b"before"), ("y.mp4", content), ("z.mp4", b"")])
    with open_bytes(f"{tar}/y.mp4") as file:
        assert file.read(10) == content[:10]
        assert file.seek(-5, os.SEEK_END) == len(content) - 5
        assert file.read(100) == content[-5:]
        assert file.seek(10**6) == 10**6 and file.read(1) == b""
        file.seek(3)
        assert file.read() == content[3:]
    assert open_bytes(f"{tar}/z.mp4").read() == b""


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_format(tmp_path: Path, kind: int) -> None:
    folder = "f" * (90 if kind == tarfile.USTAR_FORMAT else 300)
    names = [f"{folder}/{'n' * 90}.mp4", f"{folder}/b.mp4"]
    files = [(name, video_bytes(tmp_path, k)) for k, name in enumerate(names)]
    manifest = read_manifest(write_tar(tmp_path / "a.tar", files, kind=kind))
    assert [manifest.name(index) for index in range(2)] == [f"a.tar/{name}" for name in names]
    assert _firsts(manifest) == [0, STEP]


def test_names_as_tar_itself_gives_them(tmp_path: Path) -> None:
    """Of a folder: ./ before each, hidden files, those without an ending, and bytes of any sort."""
    video = video_bytes(tmp_path, 3)
    odd = os.fsdecode(b"./\xe9.mp4")
    names = ["./a.b/k.mp4", "./a.b/k.left.MP4", odd, "./._k.mp4", "./README"]
    tar = write_tar(tmp_path / "a.tar", [(name, video) for name in names])
    manifest = read_manifest(tar)
    found = [manifest.name(index) for index in range(len(manifest))]
    assert found == ["a.tar/a.b/k.mp4", "a.tar/a.b/k.left.MP4", f"a.tar/{odd[2:]}"]
    assert _firsts(manifest) == [3 * STEP] * 3


def test_what_is_refused_is_one_line(tmp_path: Path) -> None:
    for what, (path, said) in bad_tars(tmp_path).items():
        with pytest.raises(ValueError, match="tar") as caught:
            read_manifest(path)
        text = str(caught.value)
        assert text.startswith(str(path)) and said in text and "\n" not in text, what
        assert not Path(f"{path}.videos").exists()


def test_all_faults_of_a_pattern_are_named_at_once(tmp_path: Path) -> None:
    write_tar(tmp_path / "t-0.tar", [("../a.mp4", b"v")])
    (tmp_path / "t-1.tar").write_bytes(b"")
    with pytest.raises(ValueError, match=r"t-[01]\.tar.* \(and 1 more"):
        read_manifest(tmp_path / "t-{0..1}.tar")
    with pytest.raises(FileNotFoundError, match=r"t-2\.tar .*\(2 of the 4 tars"):
        read_manifest(tmp_path / "t-{0..3}.tar")
    with pytest.raises(ValueError, match="ranges or commas"):
        read_manifest(tmp_path / "t-{0-3}.tar")


def test_patterns(tmp_path: Path) -> None:
    for name in ("a/t-08", "a/t-09", "a/t-10", "b/t-08", "b/t-09", "b/t-10"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_tar(tmp_path / f"{name}.tar", [("x.mp4", name.encode())])
    manifest = read_manifest(tmp_path / "{b,a}/t-{08..10}.tar")
    assert [manifest.name(index) for index in range(6)] == [
        f"{folder}/t-{number}.tar/x.mp4" for folder in "ba" for number in ("08", "09", "10")
    ]
    assert open_bytes(manifest.path(5)).read() == b"a/t-10"
    (tmp_path / "t-{0..1}.tar").write_bytes((tmp_path / "a/t-08.tar").read_bytes())
    assert read_manifest(tmp_path / "t-{0..1}.tar").name(0) == "t-{0..1}.tar/x.mp4"


def test_a_tar_that_changes_is_looked_through_again(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    write_tar(path, [("a.mp4", video_bytes(tmp_path, 1)), ("b.mp4", video_bytes(tmp_path, 2))])
    manifest = read_manifest(path)
    assert _firsts(manifest) == [STEP, 2 * STEP]
    table = decoded_table(manifest.path(1))
    write_tar(path, [("c.txt", b"c" * 5000), ("b.mp4", video_bytes(tmp_path, 4))])
    os.utime(path, ns=(0, table.mtime_ns + 10**10))
    # A process that has seen the old one
    assert frame_numbers(open_video(manifest.path(1), "pyav").read([0])) == [4 * STEP]
    with pytest.raises(VideoReadError, match="no such file"):
        open_video(manifest.path(0))
    assert not table.fits(manifest.path(1))
    assert _firsts(read_manifest(path)) == [4 * STEP]


def test_the_index_is_written_once_and_damage_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.mp4", video_bytes(tmp_path, 1))])
    assert _firsts(read_manifest(path)) == [STEP]
    index = Path(f"{path}.videos")
    written = index.stat().st_mtime_ns
    read_manifest(path)
    assert index.stat().st_mtime_ns == written
    content = index.read_bytes()
    for damaged in (content[:-3], content[:40], b"", b"other" * 50):
        index.write_bytes(damaged)
        assert _firsts(read_manifest(path)) == [STEP]
        assert index.read_bytes() == content
    # Where the folder cannot be written to, the index is in the cache
    index.unlink()
    index.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _firsts(read_manifest(path)) == [STEP]
    (kept,) = (tmp_path / "cache").rglob("*.videos")
    assert kept.read_bytes() == content
    # Nowhere: a line says what to do
    kept.unlink()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        read_manifest(path)


def test_a_list_may_name_videos_in_tars(pattern: str, tmp_path: Path) -> None:
    folder = Path(pattern).parent
    rows = "train-0001.tar/000010002.mp4,7\ntrain-0000.tar/000000001.mp4,8\n"
    (tmp_path / "list.csv").write_text(f"path,label\n{rows}")
    manifest = read_manifest(tmp_path / "list.csv", root=str(folder))
    assert (manifest.labels.tolist(), _firsts(manifest)) == ([7, 8], [5 * STEP, STEP])
    (tmp_path / "list.csv").write_text("path\ntrain-0001.tar/none.mp4\nnone.tar/000010002.mp4\n")
    manifest = read_manifest(tmp_path / "list.csv", root=str(folder))
    for index in range(2):
        with pytest.raises(VideoReadError, match="no such file"):
            open_video(manifest.path(index))


def test_captions_are_no_labels_and_fields_are_where_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = video_bytes(tmp_path, 1)
    files = [
        ("a.mp4", video), ("a.json", b'{"of": {"class": "run"}, "tags": [1, 2]}'),
        ("a.txt", b"one"), ("b.json", b'{"of": {"class": "jump"}}'), ("b.mp4", video),
        ("b.txt", b"two\n"), ("c.json", b"{}"), ("c.txt", b""),
    ]  # fmt: skip
    tar = write_tar(tmp_path / "a.tar", files)
    manifest = read_manifest(tar)
    assert manifest.labels.tolist() == [-1, -1]
    assert manifest.notes == (f"{tar}: 1 samples have no video (.mp4, .webm, ...)",)
    output = tmp_path / "lists" / "of.csv"
    words = ["data", "list", "--manifest", str(tar), "-o", str(output), "--label"]
    assert main([*words, "json.of.class"]) == 0
    assert (output.parent / "classes.txt").read_text() == "jump\nrun\n"
    assert [row["label"] for row in _rows(output)] == ["1", "0"]
    assert _firsts(read_manifest(output)) == [STEP, STEP]
    assert main(["data", "list", "--manifest", str(tar), "-o", str(tmp_path / "t.csv"),
                 "--label", "txt"]) == 0  # fmt: skip
    assert (tmp_path / "classes.txt").read_text() == "one\ntwo\n"
    capsys.readouterr()
    assert main(["data", "list", "--folder", str(tmp_path), "-o", str(output)]) == 2
    assert f"--manifest {tar}" in capsys.readouterr().err
    for label, said in (("json.tags", "must have a text or a number"), ("png", "must be cls, txt")):
        assert main([*words, label]) == 2
        assert said in capsys.readouterr().err


def test_a_check_of_tars_writes_a_list_by_which_all_readers_read(
    pattern: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "check", pattern]) == 2
    assert "-o FILE.csv" in capsys.readouterr().err
    output = Path(pattern).parent / "checked.csv"
    assert main(["data", "check", pattern, "-o", str(output)]) == 0
    manifest = read_manifest(output)
    assert manifest.name(0) == "train-0000.tar/000000000.mp4"
    assert manifest.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert [row["num_frames"] for row in _rows(output)] == ["24"] * 6
    if not missing("decord"):
        video = open_video(manifest.path(3), "decord", table=manifest.table(3))
        assert video.decoder == "decord"


def test_a_run_on_tars_is_the_run_on_files_and_goes_on_in_the_middle_of_one(
    tmp_path: Path, toy: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """Bit for bit: of the same videos, in the same order."""
    files = read_manifest(toy, labels=False)
    half = len(files) // 2
    for number, part in enumerate((range(half), range(half, len(files)))):
        videos = [(f"{k:05d}.mp4", Path(files.path(k)).read_bytes()) for k in part]
        write_tar(tmp_path / f"toy-{number}.tar", videos)
    shards = f"data.manifest={tmp_path}/toy-{{0..1}}.tar"
    stopped = pretrain_arguments(tmp_path / "stopped", shards)
    assert main(pretrain_arguments(tmp_path / "files")) == 0
    assert main(pretrain_arguments(tmp_path / "whole", shards)) == 0
    run_until_stopped(stopped, at=2)
    assert main(stopped) == 0
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert_same_run(tmp_path / "files", tmp_path / "whole")


def test_transcode_writes_tars(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    for k in range(5):
        (folder / f"class {k % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class {k % 2}" / f"{k}.a.mp4").write_bytes(video_bytes(tmp_path, k))
    (folder / "class 0" / "bad.mp4").write_text("none")
    assert main(["data", "list", "--folder", str(folder), "-o", str(folder / "train.csv")]) == 0
    output = tmp_path / "out"
    words = ["data", "transcode", str(folder / "train.csv"), "-o", str(output), "--per-shard", "2"]
    words += ["--preset", "ultrafast", "--num-workers", "2"]
    assert main(words) == 1  # one is bad
    assert sorted(path.name for path in output.glob("*.tar")) == [
        f"train-{number:05d}.tar" for number in range(3)
    ]
    assert not (output / ".staged").exists()
    rows = _rows(output / "train.csv")
    labels = {row["path"]: row["label"] for row in _rows(folder / "train.csv")}
    manifest = read_manifest(output / "train.csv")
    assert len(rows) == 6 and len(manifest) == 5
    good = [row for row in rows if row["status"] == "ok"]
    assert [row["label"] for row in good] == [labels[row["source"]] for row in good]
    numbers = [int(Path(row["source"]).name[0]) for row in good]
    assert _firsts(manifest) == [number * STEP for number in numbers]
    assert all(manifest.table(index) is not None for index in range(5))
    if not missing("decord"):
        video = open_video(manifest.path(0), "decord", table=manifest.table(0))
        assert video.decoder == "decord"
    # As a list of their own, they have the same classes
    own = read_manifest(output / "train-{00000..00002}.tar")
    assert own.labels.tolist() == manifest.labels.tolist()
    # What was there stays; a source that has changed is encoded, and its tar is written, anew
    before = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    changed = next(path for path in folder.rglob("3.a.mp4"))
    changed.write_bytes(video_bytes(tmp_path, 7))
    assert main(words) == 1
    again = read_manifest(output / "train.csv")
    assert _firsts(again) == [STEP * (7 if number == 3 else number) for number in numbers]
    after = {path.name: path.stat().st_mtime_ns for path in output.glob("*.tar")}
    assert sum(after[name] != before[name] for name in before) == 1
    assert all(fitting_table(again.table(k), again.path(k)) is not None for k in range(5))


def test_a_tar_gives_no_label_of_a_part_to_its_whole_video(tmp_path: Path) -> None:
    """Nor one of several that a video has; parts that are cut out keep theirs."""
    for k in range(3):
        (tmp_path / f"{k}.mp4").write_bytes(video_bytes(tmp_path, k))
    listed, quick = tmp_path / "l.csv", Encoding(preset="ultrafast")
    rows = ["0.mp4,5,0,4", "0.mp4,6,4,8", "1.mp4,7,,", "2.mp4,8,,", "2.mp4,9,,"]
    listed.write_text("\n".join(["path,label,start_frame,end_frame", *rows]))
    for name, cut, expected in (
        ("whole", False, [-1, 7, -1]),
        ("cut", True, [5, 6, 7, -1]),
    ):
        output = tmp_path / name
        transcode_manifest(listed, output, quick, per_shard=9, cut=cut)
        assert read_manifest(output / "l-00000.tar").labels.tolist() == expected
        assert read_manifest(output / "l.csv").labels.tolist() == [5, 6, 7, 8, 9]


def test_a_transcode_that_was_cut_short_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ended with videos encoded and their tar not written."""
    (tmp_path / "videos").mkdir()
    for k in range(3):
        (tmp_path / "videos" / f"{k}.mp4").write_bytes(video_bytes(tmp_path, k))
    listed = tmp_path / "train.csv"
    listed.write_text("path\n" + "".join(f"videos/{k}.mp4\n" for k in range(3)))
    words = ["data", "transcode", str(listed), "-o", str(tmp_path / "out"), "--per-shard", "2"]
    words += ["--preset", "ultrafast"]
    with monkeypatch.context() as patch:
        patch.setattr(Shards, "pack", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            transcode_manifest(listed, tmp_path / "out", Encoding(preset="ultrafast"), per_shard=2)
    assert len(list((tmp_path / "out" / ".staged").iterdir())) == 2
    for part in ("1/2", "2/2"):
        assert main([*words, "--part", part]) == 0
    assert main(words) == 0
    assert _firsts(read_manifest(tmp_path / "out" / "train.csv")) == [0, STEP, 2 * STEP]
    assert not (tmp_path / "out" / ".staged").exists()


def test_an_index_of_a_stranger_names_nothing_outside_its_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.mp4", video_bytes(tmp_path, 1)), ("a.cls", b"2")])
    read_manifest(path)
    index = Path(f"{path}.videos")
    content, rng = index.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(content)
        for place in rng.integers(len(damaged), size=3):
            damaged[place] = rng.integers(256)
        damaged[24:32] = zlib.crc32(damaged[80:]).to_bytes(8, "little")
        index.write_bytes(damaged)
        with contextlib.suppress(FileNotFoundError):
            place = locate(f"{path}/a.mp4")
            assert (
                0 <= (place.start or 0) <= (place.start or 0) + place.size <= os.stat(path).st_size
            )
        with contextlib.suppress(ValueError):  # whatever labels it has, it may have
            read_manifest(path)
