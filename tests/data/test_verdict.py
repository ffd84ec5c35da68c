"""The verdict on one file, whatever is wrong with it."""

import csv
import json
import os
import random
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from damage import claim_more_frames, flip_bytes, packet_ends, truncate
from videos import write_indexed_video

from hpm_video.data.prepare import verdict
from hpm_video.data.prepare.remedies import remedies
from hpm_video.data.prepare.verdict import BAD, DAMAGED, OK, Verdict, inspect_video
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import VideoReadError, open_video
from hpm_video.data.video.readers.tables import decoded_table

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


def _decoded(path: Path) -> int:
    """How many frames FFmpeg makes of a file from its start to its end, by itself."""
    if shutil.which("ffmpeg"):
        command = ["ffmpeg", "-v", "quiet", "-nostdin", "-i", f"file:{path}", "-map", "0:v:0"]
        command += ["-fps_mode", "passthrough", "-f", "framemd5", "-"]
        out = subprocess.run(command, stdout=subprocess.PIPE, check=False, timeout=60).stdout
        return sum(not line.startswith(b"#") for line in out.splitlines())
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("b.avi", "mpeg4"), ("c.webm", "libvpx-vp9")]
)
@pytest.mark.parametrize("quick", [False, True])
def test_a_whole_video(tmp_path: Path, name: str, codec: str, quick: bool) -> None:
    path = write_indexed_video(tmp_path / name, 70, size=(48, 80), fps=20, codec=codec)
    found = inspect_video(str(path), quick=quick)
    size, changed_ns = path.stat().st_size, path.stat().st_mtime_ns
    assert replace(found, table=None) == Verdict(
        OK, "", 70, 0, found.fps, 80, 48, num_bytes=size, mtime_ns=changed_ns
    )
    assert found.fps == pytest.approx(20)
    assert found.duration_s == pytest.approx(3.5)
    table = _table(found)
    assert table.fits(str(path)) and table.num_frames == 70
    assert table.is_decoded or quick
    assert Verdict.from_entry(json.loads(json.dumps(found.to_entry()))) == found


def _table(found: Verdict) -> FrameTable:
    assert found.table is not None
    table = FrameTable.from_bytes(found.table)
    assert table is not None
    return table


@pytest.mark.parametrize("num_frames", [1, 2, 31, 32, 33, 64, 65])
def test_a_quick_check_reads_few_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_frames: int
) -> None:
    path = write_indexed_video(tmp_path / "a.mp4", num_frames)
    asked: list[int] = []
    read = verdict.PyavReader.read
    monkeypatch.setattr(
        verdict.PyavReader, "read", lambda self, frames: asked.extend(frames) or read(self, frames)
    )
    assert inspect_video(str(path), quick=True).num_frames == num_frames
    assert {0, num_frames - 1} <= set(asked) <= set(range(num_frames))
    assert len(asked) <= 32


def test_a_quick_check_never_writes_less_than_is_known(whole: Path) -> None:
    """Nor trusts a table of a file that has changed."""
    full = inspect_video(str(whole)).table
    assert full is not None
    again = inspect_video(str(whole), quick=True, table=full)
    assert (again.status, again.table) == (OK, full)
    os.utime(whole, ns=(1, whole.stat().st_mtime_ns + 10**9))
    assert not _table(inspect_video(str(whole), quick=True, table=full)).is_decoded


def test_a_quick_check_of_what_its_packets_do_not_tell(streamed: Path, tmp_path: Path) -> None:
    """Decodes all of it: so nothing false gets into the index."""
    path = claim_more_frames(streamed, tmp_path / "more.mp4", 7)
    quick, slow = (inspect_video(str(path), quick=is_quick) for is_quick in (True, False))
    assert quick.num_frames == slow.num_frames == _decoded(path) == 60
    damaged = _with_a_hole(streamed, tmp_path / "hole.mp4")
    found = inspect_video(str(damaged), quick=True)
    assert found.status != OK or not _table(found).is_decoded


