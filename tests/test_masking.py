import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hpm_video.masking import (
    hard_mask,
    hard_ratio_at,
    num_masked_units,
    num_units,
    num_visible_tokens,
    random_mask,
    unit_scores,
)
from hpm_video.tokens import TokenGrid

# grid, tube length
LAYOUTS = [
    (TokenGrid(4, 3, 5), 4),
    (TokenGrid(4, 3, 5), 2),
    (TokenGrid(4, 3, 5), 1),
    (TokenGrid(6, 2, 7), 3),
    (TokenGrid(1, 5, 3), 1),
    (TokenGrid(2, 5, 20), 2),  # 100 units: 0.29 * 100 is 28.999... in floating point
    (TokenGrid(8, 14, 14), 8),
]
RATIOS = ["0.9", "0.75", "0.61", "0.37", "0.29"]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scores(batch: int, grid: TokenGrid, seed: int = 7) -> Tensor:
    return torch.randn(batch, grid.num_tokens, generator=_generator(seed))


def _unit_of(token: int, grid: TokenGrid, tube_length: int) -> int:
    """The mining unit of a token, from its place in raster order (time, row, column)."""
    time, place = divmod(token, grid.height * grid.width)
    return time // tube_length * grid.height * grid.width + place


def _units(mask: Tensor, grid: TokenGrid, tube_length: int) -> list[set[int]]:
    """The masked units of each row; fails where a unit is masked in part."""
    result = []
    for row in mask.tolist():
        masked, visible = set(), set()
        for token, is_masked in enumerate(row):
            (masked if is_masked else visible).add(_unit_of(token, grid, tube_length))
        assert not masked & visible, "a unit is masked for a part of its time only"
        result.append(masked)
    return result


def _makers(
    grid: TokenGrid, tube_length: int, ratio: float, batch: int = 3
) -> dict[str, Callable[[torch.Generator], Tensor]]:
    scores = _scores(batch, grid)
    makers: dict[str, Callable[[torch.Generator], Tensor]] = {
        "random": lambda generator: random_mask(
            batch,
            grid,
            mask_ratio=ratio,
            tube_length=tube_length,
            generator=generator,
            device="cpu",
        )
    }
    for hard in (0.0, 0.3, 1.0):
        makers[f"hard {hard}"] = lambda generator, hard=hard: hard_mask(
            scores,
            grid,
            mask_ratio=ratio,
            hard_ratio=hard,
            tube_length=tube_length,
            generator=generator,
        )
    return makers


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("grid", "tube_length"), LAYOUTS)
def test_every_mask_has_whole_units_in_the_exact_number(
    grid: TokenGrid, tube_length: int, ratio: str
) -> None:
    units = grid.time // tube_length * grid.height * grid.width
    expected = math.floor(Fraction(ratio) * units)  # exact, unlike 0.29 * 100
    assert num_units(grid, tube_length) == units
    settings = {"mask_ratio": float(ratio), "tube_length": tube_length}
    assert num_masked_units(grid, **settings) == expected
    assert num_visible_tokens(grid, **settings) == grid.num_tokens - expected * tube_length
    for name, make in _makers(grid, tube_length, float(ratio)).items():
        mask = make(_generator())
        assert mask.dtype == torch.bool
        assert mask.shape == (3, grid.num_tokens)
        assert [len(row) for row in _units(mask, grid, tube_length)] == [expected] * 3, name


def test_standard_setting_masks_176_of_196_tubes() -> None:
    grid = TokenGrid(8, 14, 14)
    assert num_masked_units(grid, mask_ratio=0.9, tube_length=8) == 176
    assert num_visible_tokens(grid, mask_ratio=0.9, tube_length=8) == 160


