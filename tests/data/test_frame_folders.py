"""Folders of frames and images as videos."""

import csv
import io
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from videos import frame_numbers, indexed_picture

from hpm_video.cli.main import main
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.prepare.tree import VideoTree
from hpm_video.data.prepare.verdict import inspect_video
from hpm_video.data.video.frame_table import FrameTable
from hpm_video.data.video.frames import VideoReadError, at_rate, open_video, read_frames
from hpm_video.data.video.readers.frame_folder import frames_among


def _frames(
    folder: Path, names: str = "img_%05d.jpg", numbers: range | list[int] = range(1, 21)
) -> Path:
    """A folder of frames; the k-th shows the number k."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, number in enumerate(numbers):
        picture = Image.fromarray(indexed_picture(k, (48, 64)))
        picture.save(folder / (names % number), quality=95)
    return folder


def _reason(path: Path, indices: tuple[int, ...] = (0,)) -> str:
    with pytest.raises(VideoReadError) as caught:
        read_frames(path, indices)
    assert "\n" not in caught.value.reason and str(path) not in caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        ("img_%05d.jpg", range(1, 21)),  # ffmpeg, TSN
        ("frame_%010d.jpg", range(1, 21)),  # EPIC-Kitchens
        ("%d.png", range(20)),  # 10.png sorts before 2.png as text
        ("P01_07_%d_left.WEBP", range(95, 115)),
        ("a%%0_%05d.jpeg", range(99990, 100010)),  # six digits at the end
    ],
)
@pytest.mark.parametrize("has_index", [False, True])
def test_frames_come_in_the_order_of_their_numbers(
    tmp_path: Path, names: str, numbers: range, has_index: bool
) -> None:
    folder = _frames(tmp_path / "video", names, numbers)
    table = inspect_video(str(folder)).table if has_index else None
    video = open_video(folder, table=table)
    assert (video.num_frames, video.note) == (20, None)
    assert frame_numbers(video.read([19, 3, 3, 0, 9])) == [19, 3, 3, 0, 9]
    frames = list(LongVideo(folder, table).frames(range(0, 20, 7)))
    assert frame_numbers(np.stack(frames)) == [0, 7, 14]


def test_only_the_frames_asked_for_are_opened(tmp_path: Path) -> None:
    folder = _frames(tmp_path / "video")
    for path in folder.iterdir():
        if path.name not in ("img_00001.jpg", "img_00004.jpg"):
            path.write_bytes(b"none")
    assert frame_numbers(read_frames(folder, [3])) == [3]
    # With an index not even a name is asked for
    table = inspect_video(str(_frames(tmp_path / "other"))).table
    times = os.stat(tmp_path / "other").st_mtime_ns
    (tmp_path / "other/img_00008.jpg").unlink()
    os.utime(tmp_path / "other", ns=(times, times))
    assert open_video(tmp_path / "other", table=table).num_frames == 20
    assert open_video(tmp_path / "other").num_frames == 19


def test_what_else_lies_in_a_folder(tmp_path: Path) -> None:
    folder = _frames(tmp_path / "video")
    for name in (".DS_Store", "Thumbs.db", "._img_00001.jpg", "notes.txt", "cover.jpg", "pic7.jpg"):
        (folder / name).write_bytes(b"x")
    _frames(folder, "flow_x_%05d.jpg")
    assert frame_numbers(read_frames(folder, range(20))) == list(range(20))
    verdict = inspect_video(str(folder))
    assert (verdict.status, verdict.reason) == ("ok", "22 other images in the folder are left out")


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["a.jpg", "b.txt"], "is a folder, not a video: it holds no numbered images"),
        (
            ["a_1.jpg", "a_2.jpg", "b_1.jpg", "b_2.jpg"],
            "is a folder of images with several names: a_# (2), b_# (2): keep the frames of "
            "each video in a folder of its own",
        ),
        (["a_1.jpg", "a_01.jpg"], "has two frames with number 1: a_01.jpg, a_1.jpg"),
        (["a_1.jpg", "a_1.png"], "has two frames with number 1: a_1.jpg, a_1.png"),
    ],
)
def test_folders_that_are_no_video(tmp_path: Path, names: list[str], reason: str) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert _reason(tmp_path) == reason
    assert inspect_video(str(tmp_path)).reason == reason


def test_gaps_are_said(tmp_path: Path) -> None:
    numbers = [3, 4, 5, 9, 10, 13]
    folder = _frames(tmp_path / "video", numbers=numbers)
    video = open_video(folder)
    assert frame_numbers(video.read(range(6))) == list(range(6))
    assert video.note == "a folder of frames with gaps in its numbers"
    reason = "5 of the numbers from 3 to 13 are missing, the first after 5"
    assert inspect_video(str(folder)).reason == reason
    # Every tenth frame of a video is none with gaps
    assert open_video(_frames(tmp_path / "tenth", numbers=range(1, 60, 10))).note is None
    assert (
        "1 of the numbers"
        in inspect_video(str(_frames(tmp_path / "one", numbers=[1, 11, 31]))).reason
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_that_of_exif_transpose(
    tmp_path: Path, suffix: str, orientation: int
) -> None:
    from PIL import ImageOps

    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :24], pixels[16:, :24], pixels[:16, 24:] = 255, (255, 0, 0), (0, 255, 0)
    image = Image.fromarray(pixels)
    exif = image.getexif()
    exif[0x0112] = orientation
    for number in (1, 2):
        image.save(tmp_path / f"{number}.{suffix}", exif=exif, quality=100)
    with Image.open(tmp_path / f"1.{suffix}") as stored:
        expected = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))
    for path in (tmp_path, tmp_path / f"2.{suffix}"):
        (found,) = read_frames(path, [0])
        assert np.array_equal(found, expected)


def test_kinds_of_pixels(tmp_path: Path) -> None:
    ramp = np.linspace(0, 255, 48 * 64).reshape(48, 64).astype(np.uint8)
    colour = np.stack([ramp, 255 - ramp, ramp // 2], axis=-1)
    alpha = np.concatenate([colour, ramp[..., None]], axis=-1)
    images = {
        "L": (Image.fromarray(ramp), np.repeat(ramp[..., None], 3, axis=-1)),
        "RGB": (Image.fromarray(colour), colour),
        "RGBA": (Image.fromarray(alpha), colour),
        "1": (Image.fromarray(ramp > 99), np.repeat((ramp > 99)[..., None] * 255, 3, axis=-1)),
        "I;16": (
            Image.fromarray(ramp.astype(np.uint16) * 256 + 77),
            np.repeat(ramp[..., None], 3, axis=-1),
        ),
    }
    few = Image.fromarray(colour).quantize(16)
    images["P"] = few, np.asarray(few.convert("RGB"))
    for mode, (image, expected) in images.items():
        image.save(tmp_path / "a.png")
        (found,) = read_frames(tmp_path / "a.png", [0])
        assert np.array_equal(found, expected), mode
    assert inspect_video(str(tmp_path / "a.png")).reason == "is a single picture"
    Image.fromarray(ramp.astype(np.uint16) * 16).save(tmp_path / "a.png")
    assert inspect_video(str(tmp_path / "a.png")).reason == (
        "is a single picture; is 16-bit grey that uses 12 bits: the upper 8 of 16 are read"
    )


def test_frames_of_several_sizes(tmp_path: Path) -> None:
    """Scaled to the first, with bars; so also where another one is read first."""
    folder = _frames(tmp_path / "video", "%d.png", range(4))
    Image.fromarray(indexed_picture(2, (48, 48))).save(folder / "2.png")
    Image.fromarray(indexed_picture(3, (24, 32))).save(folder / "3.png")
    video = open_video(folder)
    square, small = video.read([2, 3])
    assert square.shape == small.shape == (48, 64, 3)
    assert frame_numbers(square[None, :, 8:56]) == [2] and frame_numbers(small[None]) == [3]
    assert not square[:, :8].any() and not square[:, 56:].any()
    assert video.note == "frames of several sizes, all scaled to the first"
    verdict = inspect_video(str(folder))
    assert verdict.reason == "has frames of several sizes, all scaled to the first, 64 x 48"
    assert open_video(folder, table=verdict.table).note == video.note


def test_broken_frames_are_named(tmp_path: Path) -> None:
    folder = _frames(tmp_path / "video")
    (folder / "img_00003.jpg").write_bytes(b"")
    (folder / "img_00005.jpg").write_bytes((folder / "img_00005.jpg").read_bytes()[:-200])
    (folder / "img_00007.jpg").write_text("no image")
    (folder / "img_00009.jpg").unlink()
    (folder / "img_00009.jpg").symlink_to("nowhere")
    (folder / "img_00011.jpg").unlink()
    os.mkfifo(folder / "img_00011.jpg")
    assert frame_numbers(read_frames(folder, [0, 1, 3, 19])) == [0, 1, 3, 19]
    for index, said in {
        2: "is not an image",
        4: "truncated",
        6: "is not an image",
        8: "no such file",
    }.items():
        reason = _reason(folder, (0, index))
        assert reason.startswith(f"img_{index + 1:05d}.jpg: ") and said in reason
    assert "a pipe" in _reason(folder, (10,))
    for quick in (False, True):
        verdict = inspect_video(str(folder), quick=quick)
        assert (verdict.status, verdict.num_frames, verdict.damaged) == ("damaged", 20, 5)
        assert verdict.reason.startswith("decoding errors in 5 of 20 frames (img_00003.jpg: is no")
        assert verdict.reason.endswith(", ...)")
    for path in folder.iterdir():
        path.unlink()
        path.write_text("none")
    assert inspect_video(str(folder)).reason == _reason(folder)
    assert _reason(folder).startswith(
        "none of its frames can be decoded, img_00001.jpg: is not an image"
    )


def test_an_image_is_a_still_video(tmp_path: Path) -> None:
    Image.fromarray(indexed_picture(77, (48, 64))).save(tmp_path / "a%03d.jpg", quality=95)
    video = open_video(tmp_path / "a%03d.jpg")
    assert (video.num_frames, video.fps, video.note) == (1, 1.0, None)
    assert frame_numbers(video.read([0] * 4)) == [77] * 4
    assert at_rate(video, 8.0).num_frames == 8
    (tmp_path / "b.jpg").write_bytes(b"x")
    assert _reason(tmp_path / "b.jpg").startswith("is not an image (JPEG, PNG")


def test_an_animation_is_a_video(tmp_path: Path) -> None:
    """As it was before: FFmpeg's reader has all its pictures."""
    pictures = [Image.fromarray(indexed_picture(k, (48, 64))) for k in range(3)]
    pictures[0].save(tmp_path / "a.png", save_all=True, append_images=pictures[1:], duration=100)
    assert frame_numbers(read_frames(tmp_path / "a.png", [0, 1, 2])) == [0, 1, 2]


