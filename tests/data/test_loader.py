from collections import Counter
from pathlib import Path

import pytest
import torch
from videos import frame_numbers, write_indexed_video

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest, write_manifest
from hpm_video.data.loading.loader import (
    ClipBatch,
    StepSampler,
    ViewBatch,
    clip_batches,
    steps_per_epoch,
    to_clips,
    train_loader,
    view_loader,
)
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.data.video.frames import read_frames
from hpm_video.runtime.distributed import World


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """13 videos of 20 frames; 3 and 7 are not there."""
    folder = tmp_path_factory.mktemp("videos")
    lines = []
    for k in range(13):
        if k not in (3, 7):
            write_indexed_video(folder / f"v {k}.mp4", 20)
        lines.append(f"v {k}.mp4 {k % 4}\n")
    (folder / "list.txt").write_text("".join(lines))
    return read_manifest(folder / "list.txt")


def _clips(manifest: Manifest, repeats: int = 1, num_workers: int = 0) -> ClipDataset:
    data = DataConfig(
        num_frames=4, frame_stride=2, crop_size=16, flip=True, repeats=repeats,
        num_workers=num_workers, decode_timeout_s=None,
    )  # fmt: skip
    return ClipDataset(manifest, ClipReader(data), seed=1)


def _views(manifest: Manifest) -> ViewDataset:
    data = DataConfig(num_frames=4, frame_stride=2, sampling="uniform", crop_size=16)
    return ViewDataset(manifest, data, num_clips=2, num_crops=3)


def _sampler(num_videos: int = 13, **changes: int) -> StepSampler:
    settings = {
        "batch_size": 4,
        "accumulation": 1,
        "world_size": 1,
        "rank": 0,
        "seed": 0,
        "start_step": 0,
        "num_steps": 8,
    }
    return StepSampler(num_videos, **{**settings, **changes})


def _assert_same(ours: list[ClipBatch], theirs: list[ClipBatch]) -> None:
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.clips, b.clips)
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.indices, b.indices)
        assert a.bad == b.bad


def test_an_epoch_shows_no_video_twice() -> None:
    sampler = _sampler(num_videos=13, batch_size=4, num_steps=9)
    batches = list(sampler)
    assert sampler.steps_per_epoch == 3 and len(batches) == 9
    orders = []
    for epoch in range(3):
        keys = [key for batch in batches[3 * epoch : 3 * epoch + 3] for key in batch]
        assert {e for e, _ in keys} == {epoch}
        orders.append([index for _, index in keys])
        assert len(set(orders[-1])) == 12 and set(orders[-1]) <= set(range(13))
    assert orders[0] != orders[1] != orders[2]
    # another seed is another order, not the same one an epoch later
    assert [index for batch in list(_sampler(seed=1))[:3] for _, index in batch] not in orders
    assert list(_sampler(num_videos=13, batch_size=4, num_steps=9)) == batches
    # every video is dropped now and then, none for good
    seen = Counter(i for batch in _sampler(num_steps=300) for _, i in batch)
    assert len(seen) == 13 and min(seen.values()) > 80


@pytest.mark.parametrize(
    ("batch_size", "accumulation", "world_size"),
    [(6, 1, 2), (6, 2, 1), (3, 2, 2), (4, 3, 1), (1, 4, 3), (2, 1, 6)],
)
def test_a_step_is_the_same_however_it_is_shared_out(
    batch_size: int, accumulation: int, world_size: int
) -> None:
    whole = list(_sampler(50, batch_size=12))
    ranks = [
        list(
            _sampler(
                50,
                batch_size=batch_size,
                accumulation=accumulation,
                world_size=world_size,
                rank=rank,
            )
        )
        for rank in range(world_size)
    ]
    for step, keys in enumerate(whole):
        joined = []
        for micro_batch in range(accumulation):
            for rank in range(world_size):
                joined += ranks[rank][step * accumulation + micro_batch]
        assert joined == keys


@pytest.mark.parametrize("start", [0, 1, 3, 4, 7, 8])
def test_a_resumed_order_is_the_rest_of_the_whole(start: int) -> None:
    settings = {"batch_size": 2, "accumulation": 2, "world_size": 1}
    rest = _sampler(start_step=start, **settings)
    assert list(rest) == list(_sampler(**settings))[2 * start :]
    assert len(list(rest)) == 2 * (8 - start)


