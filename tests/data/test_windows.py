"""Sliding windows against videos whose pixels say which frame they are."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killable_windows import WindowDouble
from numbered_videos import Recipe, _times, numbers, write_video

from hpm_video.data.loading.batches import GIVEN_UP
from hpm_video.data.loading.windows import (
    GuardedWindows,
    LongVideo,
    WindowReader,
    WindowSettings,
    read_windows,
    window_indices,
)
from hpm_video.data.video.crops import Box, resize_crop
from hpm_video.data.video.frames import VideoReadError
from hpm_video.data.video.readers import demux

SQUARE = (96, 96)  # so that a crop is the whole frame and still says its number
RECIPES = {
    "plain": Recipe("mp4", "libx264", 61, size=SQUARE, gop=12),
    "b-frames": Recipe("mp4", "libx264", 61, size=SQUARE, gop=16, b_frames=3, open_gop=True),
    "variable": Recipe("mp4", "libx264", 61, size=SQUARE, variable=True, b_frames=2, seed=3),
    "variable-webm": Recipe("webm", "libvpx-vp9", 61, size=SQUARE, variable=True, start=1.5,
                            options={"deadline": "realtime", "cpu-used": "8"}, seed=4),
    "late": Recipe("mkv", "libx264", 61, size=SQUARE, start=1.5),
    "ts": Recipe("ts", "libx264", 61, size=SQUARE, b_frames=2),
    "untimed": Recipe("avi", "mpeg4", 61, size=SQUARE, b_frames=2),
    "rotated": Recipe("mp4", "libx264", 61, size=SQUARE, rotation=90),
}  # fmt: skip


def _windows(length: int, step: int, stride: int, **changes: int) -> WindowSettings:
    settings = {"crop_size": 32, "num_crops": 1, "batch_size": 1, "part": 512, **changes}
    return WindowSettings(clip_frames=length, frame_stride=step, stride=stride, **settings)


def _slow_windows(num_frames: int, length: int, step: int, stride: int) -> list[list[int]]:
    """Windows, one after the other, until one has reached the last frame."""
    windows: list[list[int]] = []
    for start in range(0, num_frames, stride):
        windows.append([min(start + k * step, num_frames - 1) for k in range(length)])
        if start + (length - 1) * step >= num_frames - 1:
            break
    return windows


@pytest.mark.parametrize("num_frames", [1, 2, 7, 16, 31, 32, 61])
def test_windows_cover_the_whole_video(num_frames: int) -> None:
    for length, step, stride in [(16, 2, 32), (4, 1, 1), (4, 3, 2), (1, 1, 10), (4, 2, 100)]:
        found = window_indices(num_frames, _windows(length, step, stride))
        assert found.tolist() == _slow_windows(num_frames, length, step, stride)


@pytest.mark.parametrize("name", RECIPES)
def test_windows_hold_the_frames_they_name_at_their_times(name: str, tmp_path: Path) -> None:
    recipe = RECIPES[name]
    video = LongVideo(write_video(tmp_path / "video", recipe))
    settings = _windows(4, 3, 5, crop_size=96, batch_size=3, part=8)
    indices = window_indices(video.num_frames, settings)
    windows = list(read_windows(video, indices, settings))
    assert [len(batch) for batch in windows] == [3, 3, 2, 3, 1]  # 12 windows
    read = [numbers(window[0].numpy()) for batch in windows for window in batch]
    assert read == indices.tolist()
    unit = 1000 if recipe.variable else recipe.fps
    shown = np.array(_times(recipe, np.random.default_rng((recipe.seed, 2)))) / unit
    assert video.times[:-1] == pytest.approx(shown - shown[0], abs=1.1e-3)
    assert len(video.times) == recipe.num_frames + 1
    assert 0 < video.times[-1] - video.times[-2] < 0.2
    if recipe.variable:
        assert np.ptp(np.diff(video.times)) > 0.02  # frames over fps would be wrong


def test_every_frame_is_decoded_and_converted_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "video", RECIPES["b-frames"])
    decoded: list[int] = []
    converted: list[int] = []
    decode, write = demux.decode, demux.RgbWriter.write

    def count_decoded(*arguments: Any) -> Any:
        frames = decode(*arguments)
        decoded.extend(frame.pts for frame in frames or [])
        return frames

    def count_converted(writer: demux.RgbWriter, frame: Any, *arguments: Any) -> None:
        converted.append(frame.pts)
        write(writer, frame, *arguments)

    monkeypatch.setattr(demux, "decode", count_decoded)
    monkeypatch.setattr(demux.RgbWriter, "write", count_converted)
    video = LongVideo(path)
    settings = _windows(8, 2, 2, num_crops=2, batch_size=4)
    indices = window_indices(video.num_frames, settings)
    assert len(indices) * 8 > 3 * len(np.unique(indices))  # they overlap a lot
    list(read_windows(video, indices, settings))
    assert len(converted) == len(set(converted)) == len(np.unique(indices))
    assert len(decoded) == len(set(decoded)) <= video.num_frames


def test_windows_are_resized_as_asked(tmp_path: Path) -> None:
    video = LongVideo(write_video(tmp_path / "video", RECIPES["plain"]))
    (frame,) = video.frames([0])
    found = {}
    for antialias in (True, False):
        settings = _windows(1, 1, 1, crop_size=20, antialias=antialias)
        ((window,),) = next(read_windows(video, np.array([[0]]), settings))
        expected = resize_crop(frame[None], Box(0, 0, *SQUARE), 20, antialias=antialias)
        assert torch.equal(window, expected)
        found[antialias] = window
    assert not torch.equal(found[True], found[False])


def test_only_the_windows_in_work_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the video: frames are resized no further ahead than a batch needs."""
    path = write_video(tmp_path / "video", RECIPES["plain"])
    video = LongVideo(path)
    given: list[int] = []
    original = LongVideo.frames

    def counted(self: LongVideo, indices: Any) -> Any:
        for index, frame in zip(indices, original(self, indices), strict=True):
            given.append(index)
            yield frame

    monkeypatch.setattr(LongVideo, "frames", counted)
    settings = _windows(4, 1, 4, batch_size=2)
    batches = read_windows(video, window_indices(61, settings), settings)
    next(batches)
    assert given == list(range(8))


