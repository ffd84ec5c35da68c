"""Runs with two predictors and masks that wait for the student: nothing else decides about them."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from processes import run_together
from runs import assert_same_run, run_until_stopped, tensors

from hpm_video.cli.main import main
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint, without_training

Arguments = Callable[..., list[str]]
BOTH = ("model.predictor_input=both", "teacher.token_ratio=0.5")
# So near chance that masks of these short runs get hard, and change from step to step
WAITS = (*BOTH, "masking.ramp=competence", "masking.competence_low=0.499")
WAITS += ("masking.competence_high=0.501",)
# As in test_pretrain: steps of eight clips, a teacher that moves
SPLIT = ("optim.epochs=2", "run.log_every=1", "teacher.momentum_start=0.5")
SPLIT += ("teacher.momentum_end=0.5",)


def _ratio(competence: float) -> float:
    return min(max((competence - 0.499) / (0.501 - 0.499), 0), 1)


def test_records_have_the_figures_of_both_and_what_masks_wait_for(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    settings = (*WAITS, "run.log_every=1", "loss.pixel_prediction_weight=0.5")
    assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    records = read_records(tmp_path / "run")
    mean = 0.5
    for record in records:
        assert record["competence"] == pytest.approx(mean, abs=1e-9)
        assert record["hard_ratio"] == pytest.approx(_ratio(mean), abs=1e-7)
        mean = 0.98 * mean + 0.02 * record["rank_accuracy"]
        of_pixels = record["pixel_prediction_loss"]
        total = record["reconstruction_loss"] + record["prediction_loss"] + 0.5 * of_pixels
        assert record["loss"] == pytest.approx(total, rel=1e-5)
        assert 0 <= record["pixel_rank_accuracy"] <= 1 and -1 <= record["pixel_spearman"] <= 1
        num_hard = math.floor(12 * record["hard_ratio"] + 1e-9)
        assert record["hard_share"] == pytest.approx(num_hard / 12)
    assert len({record["hard_share"] for record in records}) > 2
    state = load_checkpoint(tmp_path / "run")
    assert state["competence"].item() == pytest.approx(mean, abs=1e-9)
    assert "competence" not in without_training(state)
    assert {name.split(".")[0] for name in state["teacher"]} == {"pixel_predictor"}
    assert {name.split(".")[0] for name in state["model"]} > {"predictor", "pixel_predictor"}


def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments
) -> None:
    settings = (*WAITS, "optim.epochs=4", "run.log_every=5", "model.drop_path=0.2")
    settings += ("masking.competence_high=0.52",)  # not reached before the stop
    assert main(pretrain_arguments(tmp_path / "whole", *settings)) == 0
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    run_until_stopped(arguments, at=12)
    assert main(arguments) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole")
    kept = [load_checkpoint(tmp_path / name)["competence"] for name in ("run", "whole")]
    assert kept[0].equal(kept[1])
    ratios = [record["hard_ratio"] for record in read_records(tmp_path / "whole")]
    assert len(set(ratios)) > 2


def test_the_pace_of_records_decides_nothing(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    for every in (1, 5):
        settings = (*WAITS, f"run.log_every={every}")
        assert main(pretrain_arguments(tmp_path / str(every), *settings)) == 0
    mine, theirs = tensors(tmp_path / "1"), tensors(tmp_path / "5")
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


def test_a_checkpoint_from_before_goes_on(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    folder = tmp_path / "run"
    arguments = pretrain_arguments(folder, "optim.epochs=4")
    run_until_stopped(arguments, at=12)
    path = find_checkpoint(folder).resolve()
    state = torch.load(path, weights_only=True)
    for key in ("competence", "collapsed_records"):
        del state[key]
    del state["config"]["run"]["collapse_records"]
    for name in ("ramp", "source", "pattern"):
        del state["config"]["masking"][name]
    torch.save(state, path)
    assert main(arguments) == 0
    assert main(pretrain_arguments(tmp_path / "whole", "optim.epochs=4")) == 0
    assert_same_run(folder, tmp_path / "whole")


@pytest.fixture(scope="module")
def split_runs(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """The same steps by one process at once and in two parts, and by two under DDP and FSDP."""
    folder = tmp_path_factory.mktemp("split")
    one = (*SPLIT, *WAITS)
    assert main(pretrain_arguments(folder / "whole", *one, "data.batch_size=8")) == 0
    assert main(pretrain_arguments(folder / "parts", *one, "optim.accumulation=2")) == 0
    two = [
        pretrain_arguments(folder / "ddp", *one),
        pretrain_arguments(folder / "fsdp", *one, "run.parallel=fsdp"),
    ]
    for done in run_together(2, two):
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ["parts", "ddp", "fsdp"])
def test_how_a_step_is_divided_changes_nothing(split_runs: Path, name: str) -> None:
    mine, whole = (read_records(split_runs / each) for each in (name, "whole"))
    assert len({record["hard_share"] for record in whole}) > 2
    for one, other in zip(mine, whole, strict=True):
        assert one["hard_share"] == other["hard_share"]
        for figure in ("competence", "hard_ratio", "loss", "pixel_prediction_loss"):
            assert one[figure] == pytest.approx(other[figure], rel=2e-4), figure
    weights, others = (tensors(split_runs / each) for each in (name, "whole"))
    # But for biases that add the same to all predictions of a clip
    names = [n for n in weights if n.startswith("/teacher/") and not n.endswith("bias")]
    assert any("pixel_predictor" in n for n in names)
    for each in names:
        assert (weights[each] - others[each]).abs().max() < 1e-4, each