def test_more_in_a_batch_than_videos_is_a_mistake() -> None:
    assert steps_per_epoch(40, 40) == 1 and steps_per_epoch(41, 20) == 2
    with pytest.raises(ValueError, match=r"\(64\) must be at most the number of videos \(40\)"):
        steps_per_epoch(40, 64)
    with pytest.raises(ValueError, match=r"\(24\) must be at most the number of videos \(13\)"):
        _sampler(13, batch_size=4, accumulation=3, world_size=2)


def test_order_does_not_touch_the_global_generator(manifest: Manifest) -> None:
    state = torch.get_rng_state()
    loader = train_loader(_clips(manifest), _sampler(num_steps=1))
    assert len(list(loader)) == 1
    assert torch.equal(torch.get_rng_state(), state)


def test_batches_do_not_depend_on_workers_or_start(manifest: Manifest) -> None:
    def batches(num_workers: int, start_step: int) -> list[ClipBatch]:
        dataset = _clips(manifest, repeats=2, num_workers=num_workers)
        sampler = _sampler(batch_size=2, accumulation=2, start_step=start_step, num_steps=5)
        return list(train_loader(dataset, sampler))

    alone = batches(0, 0)
    assert len(alone) == 10
    _assert_same(batches(2, 0), alone)
    _assert_same(batches(2, 2), alone[4:])  # in the middle of the first epoch of 3 steps
    found = [entry for batch in alone for entry in batch.bad]
    assert {index for index, _ in found} == {3, 7}
    assert {reason for _, reason in found} == {"no such file"}


def test_a_batch_keeps_the_repeats_of_a_video_together(manifest: Manifest) -> None:
    sampler = _sampler(batch_size=6, num_steps=1)
    (batch,) = train_loader(_clips(manifest, repeats=2), sampler)
    assert batch.clips.shape == (12, 4, 16, 16, 3) and batch.clips.dtype == torch.uint8
    assert batch.indices.dtype == batch.labels.dtype == torch.int64
    pairs = batch.indices.view(6, 2)
    assert torch.equal(pairs[:, 0], pairs[:, 1])
    assert torch.equal(batch.labels, batch.indices % 4)
    for first, second in batch.clips.view(6, 2, 4, 16, 16, 3):
        assert frame_numbers(first) == frame_numbers(second)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 20])
def test_shares_cover_every_video_once(manifest: Manifest, num_ranks: int) -> None:
    batches: list[ViewBatch] = [
        batch
        for rank in range(num_ranks)
        for batch in view_loader(
            _views(manifest), batch_size=2, num_workers=0, rank=rank, world_size=num_ranks
        )
    ]
    indices = torch.cat([batch.indices for batch in batches])
    assert sorted(indices.tolist()) == list(range(13))
    for batch in batches:
        assert batch.views.shape[1:] == (6, 4, 16, 16, 3)
        assert torch.equal(batch.labels, batch.indices % 4)
        for index, views, error in zip(
            batch.indices.tolist(), batch.views, batch.errors, strict=True
        ):
            assert error == ("no such file" if index in (3, 7) else None)
            assert bool(views.any()) == (error is None)


def test_views_do_not_depend_on_workers(manifest: Manifest) -> None:
    dataset = _views(manifest)
    alone, helped = (
        list(view_loader(dataset, batch_size=5, num_workers=n, rank=0, world_size=1))
        for n in (0, 2)
    )
    for a, b in zip(alone, helped, strict=True):
        assert torch.equal(a.views, b.views) and torch.equal(a.indices, b.indices)
        assert a.errors == b.errors


