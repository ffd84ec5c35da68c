"""A hard ratio that follows the student's rank accuracy: against a slow loop."""

import math

import pytest
import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method.competence import Competence, competence_of
from hpm_video.method.losses import rank_accuracy
from hpm_video.method.masking import make_mask
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
WAITS = MaskingConfig(ramp="competence")


def _scalar(value: float) -> Tensor:
    return torch.tensor(value)


def test_it_is_the_running_mean_of_a_slow_loop() -> None:
    settings = {"competence_low": 0.55, "competence_high": 0.65}
    masking = MaskingConfig(hard_ratio_start=0.1, hard_ratio_end=0.6, ramp="competence", **settings)
    competence, mean, ratios = Competence(masking, ALONE), 0.5, []
    generator = torch.Generator().manual_seed(0)
    for step in range(120):
        accuracy = 0.5 + 0.4 * torch.rand((), generator=generator)
        skipped = step % 7 == 3
        share = min(max((mean - 0.55) / (0.65 - 0.55), 0), 1)
        ratios.append(0.1 + 0.5 * share)
        assert competence.hard_ratio.item() == pytest.approx(ratios[-1], abs=1e-12)
        competence.follow(accuracy, skip=_scalar(float(skipped)))
        if not skipped:
            mean = 0.98 * mean + 0.02 * accuracy.item()
        assert competence.value.item() == pytest.approx(mean, abs=1e-12)
    assert ratios[0] == 0.1 and ratios[-1] == 0.6  # both ends are reached
    assert 0.2 < sorted(ratios)[40] < 0.6


def test_a_skipped_step_may_be_anything() -> None:
    competence = Competence(WAITS, ALONE)
    before = competence.value
    competence.follow(_scalar(math.nan), skip=_scalar(1.0))
    assert competence.value.equal(before)


def test_a_step_with_nothing_to_rank_teaches_nothing() -> None:
    competence, losses = Competence(WAITS, ALONE), torch.ones(2, 1)  # one unit is no pair
    before = competence.value
    competence.follow(rank_accuracy(losses, losses), skip=_scalar(0.0))
    assert competence.value.equal(before)


def test_it_goes_on_from_a_checkpoint_bit_for_bit() -> None:
    whole, part = Competence(WAITS, ALONE), Competence(WAITS, ALONE)
    for accuracy in (0.7, 0.61, 0.83):
        whole.follow(_scalar(accuracy), skip=_scalar(0.0))
        part.follow(_scalar(accuracy), skip=_scalar(0.0))
        part = Competence(WAITS, ALONE, part.value.clone())
    assert part.value.equal(whole.value) and whole.value > 0.5


def test_only_runs_that_mine_wait_for_it() -> None:
    assert competence_of(WAITS, ALONE) is not None
    assert competence_of(MaskingConfig(), ALONE) is None
    assert competence_of(MaskingConfig(ramp="competence", hard_ratio_end=0), ALONE) is None


# Of the last one 0.29 is 28.999... of 100 masked units
@pytest.mark.parametrize(
    ("grid", "tube_length", "mask_ratio"),
    [
        *((TokenGrid(2, 5, 3), length, ratio) for length in (1, 2) for ratio in (0.9, 0.61)),
        (TokenGrid(2, 10, 10), 1, 0.5),
    ],
)
def test_a_hard_ratio_on_the_device_makes_the_same_masks(
    grid: TokenGrid, tube_length: int, mask_ratio: float
) -> None:
    masking = MaskingConfig(mask_ratio=mask_ratio, tube_length=tube_length)
    shape, generator = (3, grid.num_tokens), torch.Generator().manual_seed(1)
    scores = torch.randint(0, 9, shape, generator=generator).float()
    counts = set()
    for ratio in (*(k / 40 for k in range(41)), 0.29, 1 / 3):
        made = [
            make_mask(
                scores,
                grid,
                masking,
                hard_ratio=one,
                batch_size=3,
                generator=torch.Generator().manual_seed(2),
            )
            for one in (ratio, torch.tensor(ratio, dtype=torch.float64))
        ]
        assert made[0].mask.equal(made[1].mask) and made[0].hard.equal(made[1].hard)
        counts.add(int(made[0].hard.sum()))
    assert len(counts) > 8
