"""The verdict on one file, whatever is wrong with it."""

import csv
import os
import random
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest
from damage import claim_more_frames, flip_bytes, packet_ends, truncate
from videos import write_indexed_video

from hpm_video.data.prepare import verdict
from hpm_video.data.prepare.verdict import BAD, OK, Verdict, inspect_video
from hpm_video.data.video.frames import VideoReadError, open_video

CLIPS = Path(os.environ.get("HPM_VIDEO_CLIPS", Path(__file__).parents[3] / "shared" / "clips"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_indexed_video(tmp_path_factory.mktemp("whole") / "whole.mp4", 60)


@pytest.fixture(scope="module")
def streamed(whole: Path) -> Path:
    """The same with its tables first, as files for the web have them."""
    path = whole.with_name("streamed.mp4")
    with av.open(str(whole)) as old, av.open(
        str(path), "w", options={"movflags": "faststart"}
    ) as new:  # fmt: skip
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                packet.stream = stream
                new.mux(packet)
    return path


def _frames_read_one_by_one(path: Path) -> int | None:
    """How many frames a reader gives, each asked for alone and forward; None if not all."""
    try:
        video = open_video(path)
        promised = video.num_frames
        for number in range(promised):
            video.read([number])
    except VideoReadError:
        return None
    return promised


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.webm", "libvpx-vp9")]
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_video(tmp_path: Path, name: str, codec: str, quick: bool) -> None:
    path = write_indexed_video(tmp_path / name, 70, size=(48, 80), fps=20, codec=codec)
    found = inspect_video(str(path), quick=quick)
    assert found == Verdict(
        OK, "", 70, found.fps, 80, 48, path.stat().st_size, path.stat().st_mtime_ns
    )
    assert found.fps == pytest.approx(20)
    assert found.duration_s == pytest.approx(3.5)


@pytest.mark.parametrize("num_frames", [1, 2, 31, 32, 33, 64, 65])
def test_every_frame_is_asked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", num_frames)
    monkeypatch.setattr(verdict, "_BLOCK_BYTES", 32 * 48 * 64 * 3)
    asked: list[int] = []
    read = verdict.Video.read
    monkeypatch.setattr(
        verdict.Video, "read", lambda self, frames: asked.extend(frames) or read(self, frames)
    )
    assert inspect_video(str(path)).status == OK
    assert asked == [0, *range(num_frames)]  # the first one alone, for its size
    asked.clear()
    assert inspect_video(str(path), quick=True).status == OK
    assert {0, num_frames - 1} <= set(asked) <= set(range(num_frames))
    assert len(asked) <= 33


@pytest.mark.parametrize("num_blocks", [1, 3])
def test_a_reader_that_begins_anew_each_time(
    streamed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_blocks: int
) -> None:
    """PyAV's: a long video is gone through once more, and not once for each block."""
    monkeypatch.setattr(verdict, "_BLOCK_BYTES", 60 // num_blocks * 48 * 64 * 3)
    asked: list[range] = []
    read = verdict.Video.read
    monkeypatch.setattr(
        verdict.Video, "read", lambda self, frames: asked.append(frames) or read(self, frames)
    )
    found = inspect_video(str(streamed), decoder="pyav")
    assert (found.status, found.num_frames) == (OK, 60)
    assert len(asked) == 1 + min(num_blocks, 2)
    ends = packet_ends(streamed)
    data = bytearray(streamed.read_bytes())
    data[ends[28] : ends[29]] = bytes(ends[29] - ends[28])  # in the middle block
    (tmp_path / "hole.mp4").write_bytes(data)
    found = inspect_video(str(tmp_path / "hole.mp4"), decoder="pyav")
    assert found.status == BAD and found.num_frames is not None and 0 < found.num_frames < 60


def test_truncated_anywhere(whole: Path, streamed: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    ends = packet_ends(streamed)
    for cut in [rng.randrange(1, whole.stat().st_size) for _ in range(8)]:
        found = inspect_video(str(truncate(whole, tmp_path / "cut.mp4", cut)))
        assert (found.status, found.num_frames) == (BAD, 0), cut  # an mp4's tables are at its end
    for cut in [rng.randrange(1, streamed.stat().st_size) for _ in range(8)]:
        path = truncate(streamed, tmp_path / "cut.mp4", cut)
        found = inspect_video(str(path))
        complete = sum(end <= cut for end in ends)
        assert found.status == (OK if _frames_read_one_by_one(path) is not None else BAD)
        # a frame that is there in part may be shown or not
        assert found.num_frames in (complete, complete + 1), cut
        assert found.reason or found.status == OK


def test_a_cut_video_of_packets_in_a_row_is_a_shorter_video(tmp_path: Path) -> None:
    """Without tables nothing promises what is not there."""
    path = write_indexed_video(tmp_path / "a.mkv", 60, codec="mpeg4")
    ends = packet_ends(path)
    found = inspect_video(str(truncate(path, tmp_path / "cut.mkv", ends[39] + 5)))
    assert (found.status, found.num_frames) == (OK, _frames_read_one_by_one(tmp_path / "cut.mkv"))
    assert found.num_frames in (40, 41)


def test_flipped_bytes(streamed: Path, tmp_path: Path) -> None:
    """Ok exactly where every frame can be read, so that training can rely on it."""
    start = streamed.read_bytes().index(b"mdat")
    seen = set()
    for seed in range(16):
        path = flip_bytes(streamed, tmp_path / "f.mp4", 1 + 2 * seed, seed=seed, start=start)
        found = inspect_video(str(path))
        readable = _frames_read_one_by_one(path)
        assert found.status == (BAD if readable is None else OK), seed
        if readable is not None:
            assert found.num_frames == readable == 60
        else:
            assert found.num_frames is not None and found.num_frames <= 60
        seen.add(found.status)
    assert seen == {OK, BAD}
    for seed in range(8):  # and in the tables
        found = inspect_video(str(flip_bytes(streamed, tmp_path / "f.mp4", 30, seed=seed)))
        assert found.status in (OK, BAD)


@pytest.mark.parametrize("extra", [1, 7, 40])
def test_more_frames_claimed_than_there_are(streamed: Path, tmp_path: Path, extra: int) -> None:
    path = claim_more_frames(streamed, tmp_path / "more.mp4", extra)
    found = inspect_video(str(path))
    assert found.num_frames == 60
    assert found.status == (OK if _frames_read_one_by_one(path) == 60 else BAD)


def test_a_reader_that_finds_out_on_the_way_how_many_there_are(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Shrinking(verdict.Video):
        def read(self, indices: range) -> np.ndarray:
            frames = super().read(indices)
            self.num_frames = 40
            return frames

    def open_shrinking(path: str, decoder: str) -> verdict.Video:
        video = open_video(path)
        video.__class__ = Shrinking
        return video

    monkeypatch.setattr(verdict, "open_video", open_shrinking)
    found = inspect_video(str(whole))
    assert found.status == BAD and "60" in found.reason and "40" in found.reason


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all\n" * 100)
    (tmp_path / "zeros.mp4").write_bytes(bytes(4096))
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")  # opening one blocks until somebody writes
    (tmp_path / "loop.mp4").symlink_to(tmp_path / "loop.mp4")
    names = ["empty.mp4", "text.mp4", "zeros.mp4", "folder.mp4", "pipe.mp4", "loop.mp4"]
    names += ["missing.mp4", "text.mp4/a.mp4", "n" * 300 + ".mp4", "null\0.mp4"]
    for name in names:
        found = inspect_video(str(tmp_path / name))
        assert (found.status, found.num_frames) == (BAD, 0), name
        assert found.reason and "\n" not in found.reason
    assert inspect_video(str(tmp_path / "missing.mp4")).reason == "no such file"
    assert "folder" in inspect_video(str(tmp_path / "folder.mp4")).reason
    assert inspect_video(str(tmp_path / "missing.mp4")).num_bytes is None


def test_permission_denied(whole: Path, tmp_path: Path) -> None:
    path = tmp_path / "secret.mp4"
    path.write_bytes(whole.read_bytes())
    path.chmod(0)
    before = os.geteuid()
    if before == 0:  # who may read everything
        os.seteuid(65534)
    try:
        found = inspect_video(str(path))
    finally:
        os.seteuid(before)
    assert (found.status, found.reason) == (BAD, "permission denied")


@pytest.mark.parametrize("name", ["a b.mp4", 'it\'s "a", b.mp4', "line\nbreak.mp4", "vidéo 視.mp4"])
def test_names(whole: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(whole.read_bytes())
    assert inspect_video(str(tmp_path / name)).status == OK


def test_a_name_that_is_not_unicode_is_a_verdict_too(whole: Path, tmp_path: Path) -> None:
    path = os.fsdecode(os.path.join(os.fsencode(tmp_path), b"caf\xe9.mp4"))
    with open(path, "wb") as file:
        file.write(whole.read_bytes())
    found = inspect_video(path)
    assert found.status == OK or "UTF-8" in found.reason or "Unicode" in found.reason
    assert found.num_frames == 60


def test_a_wrong_ending_does_not_matter(whole: Path, tmp_path: Path) -> None:
    for name in ("a.avi", "a.txt", "a"):
        (tmp_path / name).write_bytes(whole.read_bytes())
        assert inspect_video(str(tmp_path / name)).status == OK


@pytest.mark.parametrize(
    ("happens", "word"),
    [
        (lambda path: path.unlink(), "disappeared"),
        (lambda path: path.write_bytes(b"other"), "changed"),
        (lambda path: os.utime(path, ns=(1, 1)), "changed"),
    ],
)
def test_a_file_that_does_not_stay(
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    happens: Callable[[Path], None],
    word: str,
) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(whole.read_bytes())

    def open_and_lose(name: str, decoder: str) -> verdict.Video:
        video = open_video(name)
        video.read([0])
        happens(path)
        return video

    monkeypatch.setattr(verdict, "open_video", open_and_lose)
    found = inspect_video(str(path))
    assert found.status == BAD and word in found.reason


def test_an_error_that_no_reader_should_raise_is_a_verdict(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, decoder: str) -> None:
        raise IndexError("out\nof range")

    monkeypatch.setattr(verdict, "open_video", fail)
    found = inspect_video(str(whole))
    assert (found.status, found.reason) == (BAD, "IndexError: out of range")


@pytest.mark.skipif(not (CLIPS / "decode").is_dir(), reason="no real clips in HPM_VIDEO_CLIPS")
def test_real_files_as_ffmpeg_reads_them() -> None:
    """The small ones; `hpm-video data check` of all of them takes a minute."""
    with open(CLIPS / "decode" / "expected.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if int(row["width"] or 0) <= 240]
    assert len(rows) > 30
    for row in rows:
        found = inspect_video(str(CLIPS / row["file"]))
        assert found.num_frames == int(row["decodable_frames"]), row["file"]
        if found.status == BAD:  # only what cannot be read, not what can
            assert _frames_read_one_by_one(CLIPS / row["file"]) is None, row["file"]
        else:
            width, height = int(row["width"]), int(row["height"])
            sideways = row["rotation"] in ("90", "-90")
            displayed = (height, width) if sideways else (width, height)
            assert (found.width, found.height) == displayed