def test_frames_per_second(tmp_path: Path) -> None:
    folder = _frames(tmp_path / "raw/run/video")
    assert open_video(folder).fps == 0
    with pytest.raises(VideoReadError, match=r"and no fps.txt in the folder or above it"):
        at_rate(open_video(folder), 5.0)
    assert np.isnan(LongVideo(folder).times).all()
    table = inspect_video(str(folder)).table
    (tmp_path / "raw/fps.txt").write_text("30000/1001\n")
    for known in (None, table):  # an index of before does not hide it
        assert open_video(folder, table=known).fps == 30000 / 1001
    (folder / "fps.txt").write_text("10")  # the nearest one counts
    video = open_video(folder)
    assert at_rate(video, 5.0).read(np.arange(10)).shape[0] == 10
    assert frame_numbers(at_rate(video, 5.0).read(np.arange(5))) == [0, 2, 4, 6, 8]
    assert LongVideo(folder).times[[0, 10, 20]].tolist() == [0, 1, 2]
    assert inspect_video(str(folder)).duration_s == 2
    for text in ("fast", "0", "-3", "1e9", "nan", "1/0", "25" * 100):
        (folder / "fps.txt").write_text(text)
        assert "fps.txt must hold only the frames per second" in _refusal_of(folder)


def _refusal_of(folder: Path) -> str:
    with pytest.raises(VideoReadError) as caught:
        open_video(folder)
    return caught.value.reason


