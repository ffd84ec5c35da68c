import math
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method import masking
from hpm_video.method.decoder_masking import draw_decoded, reconstructed_tokens, running_cells
from hpm_video.method.masking import (
    hard_mask,
    hard_ratio_at,
    make_mask,
    num_masked_units,
    num_units,
    num_visible_tokens,
    random_mask,
    unit_scores,
)
from hpm_video.method.unit_counts import num_reconstructed_tokens, num_remasked_tokens
from hpm_video.models.tokens import TokenGrid

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


@pytest.mark.gpu
@pytest.mark.parametrize("hard_ratio", [0.0, 0.5, 1.0])
def test_masks_of_the_same_noise_are_the_same_on_a_gpu(
    gpu: torch.device, monkeypatch: pytest.MonkeyPatch, hard_ratio: float
) -> None:
    """With scores of which many are equal: sorting must break ties alike."""
    grid, draw = TokenGrid(8, 14, 14), masking.batch_noise
    monkeypatch.setattr(
        masking,
        "batch_noise",
        lambda *sizes, device, **how: draw(*sizes, device="cpu", **how).to(device),
    )
    scores = (4 * _scores(5, grid)).round()
    masks = [
        hard_mask(
            scores.to(device),
            grid,
            mask_ratio=0.9,
            hard_ratio=hard_ratio,
            tube_length=1,
            generator=_generator(),
        )
        for device in ("cpu", gpu)
    ]
    assert masks[1].device.type == "cuda" and torch.equal(masks[0], masks[1].cpu())


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
        ({"mask_ratio": 1 - 1e-12}, "masks 15 of 15 units: at least one .* one visible"),
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


PATTERNS = ["running_cell", "random"]


def _kept(
    mask: Tensor,
    grid: TokenGrid,
    num_kept: int,
    pattern: str,
    *,
    seed: int = 5,
    rows: tuple[int, int] | None = None,
) -> Tensor:
    return reconstructed_tokens(
        mask, grid, num_kept=num_kept, pattern=pattern, generator=_generator(seed), rows=rows
    )


def _place(token: int, grid: TokenGrid) -> tuple[int, int]:
    """Time step of a token, and the number of its place in a 2 x 2 cell, going around it."""
    time, place = divmod(token, grid.height * grid.width)
    row, column = divmod(place, grid.width)
    return time, {(0, 0): 0, (0, 1): 1, (1, 1): 2, (1, 0): 3}[row % 2, column % 2]