def test_a_damaged_video_is_not_cut_short_in_silence(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video", Recipe("mkv", "libx264", 61, size=SQUARE, gop=10))
    whole = path.read_bytes()
    video = LongVideo(path)
    path.write_bytes(b"")
    with pytest.raises(VideoReadError, match="is empty"):
        LongVideo(path)
    # What packets promise, decoding does not keep
    start = whole.index(b"\0\0\1", len(whole) // 2) if b"\0\0\1" in whole else len(whole) // 2
    path.write_bytes(whole[:start] + bytes(300) + whole[start + 300 :])
    video, given = LongVideo(path), []
    with pytest.raises(VideoReadError, match=rf"has \d+ frames but claims {video.num_frames}"):
        given.extend(video.frames(range(video.num_frames)))
    assert 20 < len(given) < 61
    with pytest.raises(VideoReadError, match="no such file"):
        LongVideo(tmp_path / "none.mp4")


GUARDED = _windows(4, 3, 5, num_crops=2, batch_size=3, part=4)


def test_a_process_of_its_own_gives_the_same_windows(tmp_path: Path) -> None:
    path = write_video(tmp_path / "video", RECIPES["variable"])
    video = LongVideo(path)
    indices = window_indices(61, GUARDED)
    expected = list(read_windows(video, indices, GUARDED))
    for num_workers in (0, 1):
        reader = WindowReader(str(path), GUARDED)
        with GuardedWindows(reader, num_workers=num_workers, timeout_s=None) as guarded:
            assert (guarded.num_frames, guarded.fps) == (61, video.fps)
            assert np.array_equal(guarded.times, video.times)
            assert np.array_equal(guarded.indices, indices)
            batches = list(guarded.batches())
            assert [len(batch) for batch in batches] == [3, 1, 3, 1, 3, 1]
            assert all(map(torch.equal, batches, expected))
            assert all(map(torch.equal, guarded.batches(8), expected[4:]))
            assert list(guarded.batches(12)) == []


@pytest.mark.usefixtures("readers_may_write")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hangs", GIVEN_UP + "reading took longer than data.decode_timeout_s (2)"),
        ("crashes", GIVEN_UP + "its reader crashed (SIGABRT)"),
        ("crashes_once", None),
    ],
)
def test_reading_that_hangs_or_crashes_is_given_up(
    tmp_path: Path, name: str, reason: str | None
) -> None:
    path = write_video(tmp_path / name, RECIPES["plain"])
    batches: list[torch.Tensor] = []
    with GuardedWindows(WindowDouble(str(path), GUARDED), num_workers=1, timeout_s=2) as video:
        try:
            for batch in video.batches():
                batches.append(batch)
        except VideoReadError as error:
            assert (error.path, error.reason) == (str(path), reason)
    whole = WindowReader(str(path), GUARDED)
    expected = [whole(first) for first in (0, 3, 4, 7, 8, 11)]
    assert len(batches) == (6 if reason is None else 3)
    assert all(map(np.array_equal, batches, expected))
    assert len((tmp_path / "tried.txt").read_text().split()) == (2 if name == "crashes" else 1)
