"""Videos as recorders and other programs leave them, made and judged by ffmpeg's command line."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from hpm_video.config.values import Decoder
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.prepare.transcode import transcode_manifest
from hpm_video.data.prepare.verdict import inspect_video
from hpm_video.data.video.frames import VideoReadError, missing, open_video
from hpm_video.data.video.readers import demux
from hpm_video.data.video.readers.tables import decoded_table

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
SIZE = (64, 96)


def _ffmpeg(*words: object) -> bytes:
    command = ["ffmpeg", "-v", "error", "-y", *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, timeout=60).stdout


def _make(path: Path, *options: str, frames: int = 50, source: str = "testsrc2") -> Path:
    size = f"{SIZE[1]}x{SIZE[0]}"
    # -g and -threads: quick, and the same everywhere
    _ffmpeg(
        *("-f", "lavfi", "-i", f"{source}=size={size}:rate=25", "-frames:v", frames),
        *("-pix_fmt", "yuv420p", "-g", "12", "-threads", "1", *options, path),
    )
    return path


def _decoded(path: Path) -> np.ndarray:
    """Frames as they are stored, by ffmpeg's nearest colours, which are the readers'."""
    words = ("-noautorotate", "-i", path, "-fps_mode", "passthrough", "-sws_flags", "neighbor")
    data = _ffmpeg(*words, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(data, np.uint8).reshape(-1, *SIZE, 3)


def _times(path: Path) -> np.ndarray:
    container, stream = demux.open_video(str(path))
    times = [packet.pts * stream.time_base for packet in demux.packets(container, stream)]
    return np.array(sorted(map(float, times)))


def test_a_file_without_times_keeps_its_length(tmp_path: Path) -> None:
    """H.264 with B-frames in AVI: the times that FFmpeg makes up go to and fro."""
    _make(tmp_path / "a.avi", "-c:v", "libx264", "-bf", "3")
    (tmp_path / "list.csv").write_text("path\na.avi\n")
    transcode_manifest(tmp_path / "list.csv", tmp_path / "out", Encoding())
    times = _times(tmp_path / "out" / "a.mp4")
    assert times[-1] - times[0] == pytest.approx(49 / 25) and len(times) == 50


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv"])
def test_joined_recordings_keep_their_length(tmp_path: Path, suffix: str) -> None:
    """`cat a b`: times start again, and nothing may be squeezed or lost."""
    parts = [_make(tmp_path / f"{n}.{suffix}", frames=n) for n in (40, 30)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    for fps in (None, 25.0):
        out = tmp_path / "out.mp4"
        encoded = encode_video(str(joined), str(out), Encoding(fps=fps))
        steps = np.diff(_times(out))
        assert encoded.num_read == 70 and abs(encoded.num_written - 70) <= 1
        assert np.abs(steps - 0.04).max() < 0.021  # a frame's length, at most one apart


@pytest.mark.parametrize("decoder", ["decord", "torchcodec", "pyav"])
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_interlaced_colours_are_ffmpegs(tmp_path: Path, decoder: Decoder, codec: str) -> None:
    if reason := missing(decoder):
        pytest.skip(reason)
    fields = ("-vf", "tinterlace=interleave_top,setfield=tff", "-flags", "+ilme+ildct")
    path = _make(tmp_path / "a.mp4", *fields, "-c:v", codec, "-q:v", "2", frames=20)
    table = decoded_table(str(path))
    assert table.is_interlaced
    expected = _decoded(path)
    frames = open_video(path, decoder, table=table.to_bytes()).read(range(table.num_frames))
    assert len(frames) == len(expected)
    assert np.abs(frames.astype(int) - expected).mean() < 0.5


@pytest.mark.parametrize("decoder", ["decord", "torchcodec", "pyav"])
def test_an_angle_that_is_no_quarter(tmp_path: Path, decoder: Decoder) -> None:
    plain = _make(tmp_path / "plain.mp4")
    path = tmp_path / "tilted.mp4"
    _ffmpeg("-i", plain, "-c", "copy", "-metadata:s:v", "rotate=45", path)
    table = decoded_table(str(path))
    if not table.is_tilted:
        pytest.skip("this ffmpeg writes no such matrix")
    video = open_video(path, decoder, table=table.to_bytes())
    assert video.decoder == "pyav" and video.note and "not a multiple of 90 degrees" in video.note
    assert video.read([0]).shape == (1, *SIZE, 3)
    assert "not a multiple of 90 degrees" in inspect_video(str(path)).reason


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nb.ts\n#EXT-X-ENDLIST\n"),
        ("a.txt", "ffconcat version 1.0\nfile b.ts\n"),
        ("a.mpd", '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>\n'),
    ],
)
def test_a_playlist_is_no_video(tmp_path: Path, name: str, content: str) -> None:
    """FFmpeg would open what it names, and an index would not notice when that changes."""
    _make(tmp_path / "b.ts", frames=12)
    (tmp_path / name).write_text(content)
    with pytest.raises(VideoReadError, match="is a playlist of other files"):
        open_video(tmp_path / name, "pyav")


@pytest.mark.parametrize("suffix", ["avi", "mkv", "webm"])
def test_a_file_that_ends_early_is_said_to(tmp_path: Path, suffix: str) -> None:
    path = _make(tmp_path / f"a.{suffix}", *(("-c:v", "libvpx") if suffix == "webm" else ()))
    assert inspect_video(str(path)).reason == ""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    found = inspect_video(str(path))
    missing = len(data) - len(data) * 6 // 10
    assert f"is cut off: its last {missing:,} bytes are missing" in found.reason
    assert found.num_frames and 10 < found.num_frames < 50


def test_a_recording_of_open_length_is_not_cut_off(tmp_path: Path) -> None:
    path = _make(tmp_path / "live.mkv", "-live", "1")
    assert inspect_video(str(path)).reason == ""


def test_what_check_says_of_odd_files(tmp_path: Path) -> None:
    single = tmp_path / "single.mp4"
    _make(tmp_path / "single.jpg", "-update", "1", frames=1).rename(single)
    twice = tmp_path / "twice.mp4"
    twice.write_bytes(_make(tmp_path / "a.mp4").read_bytes() * 2)
    clock = _make(tmp_path / "clock.ivf", "-c:v", "libvpx", frames=30)
    said = {path: inspect_video(str(path)) for path in (single, twice, clock)}
    assert said[single].reason == "is a single picture"
    assert said[twice].reason == "has 1 more mp4 appended to it, which readers ignore"
    assert said[twice].num_frames == 50
    assert said[clock].fps == pytest.approx(25, rel=0.05)


def test_frames_before_a_cut_are_no_damage(tmp_path: Path) -> None:
    """x265's open groups: what follows the first keyframe in the file may need what was cut off."""
    options = ("-c:v", "libx265", "-x265-params", "open-gop=1:keyint=12:bframes=3:log-level=none")
    whole = _make(tmp_path / "whole.ts", *options, frames=60).read_bytes()
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole[188 * (len(whole) // 188 // 3) :])
    verdict = inspect_video(str(cut))
    assert (verdict.status, verdict.damaged) == ("ok", 0), verdict.reason
    assert 20 < (verdict.num_frames or 0) < 50
