"""Videos seen at a rate of frames: which frames, beside ffmpeg's own choice."""

import subprocess
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import frame_numbers, write_indexed_video, write_timed_video

from hpm_video.config import DataConfig, PretrainConfig
from hpm_video.data.loading.clip import read_clip
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.samples.clips import ClipReader, Request
from hpm_video.data.samples.views import ViewReader
from hpm_video.data.video.frames import at_rate, open_video
from hpm_video.data.video.readers import UnreadableError
from hpm_video.data.video.timeline import frames_at
from hpm_video.visualize.windows import View, read_facts, read_window, window_indices

SIZE = (48, 64)


def by_ffmpeg(path: Path, fps: str) -> list[int]:
    asked = ["ffmpeg", "-v", "error", "-i", str(path), "-vf", f"fps={fps}", "-f", "rawvideo"]
    answer = subprocess.run(
        [*asked, "-vsync", "passthrough", "-pix_fmt", "rgb24", "-"], capture_output=True, check=True
    )
    return frame_numbers(np.frombuffer(answer.stdout, np.uint8).reshape(-1, *SIZE, 3))


CONSTANT = {
    "25": ([*range(60)], Fraction(1, 25)),
    "ntsc": ([*range(70)], Fraction(1001, 30000)),
    "film": ([1001 * n for n in range(50)], Fraction(1, 24000)),
    "10": ([*range(30)], Fraction(1, 10)),
}
_DRAWN = np.random.default_rng(4).integers(1, 60, size=80).cumsum()
VARIABLE = {
    "drawn": (_DRAWN.tolist(), Fraction(1, 600)),
    "phone": ([0, 33, 66, 100, 133, 166, 900, 933, 967, 1000, 1500, 2600], Fraction(1, 1000)),
    "bursts": ([*range(20), *range(100, 140), *range(400, 402)], Fraction(1, 90)),
}


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("name", [*CONSTANT, *VARIABLE])
def test_frames_are_ffmpegs(tmp_path: Path, name: str, ending: str) -> None:
    times, unit = {**CONSTANT, **VARIABLE}[name]
    path = write_timed_video(tmp_path / f"a.{ending}", times, unit, SIZE)
    table = open_video(path, "pyav").table
    for fps in ("1", "5", "8", "12.5", "23.976", "25", "30", "60", "0.7"):
        expected, found = by_ffmpeg(path, fps), frames_at(table, float(fps)).tolist()
        # When the last frame goes, files do not say, or ffmpeg does not ask: it alone may stay
        # shorter there
        assert expected == found[: len(expected)], fps
        assert set(found[len(expected) :]) <= {len(times) - 1}, fps


def test_ties_go_to_the_later_moment_whatever_rounding_says(tmp_path: Path) -> None:
    """At half the rate every second frame is midway: floats would fall to either side."""
    path = write_timed_video(tmp_path / "a.mp4", range(200), Fraction(1, 25), SIZE)
    table = open_video(path, "pyav").table
    assert frames_at(table, 12.5).tolist() == [0, *range(2, 200, 2)]
    # The same with times that no 64 bits hold once multiplied
    fine = replace(
        table,
        times=table.times * 10**12,
        last_lasts=table.last_lasts * 10**12,
        time_base=(table.time_base[0], table.time_base[1] * 10**12),
    )
    assert frames_at(fine, 12.5).tolist() == [0, *range(2, 200, 2)]


def test_clips_are_of_moments(tmp_path: Path) -> None:
    """Every reader of clips: frames lie 1 / fps seconds apart, also where the file's do not."""
    times = [*range(0, 60, 2), *range(60, 120)]  # 15 frames a second, then 30
    path = write_timed_video(tmp_path / "a.mp4", times, Fraction(1, 30), SIZE)
    data = DataConfig(
        num_frames=8, fps=5, frame_stride=1, crop_size=32, num_workers=0, sampling="dense"
    )
    seen = frames_at(open_video(path).table, 5)
    assert seen.tolist() == by_ffmpeg(path, "5")

    clips, indices = read_clip(path, PretrainConfig(data=data))
    assert indices.tolist() == [6, 7, 8, 9, 10, 11, 12, 13]  # of what is seen: the middle
    middle = seen[indices].tolist()
    assert frame_numbers(clips[0].permute(1, 2, 3, 0) * 255) == middle
    starts = set()
    for draw in range(30):
        reader = ClipReader(data)
        out = torch.empty(reader.shape, dtype=torch.uint8)
        reader.read(Request(0, str(path), 0, (draw,)), out)
        numbers = frame_numbers(out[0])
        start = seen.tolist().index(numbers[0])
        assert numbers == seen[start : start + 8].tolist()
        starts.add(start)
    assert min(starts) == 0 and max(starts) == 12
    views = ViewReader(data, 3, 1)
    out = torch.empty(views.shape, dtype=torch.uint8)
    views.read(Request(0, str(path), 0), out)
    assert [frame_numbers(view)[0] for view in out] == [seen[0], seen[6], seen[12]]

    facts = read_facts(path, data)
    assert facts == (20, 5)
    (frames,) = window_indices(facts.num_frames, data, View())
    window = read_window(path, frames, data, View())
    assert frame_numbers(window.frames) == middle

    video = LongVideo(path, rate=5)
    assert frame_numbers(np.stack(list(video.frames(range(20))))) == seen.tolist()
    np.testing.assert_allclose(video.times, np.arange(21) / 5)
    slow = LongVideo(path, rate=45)  # frames that repeat
    asked = [0, 1, 2, 4, 30, 31, 32]
    assert (
        frame_numbers(np.stack(list(slow.frames(asked))))
        == frames_at(open_video(path).table, 45)[asked].tolist()
    )


def test_no_more_frames_than_the_list_says(tmp_path: Path) -> None:
    path = write_timed_video(tmp_path / "a.mp4", range(60), Fraction(1, 30), SIZE)
    data = DataConfig(num_frames=2, fps=10, frame_stride=1, crop_size=32)
    video = Request(0, str(path), 30).open(data)
    assert video.num_frames == 10
    assert frame_numbers(video.read(np.arange(10))) == by_ffmpeg(path, "10")[:10]


def test_files_without_times_go_by_their_rate(tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a.avi", 30, codec="mpeg4", fps=10)
    video = at_rate(open_video(path), 5.0)
    assert video.num_frames == 15 and video.fps == 5
    raw = write_indexed_video(tmp_path / "a.m4v", 12, codec="mpeg4")
    table = open_video(raw).table
    assert not table.is_regular
    assert frames_at(replace(table, fps=10.0), 5.0).tolist() == [0, 2, 4, 6, 8, 10]
    with pytest.raises(UnreadableError, match=r"has no frame times: data\.fps and"):
        frames_at(replace(table, fps=0.0), 5.0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.frame_stride \(2\) must be 1 with data.fps \(8\)"):
        DataConfig(fps=8)
    assert DataConfig(fps=8, sampling="uniform").takes_segments
    for fps in (0, -1, float("nan"), float("inf"), 1001):
        with pytest.raises(ValueError, match=r"data.fps \(.*\) must be above 0, and at most 1000"):
            DataConfig(fps=fps, frame_stride=1)
