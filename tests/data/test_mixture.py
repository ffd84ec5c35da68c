"""How often an epoch shows the videos of each list."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from videos import write_indexed_video

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import Manifest, read_manifest
from hpm_video.data.loading.loader import ClipBatch, StepSampler, clip_batches
from hpm_video.data.loading.mixture import Mixture, mixture_of
from hpm_video.runtime.distributed import World


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Two lists: of 5 videos, and of 3."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(8):
        write_indexed_video(folder / f"{k}.mp4", 60, first=60 * k)
    (folder / "a.csv").write_text("path\n" + "".join(f"{k}.mp4\n" for k in range(5)))
    (folder / "b.csv").write_text("path\n" + "".join(f"{k}.mp4\n" for k in range(5, 8)))
    return read_manifest([folder / "a.csv", folder / "b.csv"])


def _shown(mixture: Mixture, epoch: int, seed: int = 0) -> list[int]:
    """How often each video is shown in an epoch; no clip is shown twice."""
    keys = mixture.order(seed, epoch).tolist()
    assert len(set(keys)) == len(keys) == mixture.num_videos
    found = Counter(key % sum(mixture.sizes) for key in keys)
    # The first time, the second time, ... a video is shown: none is left out
    for video, count in found.items():
        assert {video + k * sum(mixture.sizes) for k in range(count)} <= set(keys)
    return [found[video] for video in range(sum(mixture.sizes))]


def test_whole_weights_are_how_often_each_video_is_shown() -> None:
    mixture = Mixture((5, 3), (1, 4))
    assert mixture.counts == (5, 12) and mixture.num_videos == 17
    for epoch in range(3):
        assert _shown(mixture, epoch) == [1] * 5 + [4] * 3
    assert np.array_equal(mixture.order(0, 1), mixture.order(0, 1))
    others = (mixture.order(0, 2), mixture.order(1, 1), Mixture((5, 3), (1, 4)).order(0, 0))
    assert not any(np.array_equal(mixture.order(0, 1), other) for other in others)
    # Lists are mixed, not shown one after the other
    order = mixture.order(0, 0) % 8
    assert len(set(np.flatnonzero(np.diff(order >= 5)))) > 2


@pytest.mark.parametrize(
    ("weight", "count"), [(0.3, 3), (0.5, 5), (1.7, 17), (2.25, 22), (0.01, 1)]
)
def test_parts_of_a_list_take_turns(weight: float, count: int) -> None:
    mixture = Mixture((4, 10), (1, weight))
    assert mixture.counts == (4, count)
    seen = np.zeros(14, dtype=int)
    for epoch in range(40):
        seen += _shown(mixture, epoch)
        assert seen[4:].max() - seen[4:].min() <= 1  # at any time
    assert seen[:4].tolist() == [40] * 4 and seen[4:].sum() == 40 * count


def test_weights_of_one_are_none() -> None:
    """And the order is that of before there were weights."""
    (seed,) = np.random.SeedSequence((7, 3)).generate_state(1, np.uint64)
    before = torch.randperm(8, generator=torch.Generator().manual_seed(int(seed)))
    for weights in ((), (1, 1), (1.0, 1.0)):
        assert np.array_equal(Mixture((5, 3), weights).order(7, 3), before)
    assert Mixture((5, 3)).lines(["a.csv", "b.csv"]) == []
    assert Mixture((5, 3), (1, 2.5)).lines(["a.csv", "b.csv"]) == [
        "13 videos per epoch by data.weights (a.csv: 5 x 1 = 5; b.csv: 3 x 2.5 = 8)"
    ]


def _sampler(mixture: Mixture, **changes: int) -> StepSampler:
    settings = {
        "batch_size": 6, "accumulation": 1, "world_size": 1, "rank": 0, "seed": 3, "start_step": 0,
        "num_steps": 9,
    }  # fmt: skip
    return StepSampler(mixture.num_videos, mixture=mixture, **{**settings, **changes})


@pytest.mark.parametrize(("batch_size", "accumulation", "world_size"), [(3, 1, 2), (1, 2, 3)])
@pytest.mark.parametrize("weights", [(1, 4), (0.5, 3.3)])
def test_all_ranks_share_one_order_which_resumes(
    weights: tuple[float, float], batch_size: int, accumulation: int, world_size: int
) -> None:
    mixture = Mixture((5, 3), weights)
    whole = list(_sampler(mixture))
    for start in (0, 1, 4):
        ranks = [
            list(
                _sampler(
                    mixture, batch_size=batch_size, accumulation=accumulation,
                    world_size=world_size, rank=rank, start_step=start,
                )
            )
            for rank in range(world_size)
        ]  # fmt: skip
        for step, keys in enumerate(whole[start:]):
            parts = [
                ranks[rank][step * accumulation + part]
                for part in range(accumulation)
                for rank in range(world_size)
            ]
            assert [key for part in parts for key in part] == keys


def _batches(lists: Manifest, start: int = 0, num_workers: int = 0, **data: int) -> list[ClipBatch]:
    settings = {"num_frames": 2, "frame_stride": 1, "crop_size": 16, "batch_size": 4, **data}
    return list(
        clip_batches(
            lists,
            DataConfig(
                manifest=["a.csv", "b.csv"], weights=[0.4, 4], num_workers=num_workers, **settings
            ),
            accumulation=1,
            world=World(rank=0, size=1, device=torch.device("cpu")),
            seed=5,
            start_step=start,
            num_steps=9,
        )
    )


@pytest.mark.parametrize("data", [{}, {"repeats": 2}, {"repeats": 4, "windows": 2}])
def test_a_video_that_is_shown_again_gives_another_clip(
    lists: Manifest, data: dict[str, int]
) -> None:
    batches = _batches(lists, **data)
    assert {len(batch.clips) for batch in batches} == {4 * data.get("repeats", 1)}
    clips: dict[int, list[bytes]] = {}
    for batch in batches[:3]:  # an epoch of 14
        for index, clip in zip(batch.indices.tolist(), batch.clips, strict=True):
            clips.setdefault(index, []).append(clip.numpy().tobytes())
    often = [found for index, found in clips.items() if index >= 5]
    assert max(map(len, often)) > 2 * data.get("repeats", 1)
    # Of a window all crops are the same here, as frames are of one colour
    showings = [len(found) / data.get("repeats", 1) for found in often]
    assert all(len(set(found)) > n / 2 for found, n in zip(often, showings, strict=True))
    resumed = _batches(lists, start=4, num_workers=2, **data)
    for one, other in zip(batches[4:], resumed, strict=True):
        assert torch.equal(one.clips, other.clips) and torch.equal(one.indices, other.indices)


def test_weights_that_cannot_be_meant() -> None:
    for weights, said in {
        (1.0,): r"data.weights \(1 numbers\) must have one number per list in data.manifest, .* 2",
        (1.0, 0.0): r"data.weights \(0\) must be above 0, and at most 1000",
        (1.0, -1.0): r"data.weights \(-1\)",
        (1.0, float("nan")): r"data.weights \(nan\)",
        (1.0, float("inf")): r"data.weights \(inf\)",
    }.items():
        with pytest.raises(ValueError, match=said):
            DataConfig(manifest=["a.csv", "b.csv"], weights=list(weights))


def test_sizes_of_a_manifest(lists: Manifest) -> None:
    assert mixture_of(lists, [2, 1]) == Mixture((5, 3), (2, 1))
    assert mixture_of(lists, []).num_videos == len(lists) == 8


def test_a_rare_list(tmp_path: Path) -> None:
    """At least one video of a list is shown: a weight is not 0."""
    assert Mixture((2, 1000), (0.001, 1)).counts == (1, 1000)
