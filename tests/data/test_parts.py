"""Parts of videos: no frame outside of one is ever read, and lists say what they mean by them."""

import csv
import json
import os
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import assert_same_run, run_until_stopped
from videos import frame_numbers, write_indexed_video, write_timed_video

from hpm_video.bench.study.few_labels import write_part
from hpm_video.cli.main import main
from hpm_video.config import DataConfig, DataSetConfig, LabelsConfig, PretrainConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.lists.overlap import find_shared
from hpm_video.data.loading.clip import read_clip
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import VideoReadError, open_frames, open_video
from hpm_video.data.video.part import Part, file_of, split_part, stem_of
from hpm_video.data.video.timeline import frames_at

SIZE = (48, 64)
NUM = 120
_STEPS = np.random.default_rng(7).integers(1, 90, size=NUM - 1)
# Name -> when frames are shown, in units of so many seconds; all but the last have B-frames
VIDEOS: dict[str, tuple[list[int], Fraction]] = {
    "constant.mp4": ([*range(NUM)], Fraction(1001, 30000)),
    "variable.mp4": ([0, *_STEPS.cumsum().tolist()], Fraction(1, 1000)),
    "late.mkv": ([1500 + 40 * n for n in range(NUM)], Fraction(1, 1000)),
    "counted.avi": ([*range(NUM)], Fraction(1, 10)),
}


def write(path: Path, times: Sequence[int], unit: Fraction) -> Path:
    if path.suffix == ".avi":
        return write_indexed_video(path, len(times), SIZE, fps=10, codec="mpeg4")
    return write_timed_video(path, times, unit, SIZE, gop=24)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    for name, (times, unit) in VIDEOS.items():
        write(folder / name, times, unit)
    return folder


def shown_at(name: str) -> list[Fraction]:
    """When each frame appears, in seconds from the first; Matroska has whole milliseconds."""
    times, unit = VIDEOS[name]
    return [Fraction(time - times[0]) * unit for time in times]


def expected(name: str, start: str, end: str, *, in_frames: bool = False) -> set[int]:
    """The frames of a part, one by one as it is defined."""
    times = range(NUM) if in_frames else shown_at(name)
    return {n for n, time in enumerate(times) if Fraction(start) <= time < Fraction(end)}


def rows_of(name: str) -> list[tuple[str, str]]:
    """Parts of a video in seconds: meeting, overlapping, of few frames, and to its very end."""
    lasts = float(shown_at(name)[-1])
    one = shown_at(name)[50]
    return [
        ("0", f"{lasts / 3:.3f}"),
        (f"{lasts / 3:.3f}", f"{lasts / 2:.3f}"),
        (f"{lasts / 4:.3f}", f"{lasts / 2.5:.3f}"),
        (f"{float(one) - 0.0004:.4f}", f"{float(one) + 0.0004:.4f}"),  # one frame
        (f"{lasts - 0.21:.2f}", f"{lasts + 5:.2f}"),
    ]


def in_seconds(folder: Path, name: str, file: Path) -> tuple[Manifest, list[set[int]]]:
    """A list of the parts of a video, and the frames of each."""
    rows = rows_of(name)
    lines = [f"{folder / name},{start},{end}" for start, end in rows]
    file.write_text("\n".join(["path,start_s,end_s", *lines]) + "\n")
    return read_manifest(file), [expected(name, *row) for row in rows]


