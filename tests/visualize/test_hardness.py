"""How hard clips and places are: ranks, biases, and asking about a whole list."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import rankdata, spearmanr

from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.clip import read_clip
from hpm_video.evaluate import mining_quality as mining
from hpm_video.evaluate.pretrained import load_pretrained
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import World, seed_of
from hpm_video.visualize.dataset_losses import Asking, measure_list
from hpm_video.visualize.hardness import (
    Hardness,
    Losses,
    central_share,
    central_tubes,
    centre_bias,
    centre_distance,
    position_alone,
    rank_shares,
    tube_spearman,
)

WORLD = World(0, 1, torch.device("cpu"))


def test_ranks_are_shares_of_the_others_and_equals_share_theirs() -> None:
    values = np.random.default_rng(0).integers(0, 5, (6, 11)).astype(np.float32)
    expected = [(rankdata(row) - 1) / 10 for row in values]
    assert np.allclose(rank_shares(values), expected)
    assert (rank_shares(np.full((2, 7), 3.0)) == 0.5).all()
    assert rank_shares(np.array([[2.0, 9.0, 4.0]])).tolist() == [[0.0, 1.0, 0.5]]
    assert rank_shares(np.array([[2.0]])).tolist() == [[0.0]]


def test_centre_bias_is_1_where_the_middle_is_hardest() -> None:
    grid = TokenGrid(2, 5, 8)
    near = -centre_distance(grid)
    random = np.random.default_rng(0).random((4, 5, 8))
    found = centre_bias(np.stack([np.exp(near), -near, np.ones((5, 8)), *random]))
    assert found[:3] == pytest.approx([1, -1, 0])
    for bias, tubes in zip(found[3:], random, strict=True):
        assert bias == pytest.approx(spearmanr(tubes.ravel(), near.ravel()).statistic)
    # Half sides are 1, whatever the shape of the frame
    assert centre_distance(TokenGrid(1, 2, 4))[0].tolist() == pytest.approx(
        [np.hypot(0.5, 0.75), np.hypot(0.5, 0.25), np.hypot(0.5, 0.25), np.hypot(0.5, 0.75)]
    )


def test_central_share_counts_hard_tubes_in_the_middle() -> None:
    grid = TokenGrid(1, 14, 14)
    inside = central_tubes(grid)
    assert inside.sum() == 100 and inside[2:12, 2:12].all()
    hard = np.zeros((2, 14, 14))
    hard[0, 2:9, 2:9] = 1  # 49 tubes, a quarter, all of them central
    hard[1, :7, :7] = 1  # 25 of its 49 tubes are
    assert central_share(hard, grid).tolist() == [1.0, 25 / 49]


def losses(tubes: npt.NDArray[np.float64]) -> Losses:
    return Losses(tubes.astype(np.float32), np.ones((len(tubes), 2), dtype=np.float32))


def test_place_alone_is_the_order_of_all_other_clips() -> None:
    tubes = np.random.default_rng(0).random((5, 3, 4))
    found = position_alone(losses(tubes))
    assert found is not None
    ranks = np.stack([rankdata(clip.ravel()) for clip in tubes])
    for clip in range(5):
        others = np.delete(ranks, clip, axis=0).mean(axis=0)
        expected = spearmanr(ranks[clip], others).statistic
        assert found[clip] == pytest.approx(expected, abs=1e-6)
    same = position_alone(losses(np.repeat(tubes[:1], 3, axis=0)))
    assert same is not None and same == pytest.approx(np.ones(3))
    assert position_alone(losses(tubes[:1])) is None
    other = np.random.default_rng(1).random((5, 3, 4))
    found = tube_spearman(losses(tubes), losses(other))
    for clip in range(5):
        expected = spearmanr(tubes[clip].ravel(), other[clip].ravel()).statistic
        assert found[clip] == pytest.approx(expected, abs=1e-6)


def asking(**settings: int) -> Asking:
    usual = {"num_masks": 3, "num_views": 2, "num_shown": 2, "batch_size": 1, "seed": 5}
    return Asking(**{**usual, **settings}, num_workers=0, decode_timeout_s=None)


def measured(run: Path, lists: Path, **settings: int) -> Hardness:
    found = measure_list(load_pretrained(run), read_manifest(lists), asking(**settings), WORLD)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def spoilt(toy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten toy videos, the third of which is none."""
    folder = tmp_path_factory.mktemp("spoilt") / "toy"
    shutil.copytree(toy.parent, folder)
    lines = (folder / toy.name).read_text().splitlines(keepends=True)[:11]
    (folder / toy.name).write_text("".join(lines))
    (folder / lines[3].split(",")[0]).write_bytes(b"no video")
    return folder / toy.name


