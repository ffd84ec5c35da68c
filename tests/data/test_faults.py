"""Files that users reported, or that were found by looking for such: every frame right, or said.

What is right comes from the ffmpeg command line, which decodes a file whole and in order, and from
the frames' own colours. `HPM_VIDEO_FAULTS` names a folder of original files; without one the tests
make their like.
"""

import csv
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fault_videos import FAULTS, FOLDER, Fault, original_or_made
from numbered_videos import indexed
from reference import Frames, cells, difference, in_order
from videos import frame_numbers

from hpm_video.config.values import Decoder
from hpm_video.data.loading.windows import LongVideo
from hpm_video.data.prepare.check import check_manifest
from hpm_video.data.prepare.encode import Encoding, encode_video
from hpm_video.data.prepare.remedies import remedies
from hpm_video.data.prepare.verdict import BAD, inspect_video
from hpm_video.data.video import frames as video_module
from hpm_video.data.video.frames import VideoReadError, open_video

_FEW = 8  # frames read alone
_TOLERANCE = 8.0  # of means of 8 x 8 cells, of 255; another frame differs by 36 at least


@pytest.fixture(params=["decord", "torchcodec", "pyav", "pyav, no index"])
def reader(request: pytest.FixtureRequest) -> str:
    """A decoder; without an index, PyAV reads for the others too."""
    if reason := video_module.missing(_decoder(request.param)):
        pytest.skip(reason)
    return request.param


def _decoder(reader: str) -> Decoder:
    return reader.split(",", maxsplit=1)[0]  # type: ignore[return-value]


_indexed = cache(indexed)


def _open(path: Path, reader: str) -> video_module.Video:
    table = None if "no index" in reader else _indexed(path)
    return open_video(path, _decoder(reader), table=table)


