"""float16: what a loss scale keeps of small gradients, and what overflows do to a run."""

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_together
from runs import assert_same_run, run_until_stopped
from torch import Tensor, nn

from hpm_video.cli.main import main
from hpm_video.models.precision import autocast
from hpm_video.train.run import loss_scale as module
from hpm_video.train.run.logs import read_records
from hpm_video.train.run.loss_scale import LossScale
from hpm_video.train.run.steps import BAD, GOOD, OVERFLOW, BadSteps
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
CPU = torch.device("cpu")
FLOAT16 = "run.precision=float16"


def _follow(scale: LossScale, verdict: float) -> float:
    """The scale after a step."""
    scale.follow(overflow=torch.tensor(verdict == OVERFLOW), skip=torch.tensor(float(verdict > 0)))
    return scale.value.item()


def test_it_moves_as_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS_TO_GROW", 3)
    ours, theirs = LossScale("float16", CPU), torch.amp.GradScaler("cpu", growth_interval=3)
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight])
    overflows = [1, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 1, 0, 0, 0]
    for overflow in overflows:
        weight.grad = torch.tensor([torch.inf if overflow else 1.0])
        theirs.scale(torch.zeros(()))
        theirs.step(optimizer)
        theirs.update()
        assert _follow(ours, OVERFLOW if overflow else GOOD) == theirs.get_scale()
    assert theirs.get_scale() != 2.0**16


def test_a_bad_step_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS_TO_GROW", 3)
    scale = LossScale("float16", CPU)
    assert [_follow(scale, verdict) for verdict in (GOOD, BAD, BAD, GOOD)] == [2.0**16] * 4
    assert _follow(scale, GOOD) == 2.0**17


def test_it_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEPS_TO_GROW", 1)
    scale = LossScale("float16", CPU)
    assert [_follow(scale, GOOD) for _ in range(20)][-1] == 2.0**24


def test_an_overflow_is_bad_only_where_no_lower_scale_can_mend_it() -> None:
    loss, inf = torch.tensor(1.0), torch.tensor(torch.inf)
    scale, bad = LossScale("float16", CPU), BadSteps(CPU, max_in_a_row=2)

    def judge(losses: Tensor, norm: Tensor) -> float:
        return bad.judge(losses + norm, scale.can_mend(losses, norm)).item()

    assert judge(loss, loss) == GOOD
    assert [judge(loss, inf) for _ in range(5)] == [OVERFLOW] * 5
    assert judge(inf, inf) == BAD  # no scale helps the forward pass
    assert judge(loss, inf) == OVERFLOW
    scale.value = torch.tensor(1.0)
    assert [judge(loss, norm) for norm in (inf, inf, loss, inf)] == [BAD] * 4  # too many


def test_other_precisions_scale_nothing() -> None:
    loss, weight = torch.tensor(3.0), nn.Linear(2, 2)
    weight(torch.ones(1, 2)).sum().backward()
    before = weight.weight.grad.clone()
    for precision in ("float32", "bfloat16"):
        scale = LossScale(precision, CPU)  # type: ignore[arg-type]
        assert scale.scaled(loss) is loss
        scale.unscale(weight)
        assert torch.equal(weight.weight.grad, before)
        assert scale.can_mend(loss, loss * torch.inf) is None


