"""Masks of blocks: V-JEPA's rectangles, with as many units masked in every clip."""

import math

import pytest
import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method.blocks import Blocks, num_draws
from hpm_video.method.masking import Masked, make_mask
from hpm_video.models.tokens import TokenGrid

GRIDS = [TokenGrid(8, 14, 14), TokenGrid(2, 6, 9), TokenGrid(3, 4, 4), TokenGrid(2, 1, 5)]
Place = tuple[int, int]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rectangle(drawn: list[float], share: float, grid: TokenGrid) -> set[Place]:
    """The places of a block from its three random numbers, as the paper describes it."""
    shape, row, column = drawn
    aspect, count = 0.75 + 0.75 * shape, int(share * grid.height * grid.width)
    height = min(max(round(math.sqrt(count * aspect)), 1), grid.height)
    width = min(max(round(math.sqrt(count / aspect)), 1), grid.width)
    top = int(row * (grid.height - height + 1))
    left = int(column * (grid.width - width + 1))
    return {(y, x) for y in range(top, top + height) for x in range(left, left + width)}


def _blocks(noise: list[float], grid: TokenGrid) -> tuple[list[set[Place]], list[set[Place]]]:
    """The blocks of a random mask, in their order, and the candidates for hard ones."""
    triples = [noise[1 + 3 * k : 4 + 3 * k] for k in range(len(noise) // 3)]
    share, count = (0.15, 8) if noise[0] < 0.5 else (0.7, 2)
    return (
        [_rectangle(triple, share, grid) for triple in triples[:count]],
        [_rectangle(triple, 0.15, grid) for triple in triples[8:]],
    )


@pytest.mark.parametrize("grid", GRIDS)
def test_blocks_are_those_of_a_slow_loop(grid: TokenGrid) -> None:
    noise = torch.rand(20, num_draws(with_scores=True), generator=_generator())
    scores = torch.randn(20, grid.num_tubes, generator=_generator(1))
    scores[:, 1] = torch.nan  # a unit of which nothing is known
    blocks = Blocks(noise, grid)
    order, best = blocks.order(), blocks.scores(scores)
    kinds = set()
    for clip in range(20):
        drawn, candidates = _blocks(noise[clip].tolist(), grid)
        kinds.add(len(drawn))
        assert len(candidates) == 32
        known = {
            (unit // grid.width, unit % grid.width): value
            for unit, value in enumerate(scores[clip].tolist())
            if not math.isnan(value)
        }
        means = []
        for block in candidates:
            values = [known[place] for place in block if place in known]
            means.append(sum(values) / len(values) if values else -math.inf)
        for unit in range(grid.num_tubes):
            place = unit // grid.width, unit % grid.width
            first = next((k for k, block in enumerate(drawn) if place in block), 8)
            assert order[clip, unit] == first
            own = [m for m, block in zip(means, candidates, strict=True) if place in block]
            if place in known and own:
                assert best[clip, unit].item() == pytest.approx(max(own), rel=1e-4, abs=1e-6)
            else:
                assert best[clip, unit].isnan()
    assert kinds == {2, 8}


def _made(grid: TokenGrid, ratio: float, scores: Tensor | None, hard_ratio: float = 0.5) -> Masked:
    return make_mask(
        scores,
        grid,
        MaskingConfig(mask_ratio=ratio, pattern="blocks"),
        hard_ratio=hard_ratio,
        batch_size=6,
        generator=_generator(3),
    )


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("ratio", [0.9, 0.75, 0.4])
def test_every_mask_has_whole_tubes_in_the_exact_number(grid: TokenGrid, ratio: float) -> None:
    expected = math.floor(ratio * grid.num_tubes + 1e-9)
    for scores in (None, torch.randn(6, grid.num_tokens, generator=_generator(1))):
        for hard_ratio in (0.0, 0.3, 1.0):
            made = _made(grid, ratio, scores, hard_ratio)
            tubes, hard = (m.view(6, grid.time, -1) for m in (made.mask, made.hard))
            assert bool((tubes == tubes[:, :1]).all()) and bool((hard == hard[:, :1]).all())
            assert tubes[:, 0].sum(dim=1).tolist() == [expected] * 6
            assert bool((tubes | ~hard).all())
            most = 0 if scores is None else math.floor(hard_ratio * expected + 1e-9)
            assert bool((hard[:, 0].sum(dim=1) <= most).all())


def test_a_small_mask_is_within_one_block() -> None:
    """What the first block has too much stays visible."""
    grid = TokenGrid(2, 14, 14)
    units = _made(grid, 0.1, None).mask[:, : grid.num_tubes].view(6, 14, 14)
    for mask in units:
        rows, columns = mask.any(dim=1).nonzero(), mask.any(dim=0).nonzero()
        box = (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
        assert mask.sum() == 19 and box <= 14 * 14 * 0.75


def test_hard_blocks_lie_where_scores_are_high() -> None:
    grid = TokenGrid(2, 14, 14)
    scores = torch.zeros(6, 2, 14, 14)
    scores[:3, :, :6, :6], scores[3:, :, 8:, 8:] = 1.0, 1.0
    made = _made(grid, 0.5, scores.flatten(1), 0.3)
    hard = made.hard.view(6, 2, 14, 14)[:, 0]
    assert hard.sum(dim=(1, 2)).tolist() == [29] * 6  # floor(.3 * 98)
    assert scores[:, 0][hard].mean() > 0.6  # by chance .18
    # A block, and not the tubes one by one: its neighbours come with it
    assert not bool((scores[:, 0][hard] == 1).all())