DATA = DataConfig(num_frames=4, frame_stride=1, crop_size=16, num_workers=0)


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize(
    "settings",
    [
        {"frame_stride": 1},
        {"frame_stride": 7},
        {"sampling": "uniform"},
        {"sampling": "videomae_pretrain", "frame_stride": 3},
        {"sampling": "videomae_kinetics", "frame_stride": 2},
        {"sampling": "videomae_ssv2"},
        {"fps": 12.5, "frame_stride": 1},
        {"fps": 60, "frame_stride": 1},
        {"fps": 0.5, "frame_stride": 1},
        {"decoder": "pyav", "repeats": 4, "windows": 2},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
def test_no_frame_outside_of_a_part_is_read(
    folder: Path, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    """Clips of training, test views and middle clips, of every row of a list."""
    manifest, parts = in_seconds(folder, name, tmp_path / "list.csv")
    data = replace(DATA, **settings)
    clips = ClipDataset(manifest, ClipReader(data), seed=3)
    views = ViewDataset(manifest, data, num_clips=3, num_crops=1)
    for place, allowed in enumerate(parts):
        assert allowed
        seen: set[int] = set()
        for epoch in range(6):
            sample = clips[epoch, place]
            assert not sample.bad and sample.index == place
            seen.update(frame_numbers(sample.clips.flatten(0, 1)))
        sample_of_views = views[place]
        assert sample_of_views.error is None
        seen.update(frame_numbers(sample_of_views.views.flatten(0, 1)))
        middle, _ = read_clip(manifest.path(place), PretrainConfig(data=data))
        seen.update(frame_numbers(middle[0].permute(1, 2, 3, 0) * 255))
        assert seen <= allowed, f"part {place}: {sorted(seen - allowed)} are outside"
        if len(allowed) <= 4 and settings == {"frame_stride": 1}:
            assert seen == allowed  # and all of it is


@pytest.mark.parametrize("name", VIDEOS)
def test_parts_that_meet_have_each_frame_once(folder: Path, name: str) -> None:
    """Also where they meet right at the time of a frame, as nearly as decimals can say that."""
    times = [f"{float(time):.6f}" for time in shown_at(name)[::10]]
    read: list[int] = []
    for start, end in zip(times, [*times[1:], "1e6"], strict=True):
        video = open_frames(f"{folder / name}#t={start},{end}")
        numbers = frame_numbers(video.read(np.arange(video.num_frames)))
        assert set(numbers) == expected(name, start, end)
        read += numbers
    assert read == list(range(NUM))


def test_parts_by_numbers_of_frames(folder: Path, tmp_path: Path) -> None:
    rows = [("0", "1"), ("17", "40.0"), ("30", "50"), ("118", "500")]
    for name in VIDEOS:
        lines = [f"{folder / name},{start},{end}" for start, end in rows]
        (tmp_path / "l.csv").write_text("\n".join(["path,start_frame,end_frame", *lines]))
        manifest = read_manifest(tmp_path / "l.csv")
        for place, row in enumerate(rows):
            video = open_frames(manifest.path(place), most_frames=119)
            numbers = set(frame_numbers(video.read(np.arange(video.num_frames))))
            assert numbers == expected(name, *row, in_frames=True) - {119}


@pytest.mark.parametrize("name", VIDEOS)
def test_rates_are_those_of_the_whole_video(folder: Path, name: str) -> None:
    """A part shows at each moment what its video shows then."""
    path = folder / name
    for fps in (3.0, 12.5, 50.0):
        whole = frames_at(open_video(path).table, fps)
        for start, end in rows_of(name):
            video = open_frames(f"{path}#t={start},{end}", fps=fps)
            numbers = frame_numbers(video.read(np.arange(video.num_frames)))
            inside = [n for n in whole.tolist() if n in expected(name, start, end)]
            assert numbers == inside or (not inside and len(numbers) == 1)


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.parametrize("rate", [None, 5.0])
def test_windows_of_a_part(folder: Path, name: str, rate: float | None) -> None:
    """Their times are those of the video, as players show them."""
    whole = LongVideo(folder / name)
    for start, end in rows_of(name):
        video = LongVideo(f"{folder / name}#t={start},{end}", rate=rate)
        frames = list(video.frames(range(video.num_frames)))
        allowed = sorted(expected(name, start, end))
        assert set(frame_numbers(np.stack(frames))) <= set(allowed)
        assert len(video.times) == video.num_frames + 1
        assert video.times[0] == whole.times[allowed[0]]
        if rate is None:
            assert len(frames) == len(allowed)
            assert video.times.tolist() == whole.times[[*allowed, allowed[-1] + 1]].tolist()


def test_what_a_part_is_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for part in (Part(0, 1e9), Part(0.1, 12.345678), Part(1e-7, 3), Part(3, 9, in_frames=True)):
        assert split_part(f"/x/a b.mp4{part}") == ("/x/a b.mp4", part)
    assert [stem_of(f"x/a.b.mp4#{part}") for part in ("t=1.5,2", "frame=3,9", "u=1,2")] == [
        *("a.b_t1.5-2", "a.b_frame3-9", "a.b"),
    ]
    for whole in ("a.mp4", "a#b.mp4", "a.mp4#t=1", "a.mp4#t=1,2,3", "a.mp4#t=-,+"):
        assert split_part(whole) == (whole, None) and file_of(whole) == whole
    for wrong in ("a.mp4#t=2,1", "a.mp4#t=1,1", "a.mp4#frame=1,2.5", "a.mp4#t=1,1e999"):
        with pytest.raises(ValueError, match=f"^{wrong}: part .* must have"):
            split_part(wrong)
        assert main(["visualize", "none", wrong, "-o", str(tmp_path / "pages")]) == 2
        assert main(["predict", "none", wrong]) == 2
        assert capsys.readouterr().err.count(f"{wrong}: part (") == 2
    odd = write_indexed_video(tmp_path / "a.mp4", 12).rename(tmp_path / "a.mp4#t=1,2")
    assert split_part(str(odd)) == (str(odd), None)  # as it always was
    assert open_frames(odd).num_frames == 12
    part = f"{odd}#frame=3,5"
    assert frame_numbers(open_frames(part).read(np.arange(2))) == [3, 4]
    write_indexed_video(tmp_path / "a.mp4", 12)
    with pytest.raises(VideoReadError, match="names a file and a part of"):
        open_frames(odd)


def test_parts_outside_of_their_video_are_unreadable(folder: Path, tmp_path: Path) -> None:
    path = folder / "constant.mp4"
    for part in ("t=4.01,5", "t=0.001,0.002", "frame=120,121"):
        with pytest.raises(VideoReadError) as caught:
            open_frames(f"{path}#{part}")
        assert caught.value.path == f"{path}#{part}"
        assert caught.value.reason == (
            "has no frame in this part: the video has 120 frames and lasts 4.004 s"
        )
    lines = [f"{path},1,2", f"{path},9,10", f"{path},8,9", f"{path},1,3"]
    (tmp_path / "l.csv").write_text("\n".join(["path,start_s,end_s", *lines]))
    views = ViewDataset(read_manifest(tmp_path / "l.csv"), DATA, num_clips=1, num_crops=1)
    assert [views[place].error is None for place in range(4)] == [True, False, False, True]


def _read(path: Path, text: str, **more: Any) -> Manifest:
    path.write_text(text)
    return read_manifest(path, **more)


def test_lists_without_parts_are_what_they_were(tmp_path: Path) -> None:
    """By their digests, which tell a run that it goes on with the same videos."""
    known = "bacb13155da5c7a8ceb6fe2f73613874538a2843cc49ae0ea87e4c1147411823"
    plain = _read(tmp_path / "m.csv", "path,label\na.mp4,0\nb.mp4,1\na.mp4,1\n")
    assert plain.digest() == known and plain.bounds is None
    empty = "path,label,start_s,end_s\na.mp4,0,,\nb.mp4,1,,\na.mp4,1,,\n"
    assert _read(tmp_path / "m.csv", empty).digest() == known
    found = set()
    for header, row in (
        ("start_s,end_s", "1,2"), ("start_s,end_s", "1,3"), ("start_frame,end_frame", "1,2"),
    ):  # fmt: skip
        text = f"path,label,{header}\na.mp4,0,{row}\nb.mp4,1,,\na.mp4,1,,\n"
        found.add(_read(tmp_path / "m.csv", text).digest())
    assert len(found | {known}) == 4


def test_parts_of_several_lists(tmp_path: Path) -> None:
    """Some in seconds, some in frames, some without: each row is as its own list says."""
    texts = {
        "a.csv": "path,label\na.mp4,0\n",
        "b.csv": "path,start_s,end_s,label\na.mp4,0,1.50,0\na.mp4,,,1\n./a.mp4,0.0,1.5,1\n",
        "c.csv": "start_frame,end_frame,path\n3,9,a.mp4\n",
        "d.csv": "path\nb.mp4\n",
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    manifest = read_manifest([tmp_path / name for name in texts])
    names = [manifest.name(place) for place in range(len(manifest))]
    assert names == [
        "a.mp4",
        "a.mp4#t=0,1.5",
        "a.mp4",
        "./a.mp4#t=0,1.5",
        "a.mp4#frame=3,9",
        "b.mp4",
    ]
    assert [manifest.path(k) for k in (0, 4)] == [
        f"{tmp_path}/a.mp4",
        f"{tmp_path}/a.mp4#frame=3,9",
    ]
    assert manifest.file(4) == f"{tmp_path}/a.mp4"
    assert manifest.row(4) == {"path": f"{tmp_path}/a.mp4", "start_frame": "3", "end_frame": "9"}
    assert manifest.num_repeated == 2 and manifest.notes == ()
    # Not Python objects, which workers would slowly copy
    assert isinstance(manifest.bounds, np.ndarray) and manifest.bounds.shape == (6, 2)


def test_lists_of_some_of_a_list_keep_their_parts(tmp_path: Path) -> None:
    """As studies with few labels write them."""
    rows = ["a.mp4,1,2,x", "b.mp4,,,y", "a.mp4,3,4.25,y", "a.mp4,5,6,x"]
    (tmp_path / "l.csv").write_text("\n".join(["path,start_s,end_s,label", *rows]))
    lists = DataSetConfig(train=[str(tmp_path / "l.csv")])
    write_part(lists, tmp_path / "few" / "l.csv", 3)
    few = read_manifest(tmp_path / "few" / "l.csv")
    names = sorted(few.path(place) for place in range(3))
    assert names == [f"{tmp_path}/{name}" for name in ("a.mp4#t=1,2", "a.mp4#t=5,6", "b.mp4")]


def test_all_faults_of_parts_are_named_at_once(tmp_path: Path) -> None:
    header = "path,start_s,end_s,duration_s"
    rows = ["3,1", "2,2", "-1,2", "abc,2", "1,nan", ",2", "1,", "1,1e30", "1,2", "50,60", "59,61"]
    text = "\n".join([header, *(f"a.mp4,{row},50" for row in rows)])
    with pytest.raises(ValueError) as caught:
        _read(tmp_path / "l.csv", text)
    file = tmp_path / "l.csv"
    assert str(caught.value) == (
        f"{file}:2: end_s (1) must be above start_s (3) (and 1 more: line 3); "
        f"{file}:4: start_s (-1) must be a number of seconds from 0 to 1,000,000,000 "
        f"(and 2 more: line 5, 7); "
        f"{file}:6: end_s (nan) must be a number of seconds from 0 to 1,000,000,000 "
        f"(and 2 more: line 8, 9); "
        f"{file}:11: start_s (50) must be below duration_s (50) (and 1 more: line 12)"
    )
    for text, said in {
        "path,start_frame,end_frame\na.mp4,1.5,3\n": "start_frame (1.5) must be an integer",
        "path,start_frame,end_frame,num_frames\na.mp4,9,12,9\n": "(9) must be below num_frames (9)",
        "path,start_s,end_s,start_frame,end_frame\na.mp4,1,2,,\n": "not both pairs",
        "path,start_s\na.mp4,1\n": "must be in columns start_s,end_s or start_frame,end_frame",
        "path,start_frame,stop_frame\na.mp4,1,2\n": "--seconds start_frame stop_frame -o",
        'path\n"a.mp4#t=1,2"\n': "names a part; write it in the columns path,start_s,end_s",
    }.items():
        with pytest.raises(ValueError) as caught:
            _read(tmp_path / "l.csv", text)
        assert said in str(caught.value) and str(tmp_path / "l.csv") in str(caught.value)
    # What was checked is known better than by an average number of frames per second
    checked = "path,start_s,end_s,duration_s,status\na.mp4,50,60,50,ok\nb.mp4,90,99,50,bad\n"
    assert len(_read(tmp_path / "l.csv", checked)) == 1


def test_parts_are_shared_where_they_overlap(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.mp4").write_bytes(name.encode() * 99)
    (tmp_path / "link.mp4").symlink_to(tmp_path / "d.mp4")
    (tmp_path / "copy.mp4").write_bytes((tmp_path / "b.mp4").read_bytes())
    head = "path,start_s,end_s\n"
    train = _read(
        tmp_path / "t.csv", f"{head}a.mp4,0,5\na.mp4,7,9\nb.mp4,0,5\nc.mp4,,\nd.mp4,0,5\n"
    )
    rows = {
        "a.mp4,5,7": False, "a.mp4,4.9,5": True, "a.mp4,6,8": True, "a.mp4,,": True,
        "link.mp4,5,6": False, "link.mp4,1,2": True, "copy.mp4,5,6": False, "copy.mp4,4,6": True,
        "c.mp4,1,2": True,
    }  # fmt: skip
    val = _read(tmp_path / "v.csv", head + "\n".join(rows))
    assert str(find_shared(train, val)) == "6 of 9 videos (1 linked, 1 copied)"
    assert sum(rows.values()) == 6
    frames = _read(tmp_path / "f.csv", "path,start_frame,end_frame\na.mp4,900,910\n")
    assert find_shared(train, frames).num_shared == 1  # not known, and so said


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def _checked(folder: Path, file: Path) -> list[dict[str, str]]:
    lines = [
        f"{folder / name},{start},{end},{label}"
        for name in VIDEOS
        for label, (start, end) in enumerate(rows_of(name))
    ]
    file.write_text("\n".join(["path,start_s,end_s,label", *lines]) + "\n")
    assert main(["data", "check", str(file), "--num-workers", "2"]) == 0
    return _table(file)


def test_check_tells_which_parts_have_no_frame(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "variable.mp4"
    lasts = float(shown_at("variable.mp4")[-1])
    rows = ["0,1", f"{lasts + 9},{lasts + 10}", "1.0,1.0001", f"1,{lasts + 9}"]
    file = tmp_path / "l.csv"
    file.write_text("\n".join(["path,start_s,end_s", *(f"{path},{row}" for row in rows)]) + "\n")
    assert main(["data", "check", str(file), "--num-workers", "1"]) == 1
    said = capsys.readouterr().out
    assert "4 videos: 2 ok" in said and "0.00 GB" not in said
    found = _table(file)
    assert [row["status"] for row in found] == ["ok", "bad", "bad", "ok"]
    assert all("has no frame in this part" in row["reason"] for row in found[1:3])
    assert "s after its video" in found[3]["reason"] and not found[0]["reason"]
    assert {row["num_frames"] for row in found} == {"120"}  # of the file
    assert main(["data", "check", str(file), "--num-workers", "1"]) == 1  # as the first time
    assert _table(file) == found
    manifest = read_manifest(file)
    assert len(manifest) == 2 and manifest.table(0) is not None
    file.write_text("path,start_s,end_s\na.mp4,2,1\nb.mp4,1,x\n")
    assert main(["data", "check", str(file)]) == 2
    said = capsys.readouterr().err
    assert "l.csv:2: end_s (1) must be above start_s (2)" in said and "l.csv:3: end_s (x)" in said


def test_transcoded_parts(folder: Path, tmp_path: Path) -> None:
    """Of whole files, where they stay parts, and cut out, also into tars."""
    file = tmp_path / "l.csv"
    rows = _checked(folder, file)
    common = ["data", "transcode", str(file), "--short-side", "48", "--num-workers", "2", "-o"]
    assert main([*common, str(tmp_path / "whole")]) == 0
    assert main([*common, str(tmp_path / "cut"), "--cut"]) == 0
    assert main([*common, str(tmp_path / "packed"), "--cut", "--per-shard", "4"]) == 0
    assert len(list((tmp_path / "packed").glob("*.tar"))) == -(-len(rows) // 4)
    assert not list((tmp_path / "packed").rglob("*.mp4"))
    assert len(list((tmp_path / "whole").rglob("*.mp4"))) == 4
    whole, cut, packed = (
        read_manifest(tmp_path / kind / "l.csv") for kind in ("whole", "cut", "packed")
    )
    for manifest in (cut, packed):
        assert manifest.bounds is None and manifest.labels.tolist() == whole.labels.tolist()
    for place, row in enumerate(rows):
        allowed = expected(Path(row["path"]).name, row["start_s"], row["end_s"])
        for manifest in (whole, cut, packed):
            video = open_frames(manifest.path(place), table=manifest.table(place))
            assert frame_numbers(video.read(np.arange(video.num_frames))) == sorted(allowed)
    sources = [row["source"] for row in _table(tmp_path / "cut" / "l.csv")]
    assert sources == [row["source"] for row in _table(tmp_path / "packed" / "l.csv")]
    part = Part(float(rows[1]["start_s"]), float(rows[1]["end_s"]))
    assert sources[1] == f"{rows[1]['path']}{part}"
    # Times between frames are those of the source
    name, third = "variable.mp4", open_video(cut.path(6), "pyav").table
    times = [shown_at(name)[n] for n in sorted(expected(name, *rows_of(name)[1]))]
    unit = Fraction(*third.time_base)
    assert [int(t) * unit for t in third.times] == [time - times[0] for time in times]


def test_what_transcode_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, path = tmp_path / "l.csv", folder / "constant.mp4"
    command = ["data", "transcode", str(file), "-o", str(tmp_path / "out")]
    file.write_text(f"path,start_frame,end_frame\n{path},1,9\n")
    assert main([*command, "--fps", "5"]) == 2
    assert "l.csv:2: start_frame (1) must come with --cut" in capsys.readouterr().err
    file.write_text(f"path\n{path}\n")
    assert main([*command, "--cut"]) == 2
    assert "--cut must come with a list of parts" in capsys.readouterr().err
    file.write_text(f"path,start_s,end_s\n{path},1,2\n{folder}/./constant_t1-2.mp4,,\n")
    assert main([*command, "--cut"]) == 2
    assert "constant_t1-2.mp4) has the name of a part of" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


class Spy:
    """Which frames of which file any reader gives out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from hpm_video.data.video.frames import Video
        from hpm_video.data.video.readers.pyav import PyavReader

        self.seen: dict[str, set[int]] = {}
        read, stream = Video._read, PyavReader.stream

        def spied(video: Video, indices: Any) -> Any:
            found = read(video, indices)
            self._note(video.path, found[0])
            return found

        def streamed(reader: PyavReader, indices: Any) -> Any:
            for frame in stream(reader, indices):
                self._note(reader._path, frame[None])
                yield frame

        monkeypatch.setattr(Video, "_read", spied)
        monkeypatch.setattr(PyavReader, "stream", streamed)

    def _note(self, path: str, frames: np.ndarray) -> None:
        self.seen.setdefault(os.path.basename(path), set()).update(frame_numbers(frames))

    def take(self) -> dict[str, set[int]]:
        seen, self.seen = self.seen, {}
        return seen


def test_all_commands_stay_inside_the_parts(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pretrain_arguments: Any,
    finetune_arguments: Any,
) -> None:
    """Pre-training, fine-tuning, evaluation, predictions, features, probes and pages of a list of
    parts of two long videos."""
    parts = {  # their frames: the rest of each video is read by nobody
        "constant.mp4": [("0.5", "0.9"), ("0.8", "1.3"), ("3.9", "9")],
        "variable.mp4": [("0.3", "1"), ("2", "2.7"), ("2.6", "3.1")],
    }
    lines = [
        f"{folder / name},{start},{end},{'xy'[k % 2]}"
        for name, rows in parts.items()
        for k, (start, end) in enumerate(rows)
    ]
    file = tmp_path / "parts.csv"
    file.write_text("\n".join(["path,start_s,end_s,label", *lines]) + "\n")
    allowed = {n: set().union(*(expected(n, *row) for row in rows)) for n, rows in parts.items()}
    pre, fine, seen = tmp_path / "pre", tmp_path / "fine", Spy(monkeypatch)

    def run(*command: object, code: int = 0) -> str:
        assert main([str(word) for word in command]) == code
        found = seen.take()
        assert found.keys() == allowed.keys()
        assert all(found[name] <= allowed[name] for name in found)
        return capsys.readouterr().out

    few = ("data.batch_size=2", f"data.manifest={file}", "data.decoder=pyav")
    run(*pretrain_arguments(pre, *few, "run.picture_every=3"))
    run(*finetune_arguments(fine, *few, f"model.init={pre}", f"data.val_manifest={file}"))
    assert "validation videos are training videos" not in (pre / "log.txt").read_text()
    alone = ("--num-workers", "0")
    here = ("--device", "cpu", *alone)
    run("evaluate", fine, "--manifest", file, *here, "-o", tmp_path / "eval")
    names = [row["path"] for row in _table(tmp_path / "eval" / "predictions.csv")]
    assert names[0] == f"{folder}/constant.mp4#t=0.5,0.9" and len(set(names)) == 6
    run("predict", fine, "--manifest", file, *here, "-o", tmp_path / "classes.csv")
    assert [row["path"] for row in _table(tmp_path / "classes.csv")] == names
    run("predict", fine, *names, *here, "-o", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "classes.csv").read_bytes()
    run("predict", fine, "--manifest", file, *here, "--windows", "0.1", "-o", tmp_path / "along")
    events = _table(tmp_path / "along" / "events.csv")
    assert {row["path"] for row in events} == set(names)
    assert 0.5 <= float(events[0]["start_s"]) < float(events[0]["end_s"]) < 0.95
    assert (tmp_path / "along" / "constant_t0.5-0.9.html").is_file()
    run("features", pre, "--manifest", file, *here, "-o", tmp_path / "features.npz")
    run("features", pre, "--manifest", file, *here, "--stride", "2", "-o", tmp_path / "slid")
    index = tmp_path / "slid" / "index.csv"
    assert [(row["start_s"], row["end_s"]) for row in _table(index)][:2] == parts["constant.mp4"][
        :2
    ]
    assert len(read_manifest(index, labels=False)) == 6
    lists = ("--train", file, "--val", file)
    run("probe", pre, "--kind", "knn", *lists, *here)
    run("visualize", pre, "--manifest", file, "-o", tmp_path / "set", *here)
    run("visualize", pre, names[0], names[4], "-o", tmp_path / "pages", "--device", "cpu",
        "--formats", "--whole-video")  # fmt: skip
    assert (tmp_path / "pages" / "constant_t0.5-0.9.html").is_file()


def test_parts_of_one_video_are_told_apart_when_bad(
    folder: Path, tmp_path: Path, pretrain_arguments: Any
) -> None:
    path = folder / "constant.mp4"
    rows = ["0,1", "1,2", "8,9", "9,10", "2,3", "3,4"]
    file = tmp_path / "l.csv"
    file.write_text("\n".join(["path,start_s,end_s", *(f"{path},{row}" for row in rows)]))
    settings = (f"data.manifest={file}", "data.batch_size=2", "data.max_bad_fraction=0.5")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    bad = _table(tmp_path / "run" / "bad_videos.csv")
    assert sorted(row["path"] for row in bad) == [f"{path}#t=8,9", f"{path}#t=9,10"]
    assert (
        f"replaced by another: {path}#t=8,9: has no frame"
        in (tmp_path / "run" / "log.txt").read_text()
    )


# ---- data list ---------------------------------------------------------------------------------


def _listed(output: Path, *words: object) -> list[tuple[str, ...]]:
    assert main(["data", "list", *map(str, words), "-o", str(output)]) == 0
    names = ("path", "start_s", "end_s", "label")
    return [tuple(row.get(name, "") for name in names) for row in _table(output)]


def _empty(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"video")


EPIC = (
    "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
    "start_frame,stop_frame,narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes\n"
)


@pytest.fixture
def epic(tmp_path: Path) -> Path:
    folder = tmp_path / "epic"
    _empty(folder / "P01/videos/P01_01.MP4", folder / "P02/videos/P02_101.MP4")
    (folder / "EPIC_100_verb_classes.csv").write_text(
        "id,key,instances,category\n0,take,['take'],r\n1,put,['put'],r\n"
    )
    (folder / "EPIC_100_noun_classes.csv").write_text(
        "id,key,instances,category\n0,tap,\"['tap', 'faucet']\",a\n1,plate:side,['plate'],b\n"
    )
    first, second = "00:00:00.14,00:00:03.37,8,202", "00:00:03.37,01:02:06.17,202,370"
    many = "\"['plate', 'tap']\",\"[1, 0]\""
    rows = [
        f"P01_01_0,P01,P01_01,00:00:01.089,{first},take tap,take,0,tap,0,['tap'],[0]",
        f'P01_01_1,P01,P01_01,00:00:02.6,{second},"put plate, side",put,1,plate,1,{many}',
        f"P03_01_1,P03,P03_01,00:00:02.6,{second},put tap,put,1,tap,0,['tap'],[0]",
    ]
    (folder / "EPIC_100_train.csv").write_text(EPIC + "\n".join(rows) + "\n")
    times = "00:00:09.00,00:00:08.00,8,202"
    row = f"P02_101_0,P02,P02_101,00:00:01.1,{times},take plate,take,0,plate,1,['plate'],[1]"
    (folder / "EPIC_100_validation.csv").write_text(
        f"{EPIC}{row}\n{row.replace('08.00', '10.5')}\n"
    )
    (folder / "EPIC_100_test_timestamps.csv").write_text(
        "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,"
        "start_frame,stop_frame\nP02_101_0,P02,P02_101,00:00:01.1,00:00:00.54,00:00:02.23,27,111\n"
    )
    return folder


def test_epic_kitchens(epic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "lists"
    one, two = epic / "P01/videos/P01_01.MP4", epic / "P02/videos/P02_101.MP4"
    found = _listed(out / "v" / "train.csv", "--epic-verbs", epic)
    assert found == [(str(one), "0.14", "3.37", "0"), (str(one), "3.37", "3726.17", "1")]
    assert (out / "v" / "classes.txt").read_text() == "take\nput\n"
    assert "1 of 3 are missing" in capsys.readouterr().out
    missing = _table(out / "v" / "train_missing.csv")
    assert [(row["path"], row["start_s"]) for row in missing] == [("P03_01.MP4", "3.37")]
    assert _listed(out / "v" / "val.csv", "--epic-verbs", epic, "--split", "val") == [
        (str(two), "9", "10.5", "0")
    ]
    said = capsys.readouterr().out
    assert "1 parts are left out" in said and "EPIC_100_validation.csv:2: 00:00:09.00 to" in said
    test = _listed(out / "v" / "test.csv", "--epic-verbs", epic, "--split", "test")
    assert test == [(str(two), "0.54", "2.23", "")]
    nouns = _listed(out / "n" / "train.csv", "--epic-nouns", epic)
    assert [row[3] for row in nouns] == ["0", "1"]
    actions = _listed(out / "a" / "val.csv", "--epic-actions", epic, "--split", "val")
    assert (
        out / "a" / "classes.txt"
    ).read_text() == "take tap\ntake plate:side\nput tap\nput plate:side\n"
    assert [row[3] for row in actions] == ["1"]
    assert len(read_manifest(out / "a" / "val.csv")) == 1
    wrong = (epic / "EPIC_100_train.csv").read_text().replace(",put,1,", ",put,9,")
    (epic / "EPIC_100_train.csv").write_text(wrong)
    assert main(["data", "list", "--epic-verbs", str(epic), "-o", str(out / "w" / "t.csv")]) == 2
    assert "EPIC_100_train.csv:3: verb_class (9) must be a number of" in capsys.readouterr().err


def test_charades(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "charades", tmp_path / "lists" / "train.csv"
    _empty(folder / "Charades_v1_480/46GP8.mp4", folder / "Charades_v1_480/N11GT.mp4")
    (folder / "Charades_v1_classes.txt").write_text(
        "c000 Holding some clothes\nc001 Putting, down\n"
    )
    head = (
        "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\n"
    )
    rows = [
        '46GP8,HR43,Kitchen,6,7,Yes,"A, script",a;b,desc,c001 11.90 21.20;c000 0.00 12.60,24.83',
        "N11GT,0KZ7,Stairs,6,7,No,x,y,z,,18.33",
        "N11GT,0KZ7,Stairs,6,7,No,x,y,z,c001 18.40 19.00;c001 4.00 30.00;c001 4.00 30.00,18.33",
    ]
    (folder / "Charades_v1_train.csv").write_text(head + "\n".join(rows) + "\n")
    paths = [str(folder / "Charades_v1_480" / name) for name in ("46GP8.mp4", "N11GT.mp4")]
    assert _listed(out, "--charades", folder) == [
        (paths[0], "11.9", "21.2", "1"),
        (paths[0], "0", "12.6", "0"),
        (paths[1], "4", "30", "1"),
    ]
    said = capsys.readouterr().out
    assert "1 repeated videos are ignored" in said
    assert "Charades_v1_train.csv:4: 18.40 to 19.00 of 18.33 s" in said
    assert (out.parent / "classes.txt").read_text() == "Holding some clothes\nPutting, down\n"
    (folder / "Charades_v1_test.csv").write_text(head + rows[0].replace("c001", "c7x") + "\n")
    assert main(["data", "list", "--charades", str(folder), "--split", "test", "-o", str(out)]) == 2
    assert "Charades_v1_test.csv:2: action (c7x 11.90 21.20) must be" in capsys.readouterr().err


def test_activitynet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "anet", tmp_path / "lists"
    _empty(folder / "v_sJFgo9H6zNo.mp4", folder / "v_a-b_c.mkv", folder / "test" / "v_zz.webm")
    video = {"url": "", "resolution": "1280x720"}
    first, second = ({"segment": s, "label": "Zumba"} for s in ([0.01, 124.16], [130, 120]))
    third = {"segment": [17.5, 200.25], "label": "Archery"}
    content = {
        "version": "VERSION 1.3",
        "taxonomy": [],
        "database": {
            "sJFgo9H6zNo": {
                **video,
                "subset": "training",
                "duration": 124.16,
                "annotations": [first, second],
            },
            "a-b_c": {**video, "subset": "validation", "duration": 180.5, "annotations": [third]},
            "zz": {**video, "subset": "testing", "duration": 9.5, "annotations": []},
        },
    }
    (folder / "activity_net.v1-3.min.json").write_text(json.dumps(content))
    train = _listed(out / "train.csv", "--activitynet", folder)
    assert train == [(str(folder / "v_sJFgo9H6zNo.mp4"), "0.01", "124.16", "1")]
    assert "sJFgo9H6zNo: 130 to 120 of 124.16 s" in capsys.readouterr().out
    val = _listed(out / "val.csv", "--activitynet", folder, "--split", "val")
    assert val == [(str(folder / "v_a-b_c.mkv"), "17.5", "200.25", "0")]
    test = _listed(out / "test.csv", "--activitynet", folder, "--split", "test")
    assert test == [(str(folder / "test" / "v_zz.webm"), "", "", "")]
    del content["database"]["zz"]["subset"]  # type: ignore[index]
    (folder / "activity_net.v1-3.min.json").write_text(json.dumps(content))
    assert main(["data", "list", "--activitynet", str(folder), "-o", str(out / "x.csv")]) == 2
    assert "must have ActivityNet's format: KeyError('subset')" in capsys.readouterr().err


def test_own_lists_of_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command in the message of a list with other columns does what it says."""
    _empty(tmp_path / "a.mp4", tmp_path / "b c.mp4")
    file, out = tmp_path / "my list.csv", tmp_path / "my list_parts.csv"
    file.write_text(
        "video,Clip Start,clip_end,class\na.mp4,0:01.5,1:02:03,x\nb c.mp4,4,5,y\na.mp4,2,3,y\n"
        "b c.mp4,4.0,5,y\ngone.mp4,1,2,x\n"
    )
    with pytest.raises(ValueError, match="clip start") as caught:
        read_manifest(file)
    command = re.findall("`hpm-video (.*?)`", str(caught.value))[0]
    assert main(shlex.split(command)) == 0
    assert "1 rows repeat a video" in capsys.readouterr().out
    manifest = read_manifest(out)
    assert [(manifest.name(k), manifest.label(k)) for k in range(4)] == [
        ("a.mp4#t=1.5,3723", 0), ("b c.mp4#t=4,5", 1), ("a.mp4#t=2,3", 1), ("b c.mp4#t=4,5", 1),
    ]  # fmt: skip
    assert [row["start_s"] for row in _table(tmp_path / "my list_parts_missing.csv")] == ["1"]
    # The same list again: nothing is lost by it, and nothing is kept
    assert main(["data", "list", "--manifest", str(out), "-o", str(out)]) == 2  # it is read
    assert main(shlex.split(command)) == 0 and not list(tmp_path.glob("*.orig"))
    file.write_text(file.read_text().replace("2,3,y", "2,4,y"))
    assert main(shlex.split(command)) == 0 and len(list(tmp_path.glob("*.orig"))) == 1
    capsys.readouterr()
    for text, options, said in (
        ("path,a,b\na.mp4,1,2\n", ("--seconds", "a", "c"), "l.csv: path, a, b"),
        ("path,a,b,end_s\na.mp4,1,2,3\n", ("--seconds", "a", "b"), "end_s must not exist beside b"),
        ("path,a,b\na.mp4,1,x\n", ("--seconds", "a", "b"), "l.csv:2: b (x) must be a number"),
        ("a.mp4 0 1 2\n", ("--seconds", "a", "b"), "with the header path,label,start_s,end_s"),
        ("path,a,b\na.mp4,0:01,9\n", ("--frames", "a", "b"), "a (0:01) must be an int"),
        ("path,a,b,label\na.mp4,1,2,0\na.mp4,1.0,2,1\n", ("--seconds", "a", "b"),
         "l.csv:3: label (1) of a.mp4#t=1,2 must be the same in all rows, but is (0) in"),
    ):  # fmt: skip
        (tmp_path / "l.csv").write_text(text)
        command = ["data", "list", "--manifest", str(tmp_path / "l.csv"), *options]
        assert main([*command, "-o", str(tmp_path / "out.csv")]) == 2
        assert said in capsys.readouterr().err
    folder = ["data", "list", "--folder", str(tmp_path), "-o", str(tmp_path / "out.csv")]
    assert main([*folder, "--frames", "a", "b"]) == 2
    assert "--frames (a b) must be used with --manifest" in capsys.readouterr().err


def test_own_lists_of_parts_with_several_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_indexed_video(tmp_path / name, 40, SIZE, fps=10)
    listed, out = tmp_path / "l.csv", tmp_path / "out.csv"
    listed.write_text(
        "path,from,to,class\na.mp4,1,2,run;jump;run\nb.mp4,0,1,\nb.mp4,0,2,run\na.mp4,0,1,jump\n"
    )
    words = ["data", "list", "--manifest", str(listed), "--seconds", "from", "to", "-o", str(out)]
    assert main(words) == 2
    assert "for `data list`, --separator" in capsys.readouterr().err
    assert main([*words, "--separator", ";"]) == 0
    assert "out.csv: 4 parts of videos of 2 classes, none missing" in capsys.readouterr().out
    assert [row["label"] for row in _table(out)] == ["0;1", "", "1", "0"]
    assert (tmp_path / "classes.txt").read_text() == "jump\nrun\n"
    sets = read_manifest(out, several=LabelsConfig(separator=";")).label_sets
    assert sets is not None and sets.counts.tolist() == [2, 0, 1, 1]


def test_a_part_that_is_no_part_is_named(tmp_path: Path) -> None:
    video = write_indexed_video(tmp_path / "a.mp4", 10)
    for name in ("t=2", "t=a,b", "frame=3", "t="):
        with pytest.raises(ValueError, match="must end in #t=START,END or #frame=START,END"):
            split_part(f"{video}#{name}")
    for other in (f"{video}#c=2", f"{video}#t=2/b.mp4", "none.mp4#t=2"):
        assert split_part(other) == (other, None)


def test_a_run_goes_on_with_the_same_parts_alone(
    folder: Path, tmp_path: Path, pretrain_arguments: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit; with other parts of the same videos it does not."""
    file = tmp_path / "l.csv"
    rows = [f"{folder / name},{row[0]},{row[1]}" for name in VIDEOS for row in rows_of(name)]
    file.write_text("\n".join(["path,start_s,end_s", *rows]))
    one, other = tmp_path / "one", tmp_path / "other"
    assert main(pretrain_arguments(one, f"data.manifest={file}")) == 0
    run_until_stopped(pretrain_arguments(other, f"data.manifest={file}"), at=4)
    assert main(pretrain_arguments(other, f"data.manifest={file}")) == 0
    assert_same_run(one, other)
    run_until_stopped(pretrain_arguments(tmp_path / "third", f"data.manifest={file}"), at=4)
    file.write_text(file.read_text().replace(rows[3], rows[3] + "1"))
    capsys.readouterr()
    assert main(pretrain_arguments(tmp_path / "third", f"data.manifest={file}")) == 2
    assert "the list of videos has changed (20 before, 20 now)" in capsys.readouterr().err