def test_gradients_too_small_for_float16_survive() -> None:
    """Of a loss as small as a mean over a large batch makes it, against float32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    inputs, targets = torch.randn(8, 64), torch.randn(8, 64)

    def gradient(scale: LossScale) -> Tensor:
        model.zero_grad()
        with autocast(CPU, "float16" if scale.is_on else "float32"):
            outputs = model(inputs)
        scale.scaled((outputs.float() - targets).square().mean() * 1e-6).backward()
        scale.unscale(model)
        return torch.cat([each.grad.flatten() for each in model.parameters()])

    exact, scaled = gradient(LossScale("float32", CPU)), gradient(LossScale("float16", CPU))
    one = {"value": torch.tensor(1.0), "good_steps": torch.tensor(0)}
    without = gradient(LossScale("float16", CPU, one))
    assert (scaled - exact).norm() < 0.01 * exact.norm()
    assert (without - exact).norm() > 0.3 * exact.norm()


@pytest.fixture
def too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """A first scale that overflows some times before it fits, and grows again soon."""
    monkeypatch.setattr(module, "_FIRST", 2.0**24)
    monkeypatch.setattr(module, "_STEPS_TO_GROW", 3)


def _overflows(folder: Path) -> list[int]:
    found = re.findall(r" step (\d+) skipped: .* overflows", (folder / "log.txt").read_text())
    return [int(step) for step in found]


@pytest.mark.parametrize("job", ["pretrain", "finetune"])
def test_overflows_are_no_bad_steps(
    job: str,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    too_large: None,
) -> None:
    """Even where one bad step would end the run; it learns from the others."""
    arguments: Arguments = request.getfixturevalue(f"{job}_arguments")
    settings = [FLOAT16, "run.max_bad_steps=1", "run.log_every=1", "optim.epochs=4"]
    assert main(arguments(tmp_path, *settings)) == 0
    records = [record for record in read_records(tmp_path) if "loss" in record]
    overflows = _overflows(tmp_path)
    assert overflows[:2] == [1, 2] and len(overflows) < len(records) / 2
    assert [r["step"] for r in records if r["skipped_steps"]] == overflows
    scales = [2.0**24, *(record["loss_scale"] for record in records)]
    for step, (before, after) in enumerate(pairwise(scales), start=1):
        assert after == before / 2 if step in overflows else after in (before, 2 * before)
    assert max(scales[len(overflows) :]) > min(scales)  # it has grown again
    losses = [record["loss"] for record in records if record["loss"] is not None]
    assert losses[-1] < losses[0]


def test_a_gradient_that_overflows_at_any_scale_is_bad(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "_FIRST", 4.0)
    monkeypatch.setattr(
        "hpm_video.train.pretrain.clip_gradients", lambda *_: torch.tensor(torch.inf)
    )
    assert main(pretrain_arguments(tmp_path, FLOAT16, "run.max_bad_steps=3")) == 1
    assert "stopped after 3 steps in a row" in capsys.readouterr().err
    assert _overflows(tmp_path) == [1, 2]  # 4 -> 2 -> 1
    state = load_checkpoint(tmp_path)
    assert state["step"] == 2 and state["loss_scale"]["value"] == 1


@pytest.mark.parametrize("at", [1, 6])
def test_a_run_continues_with_its_scale(
    tmp_path: Path, pretrain_arguments: Arguments, too_large: None, at: int
) -> None:
    """Stopped among the first overflows, and later."""
    settings = [FLOAT16, "optim.epochs=3", "model.drop_path=0.1", "optim.clip_grad=1.0"]
    assert main(pretrain_arguments(tmp_path / "whole", *settings)) == 0
    run_until_stopped(pretrain_arguments(tmp_path / "stopped", *settings), at=at)
    assert main(pretrain_arguments(tmp_path / "stopped", *settings)) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    scales = [load_checkpoint(tmp_path / name)["loss_scale"] for name in ("whole", "stopped")]
    assert scales[0] == scales[1]
    assert _overflows(tmp_path / "whole")[0] == 1


SPREAD = (
    *(FLOAT16, "optim.epochs=3", "run.log_every=1", "optim.accumulation=2", "optim.clip_grad=0.5"),
    *("teacher.momentum_start=0.5", "teacher.momentum_end=0.5"),
)
TOO_LARGE = """
from hpm_video.train.run import loss_scale
loss_scale._FIRST = 2.0**24
"""


def test_processes_agree_on_the_scale(tmp_path: Path, pretrain_arguments: Arguments) -> None:
    """Under DDP and under FSDP, whose gradients are cut: they do the same steps."""
    settings = (*SPREAD, "data.batch_size=3")
    jobs = [
        pretrain_arguments(tmp_path / parallel, *settings, f"run.parallel={parallel}")
        for parallel in ("ddp", "fsdp")
    ]
    for done in run_together(2, jobs, before=TOO_LARGE):
        assert done.returncode == 0, done.stderr
    mine, theirs = (read_records(tmp_path / parallel) for parallel in ("ddp", "fsdp"))
    assert mine[0]["skipped_steps"] == 1 and mine[-1]["skipped_steps"] == 0
    for one, other in zip(mine, theirs, strict=True):
        for name in ("loss_scale", "skipped_steps"):
            assert one[name] == other[name]
        if not one["skipped_steps"]:
            for name in ("loss", "grad_norm"):
                assert one[name] == pytest.approx(other[name], rel=2e-3)
    scales: list[Any] = [load_checkpoint(tmp_path / p)["loss_scale"] for p in ("ddp", "fsdp")]
    assert scales[0] == scales[1]
