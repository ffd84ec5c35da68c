"""Runs whose masks go by other scores than a teacher's: records, resume, and several processes."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import run_together
from runs import assert_same_run, run_until_stopped, tensors

from hpm_video.cli.main import main
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
SOURCES = {
    "motion": ("masking.source=motion", "loss.prediction=none"),
    "motion in blocks": ("masking.source=motion", "masking.pattern=blocks"),
    "measured": ("masking.source=measured",),
    "measured, waits": (
        *("masking.source=measured", "masking.ramp=competence", "masking.tube_length=1"),
        *("masking.competence_low=0.499", "masking.competence_high=0.501"),
    ),
    "none": ("masking.source=none",),
}


@pytest.mark.parametrize("name", SOURCES)
def test_records_say_what_was_masked(
    tmp_path: Path, pretrain_arguments: Arguments, name: str
) -> None:
    assert main(pretrain_arguments(tmp_path / "run", *SOURCES[name], "run.log_every=1")) == 0
    state = load_checkpoint(tmp_path / "run")
    assert state["teacher"] is None
    for record in read_records(tmp_path / "run"):
        assert record["momentum"] is record["ema_distance"] is None
        if name == "none":
            assert record["hard_ratio"] == record["hard_share"] == 0
            assert record["hard_loss"] is None and record["random_loss"] > 0
            continue
        if "waits" not in name:
            assert record["hard_ratio"] == pytest.approx(record["step"] / 12)
        # Of 16 tubes, blocks of two need not hold all that may be hard
        masked = 24 if "waits" in name else 12
        num_hard = math.floor(masked * record["hard_ratio"] + 1e-9)
        if "blocks" in name:
            assert 0 < record["hard_share"] * masked <= num_hard + 1e-6
        else:
            assert record["hard_share"] == pytest.approx(num_hard / masked)
        assert (record["hard_loss"] is not None) == (record["hard_share"] > 0)


@pytest.mark.parametrize("name", SOURCES)
def test_a_stopped_run_continues_as_if_nothing_had_happened(
    tmp_path: Path, pretrain_arguments: Arguments, name: str
) -> None:
    settings = (*SOURCES[name], "optim.epochs=4", "run.log_every=5", "model.drop_path=0.2")
    assert main(pretrain_arguments(tmp_path / "whole", *settings)) == 0
    arguments = pretrain_arguments(tmp_path / "run", *settings)
    run_until_stopped(arguments, at=12)
    assert main(arguments) == 0
    assert_same_run(tmp_path / "run", tmp_path / "whole", has_teacher=False)


@pytest.fixture(scope="module")
def split_runs(tmp_path_factory: pytest.TempPathFactory, pretrain_arguments: Arguments) -> Path:
    """The same steps by one process at once and in two parts, and by two under DDP and FSDP."""
    folder = tmp_path_factory.mktemp("split")
    for name in ("motion in blocks", "measured"):
        one = ("optim.epochs=2", "run.log_every=1", *SOURCES[name])
        at = folder / name
        assert main(pretrain_arguments(at / "whole", *one, "data.batch_size=8")) == 0
        assert main(pretrain_arguments(at / "parts", *one, "optim.accumulation=2")) == 0
        two = [
            pretrain_arguments(at / "ddp", *one),
            pretrain_arguments(at / "fsdp", *one, "run.parallel=fsdp"),
        ]
        for done in run_together(2, two):
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("source", ["motion in blocks", "measured"])
@pytest.mark.parametrize("name", ["parts", "ddp", "fsdp"])
def test_how_a_step_is_divided_changes_nothing(split_runs: Path, source: str, name: str) -> None:
    mine, whole = (read_records(split_runs / source / each) for each in (name, "whole"))
    assert len({record["hard_share"] for record in whole}) > 2
    for one, other in zip(mine, whole, strict=True):
        assert one["hard_share"] == pytest.approx(other["hard_share"])
        for figure in ("hard_ratio", "loss", "reconstruction_loss"):
            assert one[figure] == pytest.approx(other[figure], rel=2e-4), figure
    weights, others = (tensors(split_runs / source / each) for each in (name, "whole"))
    # But for biases that add the same to all predictions of a clip
    names = [n for n in weights if n.startswith("/model/") and not n.endswith("bias")]
    assert names
    for each in names:
        assert (weights[each] - others[each]).abs().max() < 1e-3, each
