"""Toy videos: readable in every container, labelled by motion alone, with true positions."""

import csv
import re
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from hpm_video.data.prepare import toy, toy_drawing

SIZE, NUM_FRAMES = 64, 24


def decode(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def wrap(offset: NDArray[np.floating], size: int = SIZE) -> NDArray[np.floating]:
    return (offset + size / 2) % size - size / 2


def classify(centres: NDArray[np.floating]) -> str:
    """The class from a few centres (T, 2), read as a person would: where it goes."""
    y, x = wrap(np.diff(centres, axis=0).astype(np.float64)).mean(axis=0)
    vertical = {-1: "up", 0: "", 1: "down"}[round(y / np.hypot(y, x))]  # .71 and 1 are 1
    horizontal = {-1: "left", 0: "", 1: "right"}[round(x / np.hypot(y, x))]
    return "_".join(word for word in (vertical, horizontal) if word)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy") / "a folder"
    return toy.write_toy_videos(folder, num_videos=24, num_workers=2)


@pytest.fixture(scope="module")
def videos(written: Path) -> dict[str, NDArray[np.uint8]]:
    positions = toy.read_positions(written.parent / "positions.csv")
    return {path: decode(written.parent / path) for path in positions}


@pytest.fixture(scope="module")
def tracks() -> NDArray[np.float32]:
    """Simulated tracks: (videos, classes, T, 3)."""
    every = [
        toy_drawing.toy_positions(5, i, size=SIZE, num_frames=NUM_FRAMES) for i in range(8 * 400)
    ]
    return np.stack(every).reshape(400, 8, NUM_FRAMES, 3)


def test_manifest_and_layout(written: Path) -> None:
    rows = list(csv.DictReader(written.read_text().splitlines()))
    names = (written.parent / "classes.txt").read_text().split()
    assert list(rows[0]) == ["path", "label", "num_frames", "fps", "width", "height"]
    assert names == list(toy_drawing.CLASSES) and len(rows) == 24
    for index, row in enumerate(rows):
        path = Path(row["path"])
        assert int(row["label"]) == index % 8 == names.index(path.parent.name)
        assert path.stem == f"{path.parent.name}_{index:05d}"
        assert row["fps"] == "12" and (written.parent / path).is_file()
    pairs = {(row["label"], Path(row["path"]).suffix) for row in rows}
    assert len(pairs) == 24  # every class in every format
    files = [p for p in written.parent.rglob("*") if p.is_file()]
    assert len(files) == 24 + 4 and not [p for p in files if p.suffix == ".tmp"]


@pytest.mark.parametrize("suffix", toy.FORMATS)
def test_decoded_frames_are_the_drawn_ones(
    suffix: str, written: Path, videos: dict[str, NDArray[np.uint8]]
) -> None:
    for index, (path, frames) in enumerate(videos.items()):
        if path.endswith(suffix):
            drawn, _ = toy_drawing.render_toy_video(0, index, size=SIZE, num_frames=NUM_FRAMES)
            assert frames.shape == drawn.shape == (NUM_FRAMES, SIZE, SIZE, 3)
            error = np.abs(frames.mean(axis=3) - drawn.mean(axis=3))  # of the grey value
            assert error.mean() < 6 and (error.mean(axis=(1, 2)) < 9).all(), path
            with av.open(str(written.parent / path)) as container:
                stream = container.streams.video[0]
                assert stream.average_rate == 12
                keys = [f.key_frame for f in container.decode(stream)]
            assert keys[0] and max(np.diff([*np.flatnonzero(keys), NUM_FRAMES])) <= 12


def test_positions_agree_with_the_frames(
    written: Path, videos: dict[str, NDArray[np.uint8]]
) -> None:
    positions = toy.read_positions(written.parent / "positions.csv")
    for path, frames in videos.items():
        track = positions[path].astype(np.float64)
        grey = frames.astype(np.float64).mean(axis=3)
        grey -= grey.mean(axis=(1, 2), keepdims=True)
        grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij"), axis=2)
        near = [np.linalg.norm(wrap(grid - t[:2]), axis=2) <= t[2] + 1 for t in track]
        inside, shift_errors = [], []
        for t in range(NUM_FRAMES - 1):
            # What changes between two frames lies in the two discs.
            change = (grey[t + 1] - grey[t]) ** 2
            inside.append(change[near[t] | near[t + 1]].sum() / change.sum())
            # The disc's content reappears where the stored positions say.
            core = np.linalg.norm(wrap(grid - track[t, :2]), axis=2) <= 0.6 * track[t, 2]
            shifts = [(y, x) for y in range(-6, 7) for x in range(-6, 7)]
            errors = [
                ((np.roll(grey[t + 1], (-y, -x), (0, 1)) - grey[t])[core] ** 2).sum()
                for y, x in shifts
            ]
            found = np.array(shifts[int(np.argmin(errors))])
            moved = wrap(track[t + 1, :2] - track[t, :2])
            shift_errors.append(np.abs(found - moved).max())
        assert np.median(inside) > 0.9, path
        assert np.median(shift_errors) <= 0.75 and np.mean(np.array(shift_errors) > 1.1) < 0.2, path


def test_stored_positions_are_the_simulated_ones(written: Path) -> None:
    stored = toy.read_positions(written.parent / "positions.csv")
    for index, track in enumerate(stored.values()):
        expected = toy_drawing.toy_positions(0, index, size=SIZE, num_frames=NUM_FRAMES)
        np.testing.assert_array_equal(track, expected)


def test_objects_are_drawn_where_the_position_says(monkeypatch: pytest.MonkeyPatch) -> None:
    disc = toy_drawing._SHAPES[:1]  # its centre is its centroid
    monkeypatch.setattr(toy_drawing, "_SHAPES", disc)
    patch = toy_drawing._draw_object(np.random.default_rng(0), 5.3)
    patch[..., :3] = patch[..., 3:]  # white
    centres = np.array([[12, 20], [0.25, 31.75], [31.5, 3.1]])
    frames = np.zeros((3, 32, 32, 3), dtype=np.float32)
    toy_drawing._paste(frames, patch, centres)
    np.testing.assert_allclose(frames[..., 0].sum(axis=(1, 2)), np.pi * 5.3**2, rtol=0.02)
    for frame, centre in zip(frames[..., 0], centres, strict=True):
        for axis in (0, 1):
            weights, offsets = frame.sum(axis=1 - axis), wrap(np.arange(32) - centre[axis], 32)
            assert abs((weights * offsets).sum() / weights.sum()) < 0.01


@pytest.mark.parametrize("stride", [1, 2])
def test_any_two_frames_show_the_class(tracks: NDArray[np.float32], stride: int) -> None:
    for label, name in enumerate(toy_drawing.CLASSES):
        for track in tracks[:100, label, :, :2]:
            for first in range(NUM_FRAMES - stride):
                assert classify(track[first : first + stride + 1 : stride]) == name


def test_a_single_frame_does_not_show_the_class(tracks: NDArray[np.float32]) -> None:
    assert (tracks[..., :2] >= 0).all() and (tracks[..., :2] < SIZE).all()
    for frame in (0, 5, 12, 23):
        for label in range(8):
            y, x, _ = tracks[:, label, frame].T
            counts, *_ = np.histogram2d(y, x, bins=4, range=[[0, SIZE]] * 2)
            chi_square = ((counts - 25) ** 2 / 25).sum()  # 15 degrees of freedom
            assert chi_square < 44  # one in 10,000 by chance; 32 cases
    radius = tracks[:, :, 0, 2].mean(axis=0) / SIZE
    assert np.ptp(radius) < 0.004 and abs(radius.mean() - np.mean(toy_drawing.RADIUS)) < 0.001


def test_speed_does_not_show_the_class(tracks: NDArray[np.float32]) -> None:
    steps = np.linalg.norm(wrap(np.diff(tracks[..., :2], axis=2)), axis=3) / SIZE
    speeds = np.median(steps, axis=2)  # (videos, classes)
    assert speeds.min() > 0.038 and speeds.max() < 0.0601
    assert np.ptp(speeds.mean(axis=0)) < 0.002


def test_looks_are_drawn_without_the_class(monkeypatch: pytest.MonkeyPatch) -> None:
    first, positions = toy_drawing.render_toy_video(0, 3, size=SIZE, num_frames=2)
    draw = toy_drawing._draw_track
    monkeypatch.setattr(toy_drawing, "_draw_track", lambda rng, _, *rest: draw(rng, "up", *rest))
    other, moved = toy_drawing.render_toy_video(0, 3, size=SIZE, num_frames=2)
    assert positions[0, 2] == moved[0, 2] and not np.array_equal(positions[1], moved[1])
    still = toy.object_mask(positions[:1], SIZE, grid_time=1, grid_height=64, grid_width=64)[0] == 0
    still &= toy.object_mask(moved[:1], SIZE, grid_time=1, grid_height=64, grid_width=64)[0] == 0
    assert np.abs(first[0][still].astype(int) - other[0][still]).mean() < 1


def test_same_seed_same_bytes_and_first_videos_of_a_larger_set(
    written: Path, tmp_path: Path
) -> None:
    again = toy.write_toy_videos(tmp_path / "again", num_videos=18)
    other = toy.write_toy_videos(tmp_path / "other", num_videos=1, seed=1)
    lines = again.read_text().splitlines()
    assert lines == written.read_text().splitlines()[: len(lines)]
    for path in toy.read_positions(again.parent / "positions.csv"):
        assert (again.parent / path).read_bytes() == (written.parent / path).read_bytes()
    path = lines[1].split(",")[0]
    difference = decode(other.parent / path).astype(int) - decode(written.parent / path)
    assert np.abs(difference).mean() > 10


def test_distractors_and_length() -> None:
    none, positions = toy_drawing.render_toy_video(0, 0, size=32, num_frames=5, distractors=0)
    two, same = toy_drawing.render_toy_video(0, 0, size=32, num_frames=5, distractors=2)
    np.testing.assert_array_equal(positions, same)
    changed = np.abs(none.astype(int) - two).max(axis=3) > 8
    assert 0.02 < changed.mean() < 0.25
    longer, _ = toy_drawing.render_toy_video(0, 0, size=32, num_frames=9, distractors=0)
    np.testing.assert_array_equal(longer[:5], none)


def test_object_mask() -> None:
    track = np.array([[0, 16, 5], [0, 16, 5], [20.5, 3, 5], [20.5, 28, 5]], dtype=np.float32)
    mask = toy.object_mask(track, 32, grid_time=2, grid_height=4, grid_width=8)
    assert mask.shape == (2, 4, 8) and mask.dtype == np.float32
    assert mask.min() == 0 and mask.max() <= 1
    np.testing.assert_allclose(mask.sum(axis=(1, 2)) * 8 * 4, np.pi * 25, rtol=0.05)
    # Frames 0 and 1 lie on the seam between bottom and top, as far as possible from the middle.
    assert set(np.flatnonzero(mask[0].sum(axis=1))) == {0, 3}
    assert set(np.flatnonzero(mask[0].sum(axis=0))) == {2, 3, 4, 5}
    fine = toy.object_mask(track, 32, grid_time=4, grid_height=32, grid_width=32)
    assert fine[0, 0, 16] == fine[0, 31, 16] == fine[3, 20, 0] == 1 and fine[0, 16, 16] == 0
    pooled = fine.reshape(2, 2, 4, 8, 8, 4).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(mask, pooled, atol=1e-6)


def test_existing_folders(written: Path, tmp_path: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in written.parent.rglob("*")}
    assert toy.write_toy_videos(written.parent, num_videos=24) == written
    assert {p: p.stat().st_mtime_ns for p in written.parent.rglob("*")} == before
    with pytest.raises(ValueError, match=re.escape("other toy videos: seed (0, not 2)")):
        toy.write_toy_videos(written.parent, num_videos=24, seed=2)
    (tmp_path / "manifest.csv").write_text("path\n")
    with pytest.raises(ValueError, match=r"its toy\.json cannot be read"):
        toy.write_toy_videos(tmp_path, num_videos=1)
    assert (tmp_path / "manifest.csv").read_text() == "path\n"


def test_an_interrupted_set_is_completed(tmp_path: Path) -> None:
    manifest = toy.write_toy_videos(tmp_path, num_videos=2, size=32, num_frames=2)
    text = manifest.read_text()
    manifest.unlink()
    video = tmp_path / text.splitlines()[1].split(",")[0]
    video.write_bytes(b"cut")
    assert toy.write_toy_videos(tmp_path, num_videos=2, size=32, num_frames=2) == manifest
    assert manifest.read_text() == text and len(decode(video)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_videos": 0}, "num_videos (0) must be at least 1"),
        ({"size": 30}, "size (30) must be at least 32"),
        ({"size": 65}, "size (65) must be even"),
        ({"num_frames": 1}, "num_frames (1) must be at least 2"),
        ({"seed": -1}, "seed (-1) must be at least 0"),
        ({"fps": 0}, "fps (0) must be at least 1"),
        ({"num_workers": 0}, "num_workers (0) must be at least 1"),
        ({"distractors": -1}, "distractors (-1) must be at least 0"),
        ({"formats": ("mp4", "mov")}, "must be one or more of mp4, webm, avi"),
        ({"formats": "mp4"}, "must be one or more of mp4, webm, avi"),
        ({"formats": ()}, "must be one or more of mp4, webm, avi"),
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        toy.write_toy_videos(tmp_path / "out", **{"num_videos": 1, **settings})
    assert not (tmp_path / "out").exists()


def test_wrong_positions_and_grids(tmp_path: Path) -> None:
    path = tmp_path / "positions.csv"
    path.write_text("path,y,x\n")
    with pytest.raises(ValueError, match=re.escape("(path,y,x) must be path,frame,y,x,radius")):
        toy.read_positions(path)
    path.write_text("path,frame,y,x,radius\na.mp4,0,1,1,5\na.mp4,2,1,1,5\n")
    with pytest.raises(ValueError, match=re.escape("frame (2) of a.mp4")):
        toy.read_positions(path)
    track = np.zeros((4, 3), dtype=np.float32)
    with pytest.raises(ValueError, match=re.escape("grid_time (3) must divide 4")):
        toy.object_mask(track, 32, grid_time=3, grid_height=4, grid_width=4)
    with pytest.raises(ValueError, match=re.escape("grid_width (5) must divide 32")):
        toy.object_mask(track, 32, grid_time=2, grid_height=4, grid_width=5)
    with pytest.raises(ValueError, match=re.escape("(3,) must be (T, 3)")):
        toy.object_mask(track[0], 32, grid_time=1, grid_height=4, grid_width=4)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is a file: must be a folder"):
        toy.write_toy_videos(tmp_path / "file", num_videos=1)
