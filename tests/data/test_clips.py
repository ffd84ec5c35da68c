from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from videos import frame_numbers, write_indexed_video

from hpm_video.config import DataConfig
from hpm_video.config.values import Sampling
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video import crops as transforms
from hpm_video.data.video.crops import Box
from hpm_video.data.video.frame_indices import dense_view_indices, random_uniform_indices
from hpm_video.data.video.frames import Video, read_frames

LENGTHS = (1, 5, 40, 60)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("videos")
    for length in LENGTHS:
        write_indexed_video(folder / "my clips" / f"{length}.mp4", length)
    rows = [{"path": f"my clips/{n}.mp4", "label": k} for k, n in enumerate(LENGTHS)]
    write_manifest(folder / "list.csv", rows)
    return read_manifest(folder / "list.csv")


@pytest.fixture(scope="module")
def mostly_broken(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Videos 0, 2, 4, ... 18 are missing, the others are readable."""
    folder = tmp_path_factory.mktemp("broken")
    write_indexed_video(folder / "good.mp4", 12)
    lines = [f"{'good' if k % 2 else f'missing {k}'}.mp4 {k}\n" for k in range(20)]
    (folder / "list.txt").write_text("".join(lines))
    return read_manifest(folder / "list.txt")


def _clips(manifest: Manifest, seed: int = 5, **changes: object) -> ClipDataset:
    data = DataConfig(num_frames=4, frame_stride=3, crop_size=24, **changes)  # type: ignore[arg-type]
    return ClipDataset(manifest, ClipReader(data), seed=seed)


def _views(
    manifest: Manifest, sampling: Sampling = "dense", num_clips: int = 3, num_crops: int = 3
) -> ViewDataset:
    data = DataConfig(num_frames=4, frame_stride=3, crop_size=24, sampling=sampling)
    return ViewDataset(manifest, data, num_clips=num_clips, num_crops=num_crops)


def test_a_dense_clip_is_a_window_of_its_video(manifest: Manifest) -> None:
    dataset = _clips(manifest)
    starts = set()
    for epoch in range(30):
        sample = dataset[epoch, 2]
        assert sample.clips.shape == (1, 4, 24, 24, 3) and sample.clips.dtype == torch.uint8
        assert (sample.index, sample.label, sample.bad) == (2, 2, ())
        numbers = frame_numbers(sample.clips[0])
        assert numbers == [numbers[0] + 3 * k for k in range(4)] and numbers[3] < 40
        starts.add(numbers[0])
    assert len(starts) > 12
    assert frame_numbers(dataset[0, 0].clips[0]) == [0, 0, 0, 0]
    assert frame_numbers(dataset[0, 1].clips[0]) == [0, 3, 4, 4]


def test_a_uniform_clip_spans_its_video(manifest: Manifest) -> None:
    dataset = _clips(manifest, sampling="uniform")
    for epoch in range(10):
        segments = [number // 15 for number in frame_numbers(dataset[epoch, 3].clips[0])]
        assert segments == [0, 1, 2, 3]
    assert frame_numbers(dataset[0, 0].clips[0]) == [0, 0, 0, 0]


def test_an_item_depends_on_its_key_and_the_seed_only(manifest: Manifest) -> None:
    one = _clips(manifest, repeats=2, crop="random_resized", flip=True)
    first = one[3, 2]
    _ = one[0, 3], torch.manual_seed(99), np.random.seed(99)
    again = _clips(manifest, repeats=2, crop="random_resized", flip=True)[3, 2]
    assert torch.equal(first.clips, again.clips)
    others = [one[4, 2], _clips(manifest, repeats=2, seed=6)[3, 2]]
    assert all(frame_numbers(o.clips[0]) != frame_numbers(first.clips[0]) for o in others)


def test_crops_of_several_windows_in_turns(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[int]] = []
    read = Video.read

    def note(video: Video, indices: Sequence[int]) -> npt.NDArray[np.uint8]:
        asked.append([int(index) for index in indices])
        return read(video, indices)

    monkeypatch.setattr(Video, "read", note)
    apart = 0
    for epoch in range(20):
        sample = _clips(manifest, repeats=6, windows=3)[epoch, 2]
        numbers = [frame_numbers(clip) for clip in sample.clips]
        assert all(one == [one[0] + 3 * k for k in range(4)] for one in numbers)
        assert numbers[3:] == numbers[:3]
        assert asked.pop() == sorted({number for one in numbers for number in one})
        apart += len({one[0] for one in numbers})
    assert not asked  # each video was decoded once
    assert apart > 50


def test_repeats_are_crops_of_one_decoded_clip(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Frames that tell positions apart, so that crops and flips can be told apart
    picture = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, None, :, None], (4, 48, 64, 3))
    reads: list[str] = []

    def read(self: Video, indices: np.ndarray) -> np.ndarray:
        reads.append(self.path)
        return picture.copy()

    monkeypatch.setattr(Video, "read", read)
    monkeypatch.setattr(transforms, "multi_scale_crop", lambda h, w, rng: Box(0, 8, 24, 24))
    sample = _clips(manifest, repeats=40, flip=True)[0, 3]
    assert len(reads) == 1 and sample.clips.shape == (40, 4, 24, 24, 3)
    rows = {tuple(crop[0, 0, :, 0].tolist()) for crop in sample.clips}
    assert rows == {tuple(range(8, 32)), tuple(range(31, 7, -1))}
    flipped = sum(int(crop[0, 0, 0, 0]) == 31 for crop in sample.clips)
    assert 8 < flipped < 32
    unflipped = _clips(manifest, repeats=40)[0, 3].clips
    assert (unflipped[:, 0, 0, 0, 0] == 8).all()


def test_an_unreadable_video_is_replaced_and_named(mostly_broken: Manifest) -> None:
    dataset = _clips(mostly_broken)
    replacements = set()
    for epoch in range(20):
        sample = dataset[epoch, 4]
        assert sample.index % 2 == 1 and sample.label == sample.index
        assert sample.bad[0] == (4, "no such file")
        assert all(index % 2 == 0 for index, _ in sample.bad)
        again = dataset[epoch, 4]
        assert (again.index, again.bad) == (sample.index, sample.bad)
        assert torch.equal(again.clips, sample.clips)
        replacements.add(sample.index)
    assert len(replacements) > 3
    assert dataset[0, 3].bad == ()


def test_a_data_set_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mp4 0\n")
    dataset = _clips(read_manifest(tmp_path / "list.txt"))
    sample = dataset[0, 0]
    assert sample.clips.shape == (0, 4, 24, 24, 3) and sample.clips.dtype == torch.uint8
    assert len(sample.bad) == 20 and set(sample.bad) == {(k, "no such file") for k in (0, 1)}


def test_views_are_ordered_clip_by_clip(
    manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = _views(manifest)[2]
    assert sample.views.shape == (9, 4, 24, 24, 3) and sample.views.dtype == torch.uint8
    assert (sample.label, sample.index, sample.error) == (2, 2, None)
    indices = dense_view_indices(40, clip_frames=4, stride=3, num_clips=3)
    assert [frame_numbers(view) for view in sample.views] == indices.repeat(3, axis=0).tolist()
    uniform = _views(manifest, sampling="uniform", num_clips=2, num_crops=1)[3]
    assert [frame_numbers(view) for view in uniform.views] == [[7, 22, 37, 52], [0, 15, 30, 45]]

    # and within a clip from left to right
    def columns(self: Video, indices: np.ndarray) -> np.ndarray:
        row = np.arange(32, dtype=np.uint8)[None, None, :, None]
        return np.broadcast_to(row, (len(indices), 24, 32, 3)).copy()

    monkeypatch.setattr(Video, "read", columns)
    assert _views(manifest)[2].views[:, 0, 0, 0, 0].tolist() == [0, 4, 8] * 3


def test_views_of_short_videos(manifest: Manifest) -> None:
    for index, length in enumerate(LENGTHS[:2]):
        views = _views(manifest)[index].views
        assert [frame_numbers(v) for v in views] == [[min(i, length - 1) for i in (0, 3, 6, 9)]] * 9


def test_views_decode_a_video_once(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []
    read = Video.read

    def spy(self: Video, indices: np.ndarray) -> np.ndarray:
        asked.append(indices.tolist())
        return read(self, indices)

    monkeypatch.setattr(Video, "read", spy)
    _ = _views(manifest, num_clips=5)[2]
    assert len(asked) == 1 and len(asked[0]) == len(set(asked[0]))


def test_unreadable_views_are_kept_as_zeros(mostly_broken: Manifest) -> None:
    sample = _views(mostly_broken, num_clips=1, num_crops=2)[4]
    assert sample.views.shape == (2, 4, 24, 24, 3) and not sample.views.any()
    assert (sample.label, sample.index, sample.error) == (4, 4, "no such file")


def test_whole_pipeline_against_its_parts(manifest: Manifest) -> None:
    """One item, recomputed from the generator it promises."""
    sample = _clips(manifest, sampling="uniform", seed=8)[7, 3]
    rng = np.random.default_rng((8, 7, 3))
    indices = random_uniform_indices(60, clip_frames=4, rng=rng)
    frames = read_frames(manifest.path(3), indices)
    assert frame_numbers(sample.clips[0]) == frame_numbers(frames) == indices.tolist()