@pytest.fixture(scope="module", params=FAULTS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def path(name: str, folder: Path) -> Path:
    return original_or_made(name, folder)


@pytest.fixture
def fault(name: str) -> Fault:
    return FAULTS[name]


@cache
def _expected(path: Path) -> list[Frames]:
    return in_order(path, other_sizes="size" in FAULTS[path.name].said)


def _expect(name: str, path: Path) -> list[Frames]:
    """The frames of a file, after a look at whether ffmpeg says what is known of the original."""
    frames, fault = _expected(path), FAULTS[name]
    if FOLDER.is_dir():
        assert len(frames) == fault.num_frames, "ffmpeg disagrees with what is written of the file"
        if fault.numbers is not None:
            assert frame_numbers(np.stack(frames)) == list(fault.numbers)
    return frames


def _assert_alike(frames: Frames, expected: list[Frames], fault: Fault) -> None:
    assert len(frames) == len(expected)
    pairs = list(zip(frames, expected, strict=True))
    if "size" in fault.said:  # where bars end depends on rounding: by the mean over the cells
        off = [float(np.abs(cells(a) - cells(b)).mean()) for a, b in pairs]
    else:
        off = [difference(*pair) for pair in pairs]
    limit = 2 * _TOLERANCE if "size" in fault.said else _TOLERANCE
    wrong = [(index, round(value)) for index, value in enumerate(off) if value > limit]
    assert wrong == [], f"(frame, difference), {len(wrong)} of {len(frames)}"


def test_frames_are_those_of_decoding_in_order(
    name: str, path: Path, fault: Fault, reader: str
) -> None:
    expected = _expect(name, path)
    try:
        video = _open(path, reader)
        frames = video.read(range(video.num_frames))
    except VideoReadError as error:
        assert fault.or_bad or not fault.num_frames, error.reason
        return
    assert fault.num_frames, f"{video.num_frames} frames of a file without video"
    assert video.num_frames == len(expected)
    _assert_alike(frames, expected, fault)
    assert (video.height, video.width) == expected[0].shape[:2]
    # Each frame alone, of a file just opened, as training reads clips
    for index in np.linspace(0, len(frames) - 1, _FEW, dtype=int).tolist():
        alone = _open(path, reader)
        assert np.array_equal(alone.read([index])[0], frames[index]), f"frame {index} alone"
    some = [len(frames) - 1, len(frames) // 2, 0, len(frames) // 3]
    assert np.array_equal(_open(path, reader).read(some), frames[some])


def test_what_changes_the_picture_is_said(path: Path, fault: Fault, reader: str) -> None:
    if not fault.said:
        pytest.skip("nothing need be said of it")
    try:
        video = _open(path, reader)
        video.read(range(video.num_frames))
        said = video.note
    except VideoReadError as error:
        said = error.reason
    assert re.search(fault.said, said or ""), said


def test_the_verdict(path: Path, fault: Fault) -> None:
    found = inspect_video(str(path))
    expected = _expected(path)
    if found.status == BAD and fault.or_bad:
        assert found.reason and "Error" not in found.reason  # no exception that nobody expected
        return
    assert re.fullmatch(fault.status, found.status), found.reason
    if fault.status == BAD:
        assert re.search(fault.said, found.reason)
        return
    assert found.num_frames == len(expected)
    assert (found.height, found.width) == expected[0].shape[:2]


def test_field_coded_video_lasts_as_long_as_its_frames(folder: Path) -> None:
    """Its header may give the rate of fields, two of which make a frame."""
    found = inspect_video(str(original_or_made("paff.mp4", folder)))
    assert (found.fps, found.duration_s) == pytest.approx((25, 40 / 25))


def test_reading_from_one_end_to_the_other(name: str, path: Path, fault: Fault) -> None:
    """As `features` and `visualize` of a long video do."""
    expected = _expect(name, path)
    try:
        video = LongVideo(path)
        frames = list(video.frames(range(video.num_frames)))
    except VideoReadError as error:
        assert fault.or_bad or not fault.num_frames, error.reason
        return
    assert fault.num_frames
    _assert_alike(np.stack(frames), expected, fault)
    assert len(video.times) == len(frames) + 1
    steps = np.diff(video.times)  # NaN where the file says nothing of times
    assert np.isnan(steps).all() or (steps >= 0).all(), "frames that appear before the one before"


def test_encoded_anew(name: str, path: Path, fault: Fault, tmp_path: Path) -> None:
    expected = _expect(name, path)
    target = tmp_path / "new.mp4"
    encoding = Encoding(short_side=64, crf=12, preset="veryfast")
    try:
        encoded = encode_video(str(path), str(target), encoding)
    except VideoReadError as error:
        assert fault.or_bad or not fault.num_frames, error.reason
        return
    assert fault.num_frames
    assert (encoded.num_read, encoded.num_written) == (len(expected), len(expected))
    video = open_video(target, "pyav")
    assert video.num_frames == len(expected)
    for index, frame in enumerate(video.read(range(video.num_frames))):
        # The sizes differ; of a damaged frame the encoder keeps little
        off = np.abs(cells(frame) - cells(expected[index])).mean()
        assert off < 8, f"frame {index} differs by {off:.0f}"


def test_check_of_a_list_of_all(folder: Path, tmp_path: Path) -> None:
    paths = {name: original_or_made(name, folder) for name in FAULTS}
    listed = tmp_path / "all.csv"
    listed.write_text("path\n" + "".join(f"{path}\n" for path in paths.values()))
    check_manifest(listed, timeout_s=60)
    with listed.open(encoding="utf-8") as file:
        rows = {Path(row["path"]).name: row for row in csv.DictReader(file)}
    for name, fault in FAULTS.items():
        status, number = rows[name]["status"], rows[name]["num_frames"]
        if not (fault.or_bad and status == BAD):
            assert re.fullmatch(fault.status, status), f"{name}: {rows[name]['reason']}"
            assert (name, int(number or 0)) == (name, len(_expected(paths[name])))
    said = remedies("depth_gray16.mkv", rows["depth_gray16.mkv"]["reason"])
    assert any("ffmpeg" in text for text in said)  # how to keep more than the top bits