def test_to_clips_moves_colours_first_and_scales() -> None:
    frames = torch.randint(0, 256, (2, 3, 4, 5, 3), dtype=torch.uint8)
    frames[0, 0, 0, 0] = torch.tensor([0, 128, 255])
    clips = to_clips(frames, "cpu")
    assert clips.shape == (2, 3, 3, 4, 5) and clips.dtype == torch.float32
    assert clips.max() <= 1
    assert clips[0, :, 0, 0, 0].tolist() == pytest.approx([0, 128 / 255, 1])
    assert clips[1, 2, 2, 3, 4].item() == pytest.approx(frames[1, 2, 3, 4, 2].item() / 255)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_who_reads_in_place_of_whom_is_passed_on(tmp_path: Path, num_workers: int) -> None:
    for name in ("a.mp4", "b.mkv"):
        write_indexed_video(tmp_path / name, 12)
    (tmp_path / "list.txt").write_text("a.mp4 0\nb.mkv 0\n")
    manifest = read_manifest(tmp_path / "list.txt")
    data = DataConfig(
        num_frames=2, frame_stride=1, crop_size=16, batch_size=2, num_workers=num_workers
    )
    (batch,) = clip_batches(
        manifest,
        data,
        accumulation=1,
        world=World(0, 1, torch.device("cpu")),
        seed=0,
        start_step=0,
        num_steps=1,
    )
    unlisted = "no entry in the index of the list (hpm-video data check writes one)"
    assert batch.notes == [(0, unlisted), (1, unlisted)]


def test_the_frame_count_of_the_list_is_never_exceeded(tmp_path: Path) -> None:
    """A file may claim, and pretend to have, more frames than can be decoded."""
    write_indexed_video(tmp_path / "a.mp4", 40)
    rows = [{"path": "a.mp4", "num_frames": n} for n in (1, 3, 20, 40, 60, None)]
    write_manifest(tmp_path / "list.csv", rows)
    manifest = read_manifest(tmp_path / "list.csv")
    highest = [0] * 6
    sampler = _sampler(6, batch_size=6, num_steps=60)
    for batch in train_loader(_clips(manifest, num_workers=2), sampler):
        for index, clip in zip(batch.indices.tolist(), batch.clips, strict=True):
            highest[index] = max(highest[index], *frame_numbers(clip))
    for number, limit in zip(highest, (1, 3, 20, 40, 40, 40), strict=True):
        assert limit - 5 <= number < limit  # of some 20 windows, one comes close to the end
    (batch,) = view_loader(_views(manifest), batch_size=6, num_workers=2, rank=0, world_size=1)
    last = [max(max(frame_numbers(view)) for view in views) for views in batch.views]
    assert last[:2] == [0, 2] and last[2] < 20 < last[3] == last[4] == last[5]


def _damage(folder: Path, good: bytes) -> list[str]:
    """Files that are no videos, or no longer, and names that are hard to write."""
    half = good[: len(good) // 3]
    (folder / "cut.mp4").write_bytes(half)
    (folder / 'text, "quoted".mp4').write_text("no video\n")
    (folder / "empty.mp4").touch()
    (folder / "folder.mp4").mkdir()
    (folder / "line\nbreak.mp4").write_bytes(good[50:])
    return ["cut.mp4", 'text, "quoted".mp4', "empty.mp4", "folder.mp4", "line\nbreak.mp4"]


@pytest.mark.parametrize("num_workers", [0, 3])
def test_no_good_clip_is_lost_among_bad_files(tmp_path: Path, num_workers: int) -> None:
    """A fifth of a list: every good video is shown in every epoch, and as if it were alone."""
    names = [f"good {k}.mp4" for k in range(20)]
    for name in names:
        write_indexed_video(tmp_path / name, 12)
    bad = _damage(tmp_path, (tmp_path / names[0]).read_bytes())
    names[4::5], names = bad[:4], [*names, bad[4]]
    is_bad = [name in bad for name in names]
    write_manifest(tmp_path / "list.csv", [{"path": name} for name in names])
    manifest = read_manifest(tmp_path / "list.csv")
    dataset = _clips(manifest, num_workers=num_workers)
    sampler = _sampler(len(names), batch_size=3, num_steps=14)
    loader = train_loader(dataset, sampler)
    found: set[int] = set()
    for keys, batch in zip(sampler, loader, strict=True):
        for (epoch, index), clip, shown in zip(
            keys, batch.clips, batch.indices.tolist(), strict=True
        ):
            assert not is_bad[shown]
            if not is_bad[index]:
                assert shown == index and torch.equal(clip, dataset[epoch, index].clips[0])
        found |= {index for index, _ in batch.bad}
    assert found == {index for index, bad in enumerate(is_bad) if bad}
    assert read_frames(manifest.path(0), [11]).any()