def test_masks_follow_the_generator_and_leave_the_global_state_alone() -> None:
    grid = TokenGrid(4, 3, 5)
    for name, make in _makers(grid, 2, 0.7).items():
        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = make(_generator(3))
        assert torch.equal(torch.get_rng_state(), before), name
        torch.manual_seed(2)
        assert torch.equal(make(_generator(3)), first), name
        if name != "hard 1.0":
            assert not torch.equal(make(_generator(4)), first), name
            assert not torch.equal(first[0], first[1]), name


def test_random_masks_choose_units_uniformly() -> None:
    grid, trials, ratio = TokenGrid(2, 3, 5), 4000, 0.6
    mask = random_mask(
        trials, grid, mask_ratio=ratio, tube_length=2, generator=_generator(), device="cpu"
    )
    shares = mask[:, : grid.num_tubes].float().mean(dim=0)
    # 5 standard deviations of a share of 4000 draws
    assert shares == pytest.approx(torch.full((15,), ratio), abs=5 * (0.24 / trials) ** 0.5)


def _slow_unit_scores(row: list[float], grid: TokenGrid, tube_length: int) -> list[float]:
    units = grid.time // tube_length * grid.height * grid.width
    of_unit: list[list[float]] = [[] for _ in range(units)]
    for token, score in enumerate(row):
        of_unit[_unit_of(token, grid, tube_length)].append(score)
    return [sum(values) / len(values) for values in of_unit]


@pytest.mark.parametrize(("grid", "tube_length"), LAYOUTS)
def test_unit_score_is_the_mean_of_its_tokens(grid: TokenGrid, tube_length: int) -> None:
    scores = _scores(2, grid)
    fast = unit_scores(scores, grid, tube_length)
    for row in range(2):
        slow = _slow_unit_scores(scores[row].tolist(), grid, tube_length)
        assert fast[row].tolist() == pytest.approx(slow, abs=1e-6)


@pytest.mark.parametrize("hard_ratio", [0.0, 0.25, 0.5, 0.83, 1.0])
@pytest.mark.parametrize(("grid", "tube_length"), LAYOUTS[:6])
def test_hard_masks_hold_the_hardest_units(
    grid: TokenGrid, tube_length: int, hard_ratio: float
) -> None:
    scores = _scores(4, grid)
    mask = hard_mask(
        scores,
        grid,
        mask_ratio=0.61,
        hard_ratio=hard_ratio,
        tube_length=tube_length,
        generator=_generator(),
    )
    masked = num_masked_units(grid, mask_ratio=0.61, tube_length=tube_length)
    num_hard = math.floor(hard_ratio * masked)
    for row, units in zip(scores.tolist(), _units(mask, grid, tube_length), strict=True):
        slow = _slow_unit_scores(row, grid, tube_length)
        hardest = sorted(range(len(slow)), key=lambda unit: -slow[unit])[:num_hard]
        assert set(hardest) <= units
        if hard_ratio == 1:
            assert set(hardest) == units


def test_hard_ratio_0_does_not_look_at_the_scores() -> None:
    grid = TokenGrid(2, 3, 5)
    settings = {"mask_ratio": 0.6, "hard_ratio": 0.0, "tube_length": 2}
    one, other = (
        hard_mask(_scores(8, grid, seed), grid, generator=_generator(), **settings)
        for seed in (1, 2)
    )
    assert torch.equal(one, other)


def test_what_is_not_hard_is_drawn_uniformly_from_the_others() -> None:
    grid, trials = TokenGrid(2, 3, 5), 4000
    order = torch.randperm(15, generator=_generator(5))
    scores = order.float().repeat(2)  # each of the 2 time steps has the same
    mask = hard_mask(
        scores.expand(trials, -1),
        grid,
        mask_ratio=0.6,  # 9 of 15 tubes
        hard_ratio=0.5,  # floor(4.5) = 4 hard, 5 of the other 11 at random
        tube_length=2,
        generator=_generator(),
    )
    shares = mask[:, :15].double().mean(dim=0)
    hard = order >= 11
    assert torch.equal(shares[hard], torch.ones(4, dtype=torch.double))
    others = torch.full((11,), 5 / 11, dtype=torch.double)
    assert shares[~hard] == pytest.approx(others, abs=5 * (0.25 / trials) ** 0.5)
    # Drawn without memory: any two of the eleven come together equally often (5*4 / 11*10).
    together = mask[:, :15][:, ~hard].double()
    pairs = (together.T @ together / trials)[~torch.eye(11, dtype=torch.bool)]
    assert pairs == pytest.approx(torch.full_like(pairs, 2 / 11), abs=5 * (0.15 / trials) ** 0.5)