def test_motion_vectors_are_refused_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(VideoReadError, match=r"has no motion vectors, as it is not a video file"):
        open_video(_frames(tmp_path / "video"), motion=True)


def test_tables_of_strangers(tmp_path: Path) -> None:
    """What an index says of names leads to no file elsewhere, and takes no memory."""
    folder = _frames(tmp_path / "a" / "video")
    (tmp_path / "a" / "1.jpg").write_bytes((folder / "img_00001.jpg").read_bytes())
    known = FrameTable.from_bytes(inspect_video(str(folder)).table or b"")
    assert known is not None
    from dataclasses import replace

    for files in ("../%d.jpg/1/", "../1/1/.jpg", "x/9999999999/.jpg", "img_/no/.jpg", "///"):
        table = replace(known, files=files).to_bytes()
        try:
            video = open_video(folder, table=table)
            assert frame_numbers(video.read([0])) == [0]  # by the names that are there
        except VideoReadError as error:
            assert len(error.reason) < 500


def test_lists(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By folder, of any kind of list; a check writes the index; a video is made of each."""
    for name in ("run/v1", "run/v2", "walk/v3"):
        _frames(tmp_path / "raw" / name)
    (tmp_path / "raw/fps.txt").write_text("10")
    (tmp_path / "raw/walk/v3/img_00004.jpg").unlink()
    manifest = tmp_path / "m.csv"
    assert main(["data", "list", "--folder", str(tmp_path / "raw"), "-o", str(manifest)]) == 0
    assert "3 of the videos are folders of frames" in capsys.readouterr().out
    for kind, text in {
        "tsn.txt": "raw/run/v1 20 0\nraw/run/v2 20 0\nraw/walk/v3 19 1\n",
        "dots.txt": f"../{tmp_path.name}/raw/run/v1 20 0\n{tmp_path}/./raw/run/v2 20 0\n"
        "./raw/walk/v3/ 19 1\n",
        "csv.csv": "path,label\nraw/run/v1,0\nraw/run/v2,0\nraw/walk/v3,1\n",
        "own.csv": manifest.read_text(),
    }.items():
        (tmp_path / kind).write_text(text)
        read = read_manifest(tmp_path / kind)
        assert read.labels.tolist() == [0, 0, 1]
        assert [open_video(read.path(k)).num_frames for k in range(3)] == [20, 20, 19]
        out = tmp_path / f"of_{kind}.csv"
        assert main(["data", "list", "--manifest", str(tmp_path / kind), "-o", str(out)]) == 0
    assert main(["data", "check", str(manifest), "--workers", "1"]) == 0
    rows = list(csv.DictReader(io.StringIO(manifest.read_text())))
    assert [(row["num_frames"], row["fps"], row["status"]) for row in rows] == [
        ("20", "10.0", "ok"), ("20", "10.0", "ok"), ("19", "10.0", "ok"),
    ]  # fmt: skip
    assert int(rows[0]["num_bytes"]) == sum(
        path.stat().st_size for path in (tmp_path / "raw/run/v1").iterdir()
    )
    assert read_manifest(manifest).table(0) is not None
    assert main(["data", "transcode", str(manifest), "-o", str(tmp_path / "mp4")]) == 0
    video = open_video(tmp_path / "mp4/raw/run/v1.mp4")
    assert (video.num_frames, video.fps) == (20, 10)
    assert frame_numbers(video.read(range(20))) == list(range(20))


def test_named_videos_are_found_as_folders(tmp_path: Path) -> None:
    """As official lists name them, whose files somebody has taken apart."""
    _frames(tmp_path / "rawframes" / "74225")
    (tmp_path / "rawframes" / "fps.txt").write_text("12")
    tree = VideoTree(tmp_path)
    assert tree.find("74225.webm") == str(tmp_path / "rawframes" / "74225")
    assert tree.texts == [] and tree.num_others == 0


def test_stills_or_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images numbered with large gaps, as ImageNet's, are no video by accident."""
    for name in ("n01", "n02"):
        _frames(tmp_path / "raw" / name, f"{name}_%d.JPEG", [7, 1803, 13])
    out = str(tmp_path / "m.csv")
    command = ["data", "list", "--folder", str(tmp_path / "raw"), "-o", out]
    assert main(command) == 2
    assert "; 6 files are images: `--images stills` lists each" in capsys.readouterr().err
    assert main([*command, "--images", "stills"]) == 0
    read = read_manifest(out)
    assert read.labels.tolist() == [0, 0, 0, 1, 1, 1] and read.classes == ("n01", "n02")
    assert main([*command, "--images", "frames"]) == 0
    assert len(read_manifest(out)) == 2
    again = ["data", "list", "--manifest", out, "-o", str(tmp_path / "n.csv")]
    assert main([*again, "--images", "stills"]) == 2
    (tmp_path / "stills.txt").write_text("raw/n01/n01_7.JPEG 0\nraw/n02/n02_7.JPEG 1\n")
    assert read_manifest(tmp_path / "stills.txt").labels.tolist() == [0, 1]


def test_folders_of_images_that_are_left_out_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _frames(tmp_path / "raw" / "good")
    _frames(tmp_path / "raw" / "of", "img_%d_of_20.png")
    _frames(tmp_path / "raw" / "gaps", "%d.png", [1, 100, 200, 777])
    (tmp_path / "raw" / "good" / "cover").mkdir()
    _frames(tmp_path / "raw" / "good" / "cover", "cover_%d.png", [1])
    command = ["data", "list", "--folder", str(tmp_path / "raw"), "-o", str(tmp_path / "m.csv")]
    assert main(command) == 0
    said = capsys.readouterr().out
    first = "note: 2 folders of images are not listed as videos, the first is "
    assert f"{first}{tmp_path}/raw/gaps: 773 numbers between those of its 4 images are" in said
    assert "`--images frames` each folder" in said
    assert main([*command, "--images", "frames"]) == 0
    said = capsys.readouterr().out
    first = first.replace("2", "1")
    assert f"{first}{tmp_path}/raw/of: is a folder of images with several names" in said
    assert "`--images frames` each folder" not in said


def test_a_text_is_no_list_of_folders(tmp_path: Path) -> None:
    for text in (
        "raw/v1\n",
        "raw/v1 3\n",
        "raw/v1 20 run\n",
        "raw/v1 20 0 1\n",
        "a b 20 0\n",
        "v.1 20 0\n",
    ):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(ValueError, match=r"list.txt:1: row \("):
            read_manifest(tmp_path / "list.txt")


def test_large_numbers() -> None:
    names = [f"f{2**70 + k}.jpg" for k in (3, 1, 2)]
    files = frames_among(names)
    assert [files.name(k) for k in range(3)] == [names[1], names[2], names[0]]


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_frames_are_those_that_ffmpeg_wrote(tmp_path: Path) -> None:
    from videos import write_indexed_video

    write_indexed_video(tmp_path / "a.mp4", 30)
    (tmp_path / "a").mkdir()
    command = ["ffmpeg", "-v", "error", "-i", str(tmp_path / "a.mp4")]
    subprocess.run([*command, str(tmp_path / "a/img_%05d.jpg")], check=True)
    assert re.fullmatch(r"img_\d{5}\.jpg", sorted(os.listdir(tmp_path / "a"))[0])
    video = open_video(tmp_path / "a")
    assert frame_numbers(video.read(range(30))) == list(range(30))