def _with_a_hole(streamed: Path, path: Path) -> Path:
    ends = packet_ends(streamed)
    data = bytearray(streamed.read_bytes())
    data[ends[28] : ends[29]] = bytes(ends[29] - ends[28])
    path.write_bytes(data)
    return path


def test_frames_that_are_lost(streamed: Path, tmp_path: Path) -> None:
    path = _with_a_hole(streamed, tmp_path / "hole.mp4")
    found = inspect_video(str(path))
    assert found.status == DAMAGED
    assert found.num_frames == _decoded(path) == 59
    assert found.damaged is not None and found.damaged >= 1
    assert "1 of 60 frames lost" in found.reason
    video = open_video(path, "pyav", table=found.table)
    assert video.num_frames == 59
    alone = np.stack([video.read([number])[0] for number in range(25, 35)])
    assert np.array_equal(alone, video.read(range(59))[25:35])


def test_truncated_anywhere(whole: Path, streamed: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    ends = packet_ends(streamed)
    for cut in [rng.randrange(1, whole.stat().st_size) for _ in range(8)]:
        found = inspect_video(str(truncate(whole, tmp_path / "cut.mp4", cut)))
        assert (found.status, found.num_frames) == (BAD, None), cut  # the tables are at its end
    for cut in [rng.randrange(1, streamed.stat().st_size) for _ in range(8)]:
        path = truncate(streamed, tmp_path / "cut.mp4", cut)
        found = inspect_video(str(path))
        complete = sum(end <= cut for end in ends)
        assert (found.num_frames or 0) == _decoded(path), cut
        assert found.status == (BAD if not found.num_frames else DAMAGED if complete < 60 else OK)
        assert found.reason or found.status == OK


def test_a_cut_video_of_packets_in_a_row_is_a_shorter_video(tmp_path: Path) -> None:
    """Without tables nothing promises what is not there."""
    path = write_indexed_video(tmp_path / "a.mkv", 60, codec="mpeg4")
    ends = packet_ends(path)
    for cut in (ends[39], ends[39] + 5, ends[40] - 5):
        short = truncate(path, tmp_path / "cut.mkv", cut)
        found = inspect_video(str(short))
        assert found.status in (OK, DAMAGED)
        assert found.num_frames == _decoded(short)
        assert found.num_frames in (39, 40, 41)


def test_flipped_bytes(streamed: Path, tmp_path: Path) -> None:
    """As many frames as FFmpeg makes of it; damage that it reports is counted."""
    start = streamed.read_bytes().index(b"mdat")
    seen = set()
    for seed in range(16):
        path = flip_bytes(streamed, tmp_path / "f.mp4", 1 + 2 * seed, seed=seed, start=start)
        found = inspect_video(str(path))
        assert (found.num_frames or 0) == _decoded(path), seed
        assert bool(found.damaged) == (found.status == DAMAGED), seed
        if found.num_frames is not None:
            video = open_video(path, "pyav", table=found.table)
            chosen = [0, found.num_frames // 2, found.num_frames - 1]
            alone = [video.read([number])[0] for number in chosen]
            assert np.array_equal(alone, video.read(range(found.num_frames))[chosen]), seed
        seen.add(found.status)
    assert DAMAGED in seen
    for seed in range(8):  # and in the tables
        found = inspect_video(str(flip_bytes(streamed, tmp_path / "f.mp4", 30, seed=seed)))
        assert found.status in (OK, DAMAGED, BAD)


@pytest.mark.parametrize("extra", [1, 7, 40])
def test_more_frames_claimed_than_there_are(streamed: Path, tmp_path: Path, extra: int) -> None:
    path = claim_more_frames(streamed, tmp_path / "more.mp4", extra)
    found = inspect_video(str(path))
    assert found.num_frames == 60  # FFmpeg's command line reads none of some


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
        assert (found.status, found.num_frames, found.table) == (BAD, None, None), name
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

    def decode_and_lose(name: str) -> FrameTable:
        table = decoded_table(name)
        happens(path)
        return table

    monkeypatch.setattr(verdict, "decoded_table", decode_and_lose)
    found = inspect_video(str(path))
    assert found.status == BAD and word in found.reason


def test_an_error_that_no_reader_should_raise_is_a_verdict(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str) -> None:
        raise IndexError("out\nof range")

    monkeypatch.setattr(verdict, "decoded_table", fail)
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
        assert (found.num_frames or 0) == int(row["decodable_frames"]), row["file"]
        if found.status != BAD:
            width, height = int(row["width"]), int(row["height"])
            sideways = row["rotation"] in ("90", "-90")
            displayed = (height, width) if sideways else (width, height)
            assert (found.width, found.height) == displayed


def _ffmpeg(*words: str | Path) -> None:
    if shutil.which("ffmpeg") is None:
        pytest.skip("no ffmpeg")
    command = ["ffmpeg", "-v", "error", "-nostdin", "-y", *map(str, words)]
    subprocess.run(command, check=True, timeout=60)


_TEST_PICTURES = ("-f", "lavfi", "-i", "testsrc=size=96x64:rate=10:duration=2")
_KEY = "76a6c65c5ea762046bd749a2e632ccbb"


def _do(path: Path, reason: str, **words: str) -> Path:
    """Run the ffmpeg line that is given for a reason, as it stands, and return what it wrote."""
    (line,) = [text for text in remedies(path.name, reason) if "ffmpeg " in text]
    command = re.sub(r" \(.*", "", line[line.index("ffmpeg ") :])
    for word, meaning in words.items():
        command = command.replace(word, meaning)
    done = subprocess.run(
        f"{command} -v error -nostdin", shell=True, cwd=path.parent, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), command
    return path.parent / shlex.split(command)[-1]


def test_encrypted(tmp_path: Path) -> None:
    plain, path = tmp_path / "plain.mp4", tmp_path / "it's.mp4"
    _ffmpeg(*_TEST_PICTURES, plain)
    how = ["-encryption_scheme", "cenc-aes-ctr", "-encryption_key", _KEY, "-encryption_kid", _KEY]
    _ffmpeg("-i", plain, "-c", "copy", *how, path)
    found = inspect_video(str(path))
    assert found.status == BAD and "encrypted" in found.reason
    with pytest.raises(VideoReadError, match="encrypted"):
        open_video(path, "pyav")
    mended = _do(path, found.reason, KEY=_KEY)
    assert inspect_video(str(mended)).status == OK
    assert np.array_equal(*(open_video(p, "pyav").read(range(20)) for p in (mended, plain)))


def test_interlaced(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    how = ["-vf", "tinterlace=interleave_top", "-flags", "+ilme+ildct", "-x264-params", "tff=1"]
    _ffmpeg(*_TEST_PICTURES, *how, path)
    found = inspect_video(str(path))
    assert (found.status, found.num_frames) == (OK, 10)
    assert "is interlaced" in found.reason
    mended = inspect_video(str(_do(path, found.reason)))
    assert (mended.status, mended.reason, mended.num_frames) == (OK, "", 10)


def test_grey_pictures_of_which_not_all_bits_are_used(tmp_path: Path) -> None:
    """The values of depth cameras: 12 bits of 16."""
    path, values = tmp_path / "depth.mkv", [200, 1500, 3500]
    pictures = b"".join(np.full((64, 96), value, "<u2").tobytes() for value in values)
    (tmp_path / "raw").write_bytes(pictures)
    raw = ["-f", "rawvideo", "-pix_fmt", "gray16le", "-s", "96x64", "-r", "10"]
    _ffmpeg(*raw, "-i", tmp_path / "raw", "-c:v", "ffv1", path)
    found = inspect_video(str(path))
    assert (found.status, found.num_frames) == (OK, 3)
    assert "16-bit grey that uses 12 bits" in found.reason
    now = open_video(path, "pyav").read(range(3)).mean(axis=(1, 2, 3))
    assert now == pytest.approx([value / 256 for value in values], abs=1.5)  # next to black
    mended = _do(path, found.reason)
    assert inspect_video(str(mended)).reason == ""
    then = open_video(mended, "pyav").read(range(3)).mean(axis=(1, 2, 3))
    assert then == pytest.approx([value / 16 for value in values], abs=3)


def test_several_tracks(tmp_path: Path) -> None:
    path = tmp_path / "two.mp4"
    small, large = (
        ["-f", "lavfi", "-i", f"testsrc=size={size}:rate=10"] for size in ("64x48", "128x96")
    )
    _ffmpeg(*small, *large, "-map", "0:v", "-map", "1:v", "-t", "1", path)
    found = inspect_video(str(path))
    assert found.status == OK and "2 video tracks" in found.reason
    mended = inspect_video(str(_do(path, found.reason)))
    assert (mended.status, mended.reason, mended.num_frames) == (OK, "", 10)
    assert (mended.width, mended.height) == (64, 48)


def test_only_sound_and_a_cover_picture(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    _ffmpeg("-f", "lavfi", "-i", "color=size=64x64", "-frames:v", "1", tmp_path / "cover.png")
    sound = ["-f", "lavfi", "-i", "sine=duration=1", "-i", tmp_path / "cover.png"]
    how = ["-c:v", "copy", "-disposition:v", "attached_pic"]
    _ffmpeg(*sound, "-map", "0", "-map", "1", *how, path)
    found = inspect_video(str(path))
    assert (found.status, found.num_frames) == (BAD, None)
    assert found.reason == "has no video, only sound and a picture"


def test_a_piece_cut_from_a_stream(tmp_path: Path) -> None:
    """What is shown before its first keyframe is lost, as in every such piece: it is no damage."""
    whole, path = tmp_path / "whole.ts", tmp_path / "piece.ts"
    _ffmpeg(*_TEST_PICTURES, "-g", "10", "-bf", "0", "-mpegts_flags", "resend_headers", whole)
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    path.write_bytes(whole.read_bytes()[places[6] // 188 * 188 :])
    found = inspect_video(str(path))
    assert found.num_frames == _decoded(path) == 10
    assert (found.status, found.damaged) == (OK, 0)
    assert "its first 4 frames do not decode" in found.reason


def test_every_remedy_is_for_a_reason_that_is_given() -> None:
    source = Path(verdict.__file__).parents[1]
    code = "".join(path.read_text(encoding="utf-8") for path in source.rglob("*.py"))
    for reason in ("is cut off", "is not a video", "is empty", "no such file", "permission denied",
                   "has no video", "is encrypted", "none of its frames can be decoded",
                   "took longer than", "while it was read", "decoding errors in", " frames lost",
                   " video tracks", "is interlaced", "-bit grey that uses ", "slow to read",
                   "has frames of several sizes"):  # fmt: skip
        assert code.count(reason) > 1, reason
    assert remedies("a b.mp4", "permission denied") == ["make it readable: chmod a+r 'a b.mp4'"]
    for path, words in {
        "/data/file:///a/b.mp4": "instead of a URL",
        "https://a.org/b.mp4": "instead of a URL",
        "/data/~/b.mp4": "home folder",
        "~me/b.mp4": "home folder",
        "/data/C:\\a\\b.mp4": "a Windows path",
        "data/a~b/c:d.mp4": "or set --root",
        "/data/a~b/c:d.mp4": "correct its path in the list",
    }.items():
        (said,) = remedies(path, "no such file")
        assert words in said
    assert remedies("a.mp4", "something else; is empty") == ["copy or download it again"]
