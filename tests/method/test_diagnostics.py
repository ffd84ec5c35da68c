"""Figures of a step, against slow loops over clips, units and tokens and against scipy."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.config import MaskingConfig
from hpm_video.method import diagnostics
from hpm_video.method import step as module
from hpm_video.method.diagnostics import (
    effective_rank,
    ema_distance,
    feature_variation,
    mean_figures,
    rank_correlation,
    step_figures,
)
from hpm_video.method.masking import Masked, make_mask, random_mask
from hpm_video.method.step import Pairs, PretrainStep
from hpm_video.models.tokens import TokenGrid, split_mask
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
GRID = TokenGrid(4, 3, 5)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _units(grid: TokenGrid, tube_length: int) -> list[list[int]]:
    """The tokens of every mining unit."""
    return [
        [(window * tube_length + time) * grid.num_tubes + place for time in range(tube_length)]
        for window in range(grid.time // tube_length)
        for place in range(grid.num_tubes)
    ]


def _slow_figures(
    mask: Tensor,
    scores: Tensor | None,
    losses: Tensor,
    predictions: Tensor,
    *,
    grid: TokenGrid,
    tube_length: int,
    num_hard: int,
) -> dict[str, float]:
    """losses, predictions (B, N); a clip and a unit at a time, in float64."""
    correlations, hard_losses, random_losses, shares = [], [], [], []
    for clip in range(len(mask)):
        masked = [unit for unit in _units(grid, tube_length) if mask[clip, unit[0]]]
        assert all(bool(mask[clip, token]) for unit in masked for token in unit)
        measured = [np.mean([losses[clip, t].item() for t in unit]) for unit in masked]
        predicted = [np.mean([predictions[clip, t].item() for t in unit]) for unit in masked]
        if len(set(predicted)) > 1:  # else there is no predictor
            correlations.append(scipy.stats.spearmanr(predicted, measured).statistic)
        hard: set[int] = set()
        if scores is not None:
            score = [np.mean([scores[clip, t].item() for t in unit]) for unit in masked]
            hard = set(np.argsort(score)[len(score) - num_hard :].tolist())
        shares.append(len(hard) / len(masked))
        hard_losses += [measured[k] for k in range(len(masked)) if k in hard]
        random_losses += [measured[k] for k in range(len(masked)) if k not in hard]
    return {
        "spearman": float(np.mean(correlations)) if correlations else math.nan,
        "hard_share": float(np.mean(shares)),
        "hard_loss": float(np.mean(hard_losses)) if hard_losses else math.nan,
        "random_loss": float(np.mean(random_losses)) if random_losses else math.nan,
    }


def _step(chosen: Masked, index: Tensor, losses: Tensor, predictions: Tensor) -> PretrainStep:
    """A step that measured and predicted losses (B, N) of the tokens at index (B, M)."""
    measured, predicted = losses.gather(1, index), predictions.gather(1, index)
    return PretrainStep(
        losses={},
        scores=None,
        mask=chosen.mask,
        hard=chosen.hard,
        masked=index,
        token_losses=measured,
        ranked=index,
        ranked_losses=measured,
        ranked_predictions=predicted,
        predicted=predicted,
        measured=measured,
        encoded=torch.ones(len(index), 2, 3),
    )


@pytest.mark.parametrize("tube_length", [1, 2, 4])
@pytest.mark.parametrize("hard_ratio", [None, 0.0, 0.4, 1.0])
def test_figures_are_those_of_a_slow_loop(tube_length: int, hard_ratio: float | None) -> None:
    scores = torch.randn(6, GRID.num_tokens, generator=_generator(1))
    losses = torch.rand(6, GRID.num_tokens, generator=_generator(2))
    predictions = losses + torch.rand(6, GRID.num_tokens, generator=_generator(3))
    sizes = {"mask_ratio": 0.7, "tube_length": tube_length}
    masked_units = math.floor(0.7 * 15 * (4 // tube_length) + 1e-9)
    num_hard = math.floor((hard_ratio or 0) * masked_units + 1e-9)
    if hard_ratio is None:
        scores = None
    chosen = make_mask(
        scores,
        GRID,
        MaskingConfig(**sizes),
        hard_ratio=hard_ratio or 0.0,
        batch_size=6,
        generator=_generator(4),
    )
    mask = chosen.mask
    _, index = split_mask(mask)
    figures = step_figures(_step(chosen, index, losses, predictions), GRID, tube_length)
    slow = _slow_figures(
        mask, scores, losses, predictions, grid=GRID, tube_length=tube_length, num_hard=num_hard
    )
    assert figures.keys() == {*slow, "rank_accuracy", "feature_variation", "effective_rank"}
    for name, value in slow.items():
        assert figures[name].item() == pytest.approx(value, rel=1e-5, nan_ok=True), name
    assert figures["spearman"].item() > 0.3


def test_figures_of_a_second_predictor_are_of_its_own_tokens() -> None:
    losses = torch.rand(6, GRID.num_tokens, generator=_generator(2))
    chosen = make_mask(
        None,
        GRID,
        MaskingConfig(mask_ratio=0.7),
        hard_ratio=0,
        batch_size=6,
        generator=_generator(),
    )
    _, index = split_mask(chosen.mask)
    some = index[:, ::3]
    measured, opposite = losses.gather(1, some), -losses.gather(1, some)
    pairs = Pairs(some, measured, opposite, opposite, measured)
    step = replace(_step(chosen, index, losses, losses), pixels=pairs)
    figures = step_figures(step, GRID, 1)
    assert figures["rank_accuracy"].item() == 1 and figures["spearman"].item() > 0.99
    assert figures["pixel_rank_accuracy"].item() == 0 and figures["pixel_spearman"].item() < -0.99


def _slow_rank(table: np.ndarray) -> float:
    """RankMe, as the paper has it."""
    values = np.linalg.svd(table, compute_uv=False)
    shares = [value / sum(values) + 1e-7 for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize("shape", [(3, 7, 5), (2, 3, 16), (4, 9, 36)])
def test_effective_rank_is_that_of_the_paper(shape: tuple[int, int, int]) -> None:
    features = torch.randn(shape, generator=_generator(5)) * torch.logspace(0, -3, shape[2])
    for constant in (0.0, 30.0):  # the encoder's large constant counts as one direction
        table = features + constant
        expected = _slow_rank(table.flatten(0, 1).double().numpy())
        assert effective_rank(table).item() == pytest.approx(expected, rel=1e-4)
    assert effective_rank(torch.eye(8)[None]).item() == pytest.approx(8, rel=1e-3)


def test_effective_rank_is_one_of_features_that_are_all_the_same() -> None:
    same = torch.randn(1, 1, 64, generator=_generator(6)).expand(4, 30, 64)
    assert effective_rank(same).item() == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(2, 3, 4)).isfinite()
    broken = torch.ones(2, 3, 4)
    broken[1, 2, 3] = math.inf
    assert effective_rank(broken).isnan()


def test_effective_rank_of_many_tokens_is_of_evenly_spaced_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    features = torch.randn(3, 20, 8, generator=_generator(7))
    monkeypatch.setattr(diagnostics, "_MOST_ROWS", 25)  # of 60, every third
    expected = _slow_rank(features.flatten(0, 1)[::3].double().numpy())
    assert effective_rank(features).item() == pytest.approx(expected, rel=1e-4)


def test_features_vary_by_what_they_do_not_share() -> None:
    """Noise of mean square 1 upon a constant of 3, 1 of 9 + 1; one clip of each."""
    noise = torch.randn(1, 900, 400, generator=_generator())
    assert feature_variation(noise).item() == pytest.approx(1, abs=0.01)
    assert feature_variation(noise + 3).item() == pytest.approx(0.1, rel=0.02)
    both = torch.cat([noise, noise + 3])
    assert feature_variation(both).item() == pytest.approx(0.55, rel=0.02)
    assert feature_variation(torch.full((2, 3, 4), 5.0)).item() == pytest.approx(0, abs=1e-6)
    assert feature_variation(torch.zeros(2, 3, 4)).item() == 1


def test_tokens_without_a_measurement_are_left_out() -> None:
    """As when only a part of what is masked is reconstructed; here every tube's first half."""
    losses = torch.rand(3, GRID.num_tokens, generator=_generator(1))
    predictions = torch.rand(3, GRID.num_tokens, generator=_generator(2))
    mask = random_mask(3, GRID, mask_ratio=0.6, tube_length=4, generator=_generator(), device="cpu")
    _, index = split_mask(mask)
    index = index[:, : index.shape[1] // 2]
    chosen = Masked(mask, torch.zeros_like(mask))
    figures = step_figures(_step(chosen, index, losses, predictions), GRID, 4)
    half = TokenGrid(2, GRID.height, GRID.width)
    slow = _slow_figures(
        *(mask[:, :30], None, losses[:, :30], predictions[:, :30]),
        grid=half,
        tube_length=2,
        num_hard=0,
    )
    assert figures["spearman"].item() == pytest.approx(slow["spearman"])
    assert figures["random_loss"].item() == pytest.approx(slow["random_loss"])


def test_rank_correlation_is_scipys_also_with_ties_and_gaps() -> None:
    one = torch.randint(0, 8, (20, 30), generator=_generator(1)).float()
    other = one + torch.randint(0, 8, (20, 30), generator=_generator(2))
    gaps = torch.rand(20, 30, generator=_generator(3)) < 0.2
    with_gaps = rank_correlation(one.masked_fill(gaps, torch.nan), other)
    for row in range(20):
        expected = scipy.stats.spearmanr(one[row], other[row]).statistic
        assert rank_correlation(one, other)[row].item() == pytest.approx(expected)
        kept = ~gaps[row]
        expected = scipy.stats.spearmanr(one[row][kept], other[row][kept]).statistic
        assert with_gaps[row].item() == pytest.approx(expected)


def test_a_dead_predictor_has_no_rank_correlation() -> None:
    measured = torch.rand(3, 9, generator=_generator())
    assert rank_correlation(torch.ones(3, 9), measured).tolist() == [0, 0, 0]
    assert rank_correlation(measured, measured).tolist() == pytest.approx([1, 1, 1])
    assert rank_correlation(-measured, measured).tolist() == pytest.approx([-1, -1, -1])


def test_figures_of_parts_are_averaged() -> None:
    parts = [{"a": torch.tensor(float(k)), "b": None} for k in (1, 2, 6)]
    means = mean_figures(parts)
    assert means["a"] is not None and means["a"].item() == 3
    assert means["b"] is None


# The last step of a run, seen by a slow loop.
VARIANTS = {
    "tubes": ["masking.hard_ratio_end=0.6", "teacher.token_ratio=1"],
    "tokens": [
        "masking.hard_ratio_end=0.6",
        "teacher.token_ratio=1",
        "masking.tube_length=1",
        "optim.accumulation=2",
    ],
    "units": ["masking.hard_ratio_start=1", "loss.ranking_level=unit", "teacher.token_ratio=1"],
    "random": ["masking.hard_ratio_end=0", "teacher.token_ratio=1"],
    "plain": ["masking.hard_ratio_end=0", "loss.prediction=none"],
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_record_holds_the_figures_of_its_last_step(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    variant: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All from what the step was given and gave, unit by unit."""
    results = []
    norms: list[float] = []
    run_step, clip = module.pretrain_step, torch.nn.utils.get_total_norm

    def spy(*arguments: object, **named: object) -> PretrainStep:
        results.append(run_step(*arguments, **named))
        return results[-1]

    def norm_spy(*arguments: object, **named: object) -> Tensor:
        norms.append(clip(*arguments, **named).item())
        return torch.tensor(norms[-1])

    monkeypatch.setattr(module, "pretrain_step", spy)
    monkeypatch.setattr(torch.nn.utils, "get_total_norm", norm_spy)
    settings = ("optim.epochs=1", "run.log_every=4", *VARIANTS[variant])
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    record = read_records(tmp_path / "run")[-1]
    period = 2 if len(norms) == 6 else 3  # steps 5 and 6 of 6, or all of 3
    assert record["grad_norm"] == pytest.approx(np.mean(norms[-period:]), rel=1e-6)
    assert record["grad_norm_max"] == pytest.approx(max(norms[-period:]), rel=1e-6)
    assert record["skipped_steps"] == 0

    grid, tube_length = TokenGrid(2, 4, 4), 1 if variant == "tokens" else 2
    masked_units = math.floor(0.75 * 16 * (2 // tube_length))
    num_hard = math.floor(record["hard_ratio"] * masked_units + 1e-9)
    last = results[-2:] if variant == "tokens" else results[-1:]
    slow = []
    for step in last:
        losses, predictions = torch.zeros(4, 32), torch.zeros(4, 32)
        assert step.ranked.equal(step.masked)  # the predictor sees all
        for row, index in enumerate(step.masked):
            losses[row, index] = step.token_losses[row]
            if step.ranked_predictions is not None:
                predictions[row, index] = step.ranked_predictions[row]
        slow.append(
            _slow_figures(
                *(step.mask, step.scores, losses, predictions),
                grid=grid,
                tube_length=tube_length,
                num_hard=num_hard,
            )
        )
        assert losses.sum() / (4 * masked_units * tube_length) == pytest.approx(
            step.losses["reconstruction_loss"].item()
        )
    for name in ("spearman", "hard_share", "hard_loss", "random_loss"):
        expected = np.mean([figures[name] for figures in slow])
        if math.isnan(expected):
            assert record[name] is None, name
        else:
            assert record[name] == pytest.approx(expected, rel=1e-4), name

    state = load_checkpoint(tmp_path / "run")
    if state["teacher"] is None:
        assert record["ema_distance"] is None
    else:
        teacher, student = state["teacher"], state["model"]
        apart = torch.cat([(teacher[name] - student[name]).flatten() for name in teacher])
        size = torch.cat([student[name].flatten() for name in teacher])
        expected = (apart.double().norm() / size.double().norm()).item()
        assert 0 < record["ema_distance"] == pytest.approx(expected, rel=1e-5)


def test_ema_distance_is_over_what_both_have() -> None:
    teacher, student = torch.nn.Linear(3, 2), torch.nn.Sequential()
    student.add_module("weight_of_another", torch.nn.Linear(5, 5))
    student.register_parameter("weight", torch.nn.Parameter(2 * teacher.weight.detach()))
    student.register_parameter("bias", torch.nn.Parameter(2 * teacher.bias.detach()))
    assert ema_distance(teacher, student).item() == pytest.approx(0.5)