def test_a_list_is_asked_about_clip_by_clip(pretrained: Path, spoilt: Path) -> None:
    found = measured(pretrained, spoilt)
    assert found.indices.tolist() == [0, 1, *range(3, 10)]
    assert found.bad == ((2, "is not a video, or its header is damaged"),)
    assert found.predicted is not None and found.measured is not None
    asked = load_pretrained(pretrained)
    manifest = read_manifest(spoilt)
    for row, index in enumerate(found.indices.tolist()):
        clip, _ = read_clip(manifest.path(index), asked.config)
        seed = seed_of(5, index)
        report = mining.measure_mining(asked, clip, num_masks=3, num_views=2, seed=seed)
        assert found.spearman is not None
        assert found.spearman[row] == pytest.approx(report.spearman, abs=1e-5)
        for losses, expected in (
            (found.predicted, report.predicted),
            (found.measured, report.measured),
        ):
            cells = expected.reshape(2, 4, 4).numpy()
            assert np.allclose(losses.tubes[row], cells.mean(axis=0), atol=1e-5)
            assert np.allclose(losses.times[row], cells.mean(axis=(1, 2)), atol=1e-5)


def test_the_hardest_and_easiest_are_shown(pretrained: Path, spoilt: Path) -> None:
    found = measured(pretrained, spoilt, batch_size=4)
    assert found.measured is not None
    order = found.hardest_first()
    hardness = found.measured.clips[order]
    assert (hardness[:-1] >= hardness[1:]).all() and hardness[0] > hardness[-1]
    ends = {int(found.indices[row]) for row in (*order[:2], *order[-2:])}
    assert set(found.shown) == ends
    config = load_pretrained(pretrained).config
    for index, shown in found.shown.items():
        clip, _ = read_clip(found.manifest.path(index), config)
        frames = (clip[0].permute(1, 2, 3, 0) * 255).round().numpy()[[0, 2]]  # of both tubelets
        assert np.array_equal(shown.frames, frames)
        assert shown.ranks["measured"].shape == (2, 4, 4)
        # Of all tokens of the clip, which are all shown here
        assert sorted(shown.ranks["measured"].ravel()) == pytest.approx(np.arange(32) / 31)
    assert not measured(pretrained, spoilt, num_shown=0).shown


def test_without_masks_or_predictor_one_loss_remains(
    pretrained: Path, spoilt: Path, pretrain_arguments: object, tmp_path: Path
) -> None:
    found = measured(pretrained, spoilt, num_masks=0)
    assert found.measured is None and found.spearman is None
    assert found.judged is found.predicted
    asked = load_pretrained(pretrained)
    plain = replace(asked, scorer=None)
    with pytest.raises(ValueError, match=r"^checkpoint must have a loss predictor"):
        measure_list(plain, read_manifest(spoilt), asking(num_masks=0), WORLD)


def test_losses_that_are_not_finite_are_no_result(pretrained: Path, spoilt: Path) -> None:
    asked = load_pretrained(pretrained)
    next(asked.student.parameters()).data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"^the model's losses for .* are not finite$"):
        measure_list(asked, read_manifest(spoilt), asking(num_masks=1, batch_size=2), WORLD)