@pytest.mark.parametrize("hard_ratio", [0.5, 1.0])
def test_ties_are_broken_at_random_not_by_place(hard_ratio: float) -> None:
    grid, trials = TokenGrid(1, 4, 5), 4000
    mask = hard_mask(
        torch.zeros(trials, 20),
        grid,
        mask_ratio=0.5,
        hard_ratio=hard_ratio,
        tube_length=1,
        generator=_generator(),
    )
    shares = mask.double().mean(dim=0)
    assert shares == pytest.approx(torch.full_like(shares, 0.5), abs=5 * (0.25 / trials) ** 0.5)


def test_polarity_true_is_masked_and_high_scores_are_hard() -> None:
    grid = TokenGrid(1, 2, 2)
    scores = torch.tensor([[0.0, 9.0, 1.0, 2.0]])
    settings = {"mask_ratio": 0.25, "hard_ratio": 1.0, "tube_length": 1}
    mask = hard_mask(scores, grid, generator=_generator(), **settings)
    assert mask.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("kind", ["random", "hard 0.3"])
def test_a_part_of_a_batch_gets_the_masks_of_the_whole(kind: str) -> None:
    grid, total = TokenGrid(4, 3, 5), 7
    scores = _scores(total, grid)

    def make(first: int, last: int, rows: tuple[int, int] | None) -> Tensor:
        if kind == "random":
            return random_mask(
                last - first,
                grid,
                mask_ratio=0.7,
                tube_length=2,
                generator=_generator(),
                device="cpu",
                rows=rows,
            )
        return hard_mask(
            scores[first:last],
            grid,
            mask_ratio=0.7,
            hard_ratio=0.3,
            tube_length=2,
            generator=_generator(),
            rows=rows,
        )

    whole = make(0, total, None)
    parts = [make(first, last, (first, total)) for first, last in [(0, 3), (3, 4), (4, 7)]]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_ratio": 0.0}, r"masking.mask_ratio \(0.0\) must be in \(0, 1\)"),
        ({"mask_ratio": 1.0}, r"masking.mask_ratio \(1.0\) must be in \(0, 1\)"),
        ({"mask_ratio": 1.2}, r"masking.mask_ratio \(1.2\)"),
        ({"mask_ratio": 0.05}, "masks 0 of 15 units"),
        ({"tube_length": 3}, r"masking.tube_length \(3\) must divide the grid's 4"),
        ({"tube_length": 0}, r"masking.tube_length \(0\)"),
        ({"hard_ratio": -0.1}, r"hard_ratio \(-0.1\) must be in \[0, 1\]"),
        ({"hard_ratio": 1.1}, r"hard_ratio \(1.1\)"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, float], message: str) -> None:
    grid = TokenGrid(4, 3, 5)
    good = {"mask_ratio": 0.5, "tube_length": 4, "hard_ratio": 0.5}
    with pytest.raises(ValueError, match=message):
        hard_mask(_scores(1, grid), grid, generator=_generator(), **{**good, **settings})


@pytest.mark.parametrize(
    ("progress", "expected"), [(0, 0.1), (0.25, 0.2), (0.5, 0.3), (1, 0.5), (1.5, 0.5), (-1, 0.1)]
)
def test_hard_ratio_rises_linearly_and_stays_in_its_range(progress: float, expected: float) -> None:
    assert hard_ratio_at(progress, 0.1, 0.5) == pytest.approx(expected)
