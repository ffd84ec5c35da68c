import gc
import os
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from damage import flip_bytes
from videos import frame_numbers, write_indexed_video

from hpm_video.data.prepare.verdict import inspect_video
from hpm_video.data.video import frames
from hpm_video.data.video.frames import VideoReadError, open_video, read_frames


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mp4", "libx264"), ("a.avi", "mpeg4"), ("a.webm", "libvpx-vp9")]
)
def test_reads_exactly_the_frames_asked_for(tmp_path: Path, name: str, codec: str) -> None:
    video = open_video(write_indexed_video(tmp_path / name, 90, codec=codec))
    assert (video.num_frames, video.height, video.width) == (90, 48, 64)
    assert video.fps == pytest.approx(10)
    for wanted in (
        list(range(90)),
        [0],
        [89],
        [5, 17, 40, 41, 89],
        [60, 3, 89, 0],  # any order
        [60, 3, 3, 89, 0, 60],  # and repeated
    ):
        frames = video.read(wanted)
        assert frames.dtype == np.uint8 and frames.shape == (len(wanted), 48, 64, 3)
        assert frame_numbers(frames) == wanted


def test_every_frame_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = open_video(write_indexed_video(tmp_path / "a.mp4", 20))
    asked: list[list[int]] = []
    read = video._reader.read

    def spy(indices: list[int]) -> np.ndarray:
        asked.append(indices)
        return read(indices)

    monkeypatch.setattr(video._reader, "read", spy)
    assert frame_numbers(video.read([7, 2, 7, 7])) == [7, 2, 7, 7]
    assert asked == [[2, 7]]


def test_paths_with_spaces_and_foreign_letters(tmp_path: Path) -> None:
    path = write_indexed_video(tmp_path / "a folder" / "vidéo 1, (視).mp4", 1)
    assert frame_numbers(read_frames(path, [0, 0])) == [0, 0]


def test_index_outside_the_video_is_our_mistake(tmp_path: Path) -> None:
    video = open_video(write_indexed_video(tmp_path / "a.mp4", 4))
    for wrong in ([4], [-1]):
        with pytest.raises(AssertionError, match="of 4 frames"):
            video.read(wrong)


def _broken_files(folder: Path) -> dict[str, Path]:
    whole = write_indexed_video(folder / "whole.mp4", 40).read_bytes()
    contents = {
        "empty": b"",
        "text": b"no video at all\n" * 100,
        "half": whole[: len(whole) // 2],  # the index of an mp4 is at its end
    }
    for name, content in contents.items():
        (folder / f"{name}.mp4").write_bytes(content)
    paths = {name: folder / f"{name}.mp4" for name in contents}
    # An intact index whose frames are overwritten
    data = whole.index(b"mdat")
    (folder / "garbled.mp4").write_bytes(
        whole[: data + 4]
        + bytes(whole.index(b"moov") - data - 8)
        + whole[whole.index(b"moov") - 4 :]
    )
    return {
        **paths,
        "garbled": folder / "garbled.mp4",
        "missing": folder / "missing.mp4",
        "folder": folder,
    }


def test_unreadable_files(tmp_path: Path) -> None:
    for path in _broken_files(tmp_path).values():
        with pytest.raises(VideoReadError) as caught:
            read_frames(path, [0])
        # the decoder's own text has the time of day in it: no two would be the same
        assert not re.search(r"\d\d:\d\d:\d\d|\.cc", caught.value.reason)
        assert caught.value.path == str(path)
        assert str(path) not in caught.value.reason and "\n" not in caught.value.reason
    assert "no such file" in str(VideoReadError("a.mp4", "no such file"))


def test_of_files_that_are_not_there_the_decoder_says_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """On the file descriptor, past Python: it would say so once for every such file."""
    (tmp_path / "empty.mp4").touch()
    reasons = {}
    for name in ("missing.mp4", "empty.mp4", "folder.mp4"):
        (tmp_path / "folder.mp4").mkdir(exist_ok=True)
        with pytest.raises(VideoReadError) as caught:
            open_video(tmp_path / name)
        reasons[name] = caught.value.reason
    assert reasons == {
        "missing.mp4": "no such file",
        "empty.mp4": "is empty",
        "folder.mp4": "is a folder, not a video: it holds no numbered images",
    }
    captured = capfd.readouterr()
    assert captured.out + captured.err == ""


def test_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(VideoReadError("a b.mp4", "broken")))
    assert isinstance(error, VideoReadError)
    assert (error.path, error.reason, str(error)) == ("a b.mp4", "broken", "a b.mp4: broken")


def test_files_are_closed_without_the_garbage_collector(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process has 256 to 1024 files at once, and a collection may be thousands of clips away."""
    paths = [tmp_path / name for name in ("long.mp4", "short.mp4", "irregular.avi", "text.mp4")]
    monkeypatch.setattr(frames, "_LONG", 40)
    write_indexed_video(paths[0], 60, size=(32, 32))
    write_indexed_video(paths[1], 30, size=(32, 32))
    write_indexed_video(paths[2], 60, codec="mpeg4", size=(32, 32))
    flip_bytes(paths[2], paths[2], 20, seed=1, start=9000)
    paths[3].write_text("no video")
    gc.collect()
    gc.disable()
    try:
        before = len(os.listdir("/proc/self/fd"))
        for number in range(8):
            for path in paths[:3]:
                os.utime(path, (number, number))  # so that none is known
                table = inspect_video(str(path)).table
                for known in (table, None):
                    open_video(path, "pyav", table=known).read([7, 3])
            with pytest.raises(VideoReadError):
                open_video(paths[3], "pyav")
        assert len(os.listdir("/proc/self/fd")) <= before + 16  # the long ones that stay open
    finally:
        gc.enable()
