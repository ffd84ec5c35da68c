"""The index of a list: what is put in comes out, and what is no index does no harm."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from videos import frame_numbers, write_indexed_video

from hpm_video.config import DataConfig
from hpm_video.data.lists import frame_index
from hpm_video.data.lists.frame_index import (
    FrameIndex,
    find_frame_index,
    index_beside,
    new_frame_index,
    write_frame_index,
)
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.check import check_manifest
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import Video, open_video
from hpm_video.data.video.readers.tables import decoded_table


@pytest.mark.parametrize("number", [0, 1, 2, 1000])
def test_what_is_put_in_comes_out(tmp_path: Path, number: int) -> None:
    rng = np.random.default_rng(0)
    names = ["a b.mp4", "./a b.mp4", "line\nbreak.mp4", "vidéo 視.mp4", "caf\udce9.mp4", ""]
    names += [f"{k}.mp4" for k in range(1000)]
    tables = {name: rng.bytes(int(rng.integers(0, 700))) for name in names[:number]}
    path = tmp_path / "a.csv.index"
    write_frame_index(path, [*tables.items(), *((name, b"a second one") for name in tables)])
    index = FrameIndex(path)
    assert len(index) == number
    assert {name: index.get(name) for name in names} == {name: tables.get(name) for name in names}


def test_names_of_the_same_hash_are_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All 64 bits the same: one of the two has a table, and the other one never gets it."""
    monkeypatch.setattr(frame_index, "_hashes", lambda name: (7, len(name)))
    write_frame_index(tmp_path / "index", [("a", b"of a"), ("bb", b"of b")])
    index = FrameIndex(tmp_path / "index")
    assert (index.get("a"), index.get("bb"), index.get("ccc")) == (b"of a", None, None)


def test_it_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.csv.index"
    write_frame_index(path, [("a", b"before")])
    with pytest.raises(KeyError), new_frame_index(path) as index:
        index.add("a", b"after")
        raise KeyError
    assert FrameIndex(path).get("a") == b"before"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "is damaged"),
        (lambda data: data + b"1", "is damaged"),
        (lambda data: data[:20], "is not the index of a list"),
        (lambda data: b"", "is not the index of a list"),
        (lambda data: b"path,label\n" + data, "is not the index of a list"),
        (lambda data: data[:16] + b"\x07" + data[17:], "has version 7, not 1"),
        (lambda data: data[:24] + b"\xff" * 8 + data[32:], "is damaged"),
    ],
)
def test_what_is_no_index_is_not_used(tmp_path: Path, change: object, words: str) -> None:
    path = tmp_path / "a.csv.index"
    assert find_frame_index(tmp_path / "a.csv") is None
    write_frame_index(path, [("a", b"table" * 9), ("b", b"other")])
    path.write_bytes(change(path.read_bytes()))  # type: ignore[operator]
    assert find_frame_index(tmp_path / "a.csv") is None
    (tmp_path / "a.csv").write_text("path,label\na.mp4,0\n")
    (said,) = read_manifest(tmp_path / "a.csv").notes
    assert words in said and str(path) in said and "hpm-video data check" in said
    assert "\n" not in said


def _checked(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        write_indexed_video(folder / name, 20 + number)
    (folder / "m.csv").write_text("path,label\n" + "".join(f"{name},0\n" for name in names))
    check_manifest(folder / "m.csv")
    return folder / "m.csv"


def test_requests_have_the_tables_of_their_lists(tmp_path: Path) -> None:
    """Of several lists, one of them without an index; and moved with their videos."""
    one = _checked(tmp_path / "one", "a.mp4", "b/c.mp4")
    two = _checked(tmp_path / "two", "a.mp4")
    three = tmp_path / "two" / "no_index.csv"
    shutil.copy(two, three)
    moved = shutil.move(tmp_path / "one", tmp_path / "moved")
    manifest = read_manifest([Path(moved) / one.name, three, two])
    expected = [
        decoded_table(manifest.path(0)).to_bytes(),
        decoded_table(manifest.path(1)).to_bytes(),
        None,
        decoded_table(manifest.path(3)).to_bytes(),
    ]
    assert [manifest.table(place) for place in range(4)] == expected
    data = DataConfig(num_frames=4, crop_size=16)
    clips = ClipDataset(manifest, ClipReader(data), seed=0)
    views = ViewDataset(manifest, data, num_clips=1, num_crops=1)
    for place, table in enumerate(expected):
        first, second = list(clips.requests((0, place)))[:2]
        assert (first.index, first.table) == (place, table)
        assert second.table == expected[second.index]
        assert next(views.requests(place)).table == table
    video = next(clips.requests((0, 3))).open(data)
    assert isinstance(video, Video) and video.table.is_decoded


def test_an_index_that_is_older_than_its_list_or_a_video(tmp_path: Path) -> None:
    listed = _checked(tmp_path, "a.mp4", "b.mp4")
    listed.write_text("path\nb.mp4\nnew.mp4\na.mp4\n")
    write_indexed_video(tmp_path / "new.mp4", 7)
    write_indexed_video(tmp_path / "b.mp4", 9)
    manifest = read_manifest(listed)
    assert manifest.table(1) is None
    for place, (number, is_stale) in enumerate([(9, True), (7, False), (20, False)]):
        video = open_video(manifest.path(place), "pyav", table=manifest.table(place))
        assert frame_numbers(video.read(range(number))) == list(range(number))
        assert ("outdated" in (video.note or "")) == is_stale


@pytest.mark.parametrize(
    ("step", "is_same"), [(1, True), (100, True), (10**6, True), (10**9, True), (60 * 10**9, False)]
)
def test_a_copy_that_keeps_its_time_in_coarser_steps(
    tmp_path: Path, step: int, is_same: bool
) -> None:
    """As tar and scp -p make it, and file systems other than that of the check."""
    write_indexed_video(tmp_path / "a.mp4", 9)
    os.utime(tmp_path / "a.mp4", ns=(0, 1_700_000_123_123_456_789))
    table = decoded_table(str(tmp_path / "a.mp4"))
    os.utime(tmp_path / "a.mp4", ns=(0, 1_700_000_123_123_456_789 // step * step))
    assert table.fits(str(tmp_path / "a.mp4")) == is_same
    video = open_video(tmp_path / "a.mp4", "pyav", table=table.to_bytes())
    assert ("outdated" not in (video.note or "")) == is_same


def test_a_table_with_a_flipped_bit_is_not_used(tmp_path: Path) -> None:
    listed = _checked(tmp_path, "a.mp4")
    path = index_beside(listed)
    data, size = path.read_bytes(), len(decoded_table(str(tmp_path / "a.mp4")).to_bytes())
    for place in range(40, 40 + size, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        table = read_manifest(listed).table(0)
        video = open_video(tmp_path / "a.mp4", "pyav", table=table)
        assert frame_numbers(video.read(range(20))) == list(range(20))


def test_forked_processes_share_it(tmp_path: Path) -> None:
    listed = _checked(tmp_path, "a.mp4")
    manifest = read_manifest(listed)
    expected = manifest.table(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads
        child = os.fork()
    if child == 0:
        os._exit(0 if manifest.table(0) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