@pytest.mark.parametrize("decoder_mask_ratio", ["0.1", "0.5", "0.61", "0.75", "0.9"])
@pytest.mark.parametrize(("grid", "tube_length"), LAYOUTS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_clip_keeps_the_same_number_of_masked_tokens(
    pattern: str, grid: TokenGrid, tube_length: int, decoder_mask_ratio: str
) -> None:
    masked = num_masked_units(grid, mask_ratio=0.61, tube_length=tube_length) * tube_length
    expected = round((1 - Fraction(decoder_mask_ratio)) * masked)
    masking = MaskingConfig(0.61, tube_length, decoder_mask_ratio=float(decoder_mask_ratio))
    num_kept = num_reconstructed_tokens(grid, masking)
    assert num_kept == expected
    make = _makers(grid, tube_length, 0.61, batch=4)["hard 0.3"]
    mask = make(_generator())
    kept = _kept(mask, grid, num_kept, pattern)
    assert kept.shape == (4, expected)
    for row, tokens in zip(mask.tolist(), kept.tolist(), strict=True):
        assert tokens == sorted(set(tokens))
        assert all(row[token] for token in tokens)


# height and width odd and even; half, a quarter and three quarters
@pytest.mark.parametrize("num_seen", [2, 1, 3])
@pytest.mark.parametrize("grid", [TokenGrid(4, 3, 5), TokenGrid(8, 4, 6)])
def test_the_cell_runs_with_time_and_covers_every_place_equally(
    grid: TokenGrid, num_seen: int
) -> None:
    """Over tubes masked for multiples of 4 time steps nothing has to be trimmed: then what is kept
    is the run of neighbouring places from one of four begins, found by trying each."""
    mask = random_mask(
        40, grid, mask_ratio=0.6, tube_length=grid.time, generator=_generator(), device="cpu"
    )
    kept = _kept(mask, grid, int(mask[0].sum()) * num_seen // 4, "running_cell")
    begins = []
    for row, tokens in zip(mask, kept.tolist(), strict=True):
        hidden = row.nonzero().flatten().tolist()
        runs = []
        for begin in range(4):
            run = []
            for token in hidden:
                time, place = _place(token, grid)
                if place in [(begin + time + k) % 4 for k in range(num_seen)]:
                    run.append(token)
            runs.append(run)
        assert tokens in runs
        begins.append(runs.index(tokens))
        of_tube = [token % grid.num_tubes for token in tokens]
        assert {of_tube.count(tube) for tube in of_tube} == {grid.time * num_seen // 4}
        assert {token % grid.num_tubes for token in hidden} == set(of_tube)
    assert set(begins) == {0, 1, 2, 3}


def test_between_quarters_the_last_place_of_the_run_is_kept_in_part() -> None:
    grid = TokenGrid(4, 4, 4)
    mask = torch.ones(30, 64, dtype=torch.bool)  # 16 tokens of each place
    kept = _kept(mask, grid, 40, "running_cell")
    parts = set()
    for tokens in kept.tolist():
        # How many of the 4 tokens of each place are kept, by time, the place moving along.
        found = []
        for begin in range(4):
            ranks = [
                (place - time - begin) % 4 for time, place in (_place(t, grid) for t in tokens)
            ]
            if [ranks.count(rank) for rank in range(4)] == [16, 16, 8, 0]:
                found.append(tuple(t for t, rank in zip(tokens, ranks, strict=True) if rank == 2))
        assert len(found) == 1
        parts.add(found[0])
    assert len(parts) == 30  # drawn anew for each clip


@pytest.mark.parametrize("num_kept", [5, 9, 12])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_all_masked_tokens_are_kept_equally_often(pattern: str, num_kept: int) -> None:
    grid, trials = TokenGrid(2, 3, 5), 4000
    mask = torch.zeros(30, dtype=torch.bool)
    mask[torch.randperm(30, generator=_generator(1))[:18]] = True
    kept = _kept(mask.expand(trials, -1), grid, num_kept, pattern)
    shares = torch.bincount(kept.flatten(), minlength=30) / trials
    assert torch.equal(shares[~mask], torch.zeros(12))
    if pattern == "random":  # a cell's places have neighbours of which more or fewer are masked
        expected = torch.full((18,), num_kept / 18)
        assert shares[mask] == pytest.approx(expected, abs=5 * 0.5 / trials**0.5)
    assert shares[mask].min() > 0.1


def test_all_places_begin_the_run_equally_often() -> None:
    grid, trials = TokenGrid(1, 4, 6), 4000
    mask = torch.ones(trials, 24, dtype=torch.bool)
    shares = torch.bincount(_kept(mask, grid, 12, "running_cell").flatten()) / trials
    assert shares == pytest.approx(torch.full((24,), 0.5), abs=5 * 0.5 / trials**0.5)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_kept_tokens_follow_the_generator_and_the_place_in_the_batch(pattern: str) -> None:
    grid = TokenGrid(4, 3, 5)
    mask = _makers(grid, 2, 0.7, batch=7)["random"](_generator())
    before = torch.get_rng_state()
    whole = _kept(mask, grid, 17, pattern)
    assert torch.equal(torch.get_rng_state(), before)
    parts = [
        _kept(mask[first:last], grid, 17, pattern, rows=(first, 7))
        for first, last in [(0, 3), (3, 4), (4, 7)]
    ]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(_kept(mask, grid, 17, pattern, seed=6), whole)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [
        (1.0, r"masking.decoder_mask_ratio \(1.0\) must be in \[0, 1\)"),
        (-0.5, r"masking.decoder_mask_ratio \(-0.5\) must be in \[0, 1\)"),
        (0.99, r"masking.decoder_mask_ratio \(0.99\) must leave at least one of 28 masked tokens"),
    ],
)
def test_bad_decoder_mask_ratios_are_refused(ratio: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        masking = MaskingConfig(mask_ratio=0.5, decoder_mask_ratio=ratio)
        num_reconstructed_tokens(TokenGrid(4, 3, 5), masking)


@pytest.mark.parametrize("hard_ratio", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tube_length", [1, 2, None])
def test_what_was_taken_for_its_score_is_known(hard_ratio: float, tube_length: int | None) -> None:
    """Against a loop over clips and units; no two scores are alike."""
    grid, length = TokenGrid(4, 3, 5), tube_length or 4
    scores = torch.rand(5, grid.num_tokens, generator=torch.Generator().manual_seed(1))
    masking = MaskingConfig(mask_ratio=0.7, tube_length=tube_length)
    settings = {"hard_ratio": hard_ratio, "batch_size": 5}
    generator = torch.Generator().manual_seed(2)
    chosen = make_mask(scores, grid, masking, **settings, generator=generator)
    units = [
        [(window * length + time) * 15 + place for time in range(length)]
        for window in range(4 // length)
        for place in range(15)
    ]
    masked = math.floor(0.7 * len(units) + 1e-9)
    for clip in range(5):
        means = [sum(scores[clip, token].item() for token in unit) for unit in units]
        order = sorted(range(len(units)), key=lambda unit: -means[unit])
        hardest = order[: math.floor(hard_ratio * masked + 1e-9)]
        expected = {token for unit in hardest for token in units[unit]}
        assert set(chosen.hard[clip].nonzero().flatten().tolist()) == expected
        assert bool(chosen.mask[clip][chosen.hard[clip]].all())
        assert chosen.mask[clip].sum() == masked * length
    mask = hard_mask(
        scores,
        grid,
        mask_ratio=0.7,
        hard_ratio=hard_ratio,
        tube_length=length,
        generator=generator.manual_seed(2),
    )
    assert torch.equal(mask, chosen.mask)


def test_of_equal_scores_as_many_are_hard_and_a_random_mask_has_none() -> None:
    grid, masking = TokenGrid(2, 4, 4), MaskingConfig(mask_ratio=0.5)
    for scores, count in ((torch.zeros(3, 32), 4), (None, 0)):
        generator = torch.Generator().manual_seed(0)
        chosen = make_mask(scores, grid, masking, hard_ratio=0.5, batch_size=3, generator=generator)
        assert chosen.hard.sum(dim=1).tolist() == [2 * count] * 3
        assert chosen.mask.sum(dim=1).tolist() == [16] * 3
        assert bool((chosen.mask | ~chosen.hard).all())


# ---- the running cell of VideoMAE V2's released code


def _published_cell(begin: int, grid: TokenGrid, num_hidden: int) -> set[int]:
    """Where its decoder sees mask tokens, by a loop over steps, rows and columns.

    A queue of 4, the hidden places before the seen ones, lies on each 2 x 2 cell row by row. Before
    every time step it is turned on by one.
    """
    queue, seen = [True] * num_hidden + [False] * (4 - num_hidden), set()
    turn = begin
    for time in range(grid.time):
        turn += 1
        for row in range(grid.height):
            for column in range(grid.width):
                place = 2 * (row % 2) + column % 2
                if not queue[(place + turn) % 4]:
                    seen.add((time * grid.height + row) * grid.width + column)
    return seen


@pytest.mark.parametrize("num_hidden", [1, 2, 3])
@pytest.mark.parametrize("grid", [TokenGrid(8, 14, 14), TokenGrid(5, 2, 6), TokenGrid(4, 16, 4)])
def test_running_cells_are_the_published_ones(grid: TokenGrid, num_hidden: int) -> None:
    cells = running_cells(
        400, grid, decoder_mask_ratio=num_hidden / 4, generator=_generator(), device="cpu"
    )
    published = [_published_cell(begin, grid, num_hidden) for begin in range(4)]
    begins = [published.index(set(row.nonzero().flatten().tolist())) for row in cells]
    # Each of the four as often: 5 standard deviations of a quarter of 400
    assert all(abs(begins.count(begin) - 100) < 5 * 400**0.5 * 0.433 for begin in range(4))


def test_published_cells_are_neighbours_and_diagonals_in_turns() -> None:
    """As the authors' code has it; our running_cell has neighbours alone."""
    grid = TokenGrid(4, 2, 2)
    cells = running_cells(20, grid, decoder_mask_ratio=0.5, generator=_generator(), device="cpu")
    ours = _kept(torch.ones(20, 16, dtype=torch.bool), grid, 8, "running_cell")
    for row, others in zip(cells.view(20, 4, 4).tolist(), ours.tolist(), strict=True):
        pairs = [tuple(place for place in range(4) if step[place]) for step in row]
        are_rows = [pair in ((0, 1), (2, 3)) for pair in pairs]
        are_diagonals = [pair in ((0, 3), (1, 2)) for pair in pairs]
        assert are_rows in ([True, False] * 2, [False, True] * 2)
        assert are_diagonals == [not each for each in are_rows]
        neighbours = [tuple(t % 4 for t in others if t // 4 == time) for time in range(4)]
        assert not {(0, 3), (1, 2)} & set(neighbours)


def _v2(tube_length: int | None = None, ratio: float = 0.5) -> MaskingConfig:
    return MaskingConfig(0.6, tube_length, decoder_mask_ratio=ratio, decoder_mask="videomae_v2")


@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.75])
@pytest.mark.parametrize("tube_length", [4, 8])
def test_v2_divides_its_cells_into_masked_and_visible_tokens(
    tube_length: int, ratio: float
) -> None:
    grid = TokenGrid(8, 4, 6)
    masking = _v2(tube_length, ratio)
    mask = _makers(grid, tube_length, 0.6, batch=9)["hard 0.3"](_generator())

    def draw(first: int, last: int) -> list[Tensor | None]:
        drawn = draw_decoded(
            mask[first:last],
            grid,
            masking,
            ranked_ratio=1.0,
            generator=_generator(4),
            rows=(first, 9),
        )
        return [drawn.kept, drawn.remasked, drawn.ranked]

    kept, remasked, ranked = draw(0, 9)
    assert kept is not None and remasked is not None and ranked is None
    counts = num_reconstructed_tokens(grid, masking), num_remasked_tokens(grid, masking)
    assert (kept.shape[1], remasked.shape[1]) == counts
    published = [_published_cell(begin, grid, round(4 * ratio)) for begin in range(4)]
    for row, mine, again in zip(mask.tolist(), kept.tolist(), remasked.tolist(), strict=True):
        hidden = {token for token, is_masked in enumerate(row) if is_masked}
        cell = set(mine) | set(again)
        assert cell in published
        assert mine == sorted(cell & hidden) and again == sorted(cell - hidden)
    # The same whatever share of the batch a process has
    for whole, *parts in zip((kept, remasked), draw(0, 2), draw(2, 9), strict=False):
        assert torch.equal(torch.cat(parts), whole)


def test_v2_of_the_papers_clip_decodes_784_mask_tokens() -> None:
    """16 frames of 224 x 224: 176 of 196 tubes masked, half of all 1,568 tokens in the cells."""
    grid = TokenGrid(8, 14, 14)
    masking = MaskingConfig(decoder_mask_ratio=0.5, decoder_mask="videomae_v2")
    assert num_reconstructed_tokens(grid, masking) == 704
    assert num_remasked_tokens(grid, masking) == 80
    assert num_remasked_tokens(grid, MaskingConfig(decoder_mask_ratio=0.5)) == 0
    assert num_remasked_tokens(grid, MaskingConfig(decoder_mask="videomae_v2")) == 0


@pytest.mark.parametrize(
    ("grid", "tube_length", "found"),
    [
        (TokenGrid(8, 4, 6), 2, "mining units of 2 time steps"),
        (TokenGrid(6, 4, 6), None, "mining units of 6 time steps"),
        (TokenGrid(8, 3, 6), None, "8 x 3 x 6 tokens"),
        (TokenGrid(8, 4, 5), None, "8 x 4 x 5 tokens"),
    ],
)
def test_v2_refuses_where_clips_would_differ_in_number(
    grid: TokenGrid, tube_length: int | None, found: str
) -> None:
    with pytest.raises(ValueError, match=r"masking\.decoder_mask \(videomae_v2\)") as caught:
        num_reconstructed_tokens(grid, _v2(tube_length))
    said = str(caught.value)
    assert found in said and "masking.decoder_mask=running_cell" in said and "\n" not in said


@pytest.mark.parametrize("ratio", [0.1, 0.6])
def test_v2_refuses_ratios_that_cells_do_not_have(ratio: float) -> None:
    words = rf"masking\.decoder_mask_ratio \({ratio}\) must be 0, 0.25, 0.5 or 0.75 while"
    with pytest.raises(ValueError, match=words):
        MaskingConfig(decoder_mask_ratio=ratio, decoder_mask="videomae_v2")
    MaskingConfig(decoder_mask_ratio=ratio)  # ours takes any
