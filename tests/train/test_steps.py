"""Steps whose loss or gradient is not finite: what they leave alone, what is said, when it ends."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import run_together
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import clip_batches
from hpm_video.method import step as step_module
from hpm_video.method.step import PretrainStep
from hpm_video.runtime.distributed import World
from hpm_video.train import optim
from hpm_video.train import pretrain as pretraining
from hpm_video.train.run import Run, loop
from hpm_video.train.run.logs import read_records
from hpm_video.train.run.steps import BadSteps, step_unless
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]
HARD = ("masking.hard_ratio_start=0.5", "teacher.momentum_start=0.9", "teacher.momentum_end=0.9")


def _spoilt(loss: Tensor, how: str) -> Tensor:
    """A loss that is not finite, or whose gradient alone is not."""
    if how == "loss":
        return loss * torch.nan
    if how == "infinite loss":
        return loss + torch.inf
    zero = loss - loss
    return loss + (zero * zero).sqrt()


def spoil(patch: pytest.MonkeyPatch, calls: set[int], how: str = "loss") -> None:
    """Spoil the loss of these calls, counted from 1, of `pretrain_step`."""
    run_step, count = step_module.pretrain_step, 0

    def spoiling(*arguments: Any, **named: Any) -> PretrainStep:
        nonlocal count
        count += 1
        step = run_step(*arguments, **named)
        if count not in calls:
            return step
        return replace(step, losses={**step.losses, "loss": _spoilt(step.loss, how)})

    patch.setattr(step_module, "pretrain_step", spoiling)


def leave_out_updates(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Run these steps, counted from 1, without moving student, optimizer and teacher."""
    update, follow, count = torch.optim.AdamW.step, pretraining.update_teacher, 0

    def step(optimizer: torch.optim.AdamW) -> None:
        nonlocal count
        count += 1
        if count not in steps:
            update(optimizer)

    def update_teacher(*arguments: Any, **named: Any) -> None:
        if count not in steps:
            follow(*arguments, **named)

    patch.setattr(torch.optim.AdamW, "step", step)
    patch.setattr(pretraining, "update_teacher", update_teacher)


def videos_of_steps(
    manifest: Path, *, batch_size: int, steps: int, seed: int = 0
) -> list[set[str]]:
    """Names of the videos of every step of one process, from the loader alone."""
    videos = read_manifest([str(manifest)], root=None, labels=False)
    data = DataConfig(
        num_frames=4, frame_stride=1, crop_size=32, batch_size=batch_size, num_workers=0
    )
    batches = clip_batches(
        videos,
        data,
        accumulation=1,
        world=World(0, 1, torch.device("cpu")),
        seed=0,
        start_step=0,
        num_steps=steps,
    )
    return [{videos.name(i) for i in batch.indices.tolist()} for batch in batches]


def said_skipped(folder: Path) -> dict[int, set[str]]:
    """Steps that log.txt calls skipped, with the videos it names."""
    lines = (folder / "log.txt").read_text().splitlines()
    found = [re.search(r" step (\d+) skipped: .*log\.txt\): (.*)", line) for line in lines]
    return {int(match[1]): set(match[2].split(", ")) for match in found if match}


def tensors(state: dict[str, Any]) -> Iterator[Tensor]:
    for part in ("model", "teacher"):
        yield from (state.get(part) or {}).values()
    for moments in state["optimizer"].values():
        yield from moments.values()


def assert_same_weights(one: Path, other: Path) -> None:
    mine, theirs = [list(tensors(load_checkpoint(folder))) for folder in (one, other)]
    assert len(mine) == len(theirs) > 50
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def untimed(folder: Path) -> list[dict[str, float]]:
    timing = {"clips_per_second", "data_wait_fraction"}
    return [{k: v for k, v in r.items() if k not in timing} for r in read_records(folder)]


@pytest.fixture(params=["at once", "at records"])
def host_looks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Also as where the host would have to wait for a device, which the CPU stands for here."""
    monkeypatch.setattr(loop, "can_look_at_once", lambda device: request.param == "at once")
    return str(request.param)


@pytest.mark.parametrize("how", ["loss", "infinite loss", "gradient"])
def test_bad_steps_move_nothing_and_are_named(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    toy: Path,
    how: str,
    host_looks: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bad = {1, 5, 6, 7, 10, 12}
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, bad, how)
        assert main(pretrain_arguments(tmp_path / "bad", *HARD, "run.max_bad_steps=4")) == 0
    with pytest.MonkeyPatch.context() as patch:
        leave_out_updates(patch, bad)
        assert main(pretrain_arguments(tmp_path / "without", *HARD)) == 0
    assert_same_weights(tmp_path / "bad", tmp_path / "without")

    videos = videos_of_steps(toy, batch_size=4, steps=12)
    assert said_skipped(tmp_path / "bad") == {step: videos[step - 1] for step in bad}
    assert all(len(names) == 4 for names in videos)
    shown = capsys.readouterr().out
    assert "step 10 skipped: its loss or gradient is not finite (4 videos" in shown
    assert not [name for name in videos[9] if name in shown]  # those are in log.txt

    records = {record["step"]: record for record in untimed(tmp_path / "bad")}
    assert [records[step]["skipped_steps"] for step in (2, 4, 6, 8, 10, 12)] == [1, 0, 2, 1, 1, 1]
    others = {record["step"]: record for record in untimed(tmp_path / "without")}
    assert records[4] == others[4]  # two good steps after a skipped one
    for step in (2, 8):  # the second of two steps was good
        assert records[step]["spearman"] == others[step]["spearman"] is not None
        total = records[step]["reconstruction_loss"] + records[step]["prediction_loss"]
        assert records[step]["loss"] == pytest.approx(total, rel=1e-5)
    for name in ("loss", "grad_norm", "grad_norm_max", "spearman", "ema_distance"):
        assert records[6][name] is None, name  # both were bad
    assert records[10]["loss"] is not None and records[10]["spearman"] is None
    assert records[6]["lr"] == others[6]["lr"]  # schedules go on


def test_one_bad_micro_batch_is_a_bad_step(
    tmp_path: Path, pretrain_arguments: Arguments, toy: Path
) -> None:
    settings = (*HARD, "optim.accumulation=2")
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {3})  # the first half of the second of six steps
        assert main(pretrain_arguments(tmp_path / "bad", *settings)) == 0
    with pytest.MonkeyPatch.context() as patch:
        leave_out_updates(patch, {2})
        assert main(pretrain_arguments(tmp_path / "without", *settings)) == 0
    assert_same_weights(tmp_path / "bad", tmp_path / "without")
    videos = videos_of_steps(toy, batch_size=8, steps=2)
    assert said_skipped(tmp_path / "bad") == {2: videos[1]}


@pytest.mark.parametrize(("first_bad", "minutes"), [(1, 20), (4, 20), (5, 0), (6, 20)])
def test_too_many_in_a_row_end_a_run_which_continues_from_before_them(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    host_looks: str,
    first_bad: int,
    minutes: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whether they begin a period, are within it or at its end; with a checkpoint at each step or
    none before."""
    settings = (*HARD, "run.log_every=5", "optim.epochs=3", "model.drop_path=0.2")
    arguments = pretrain_arguments(
        *(tmp_path / "run", *settings, "run.max_bad_steps=3"),
        f"run.checkpoint_every_minutes={minutes}",
    )
    with pytest.MonkeyPatch.context() as patch:
        # Two, which are forgiven, and all from first_bad on
        forgiven = {1, 2} if first_bad > 3 else set()
        spoil(patch, forgiven | set(range(first_bad, 19)))
        assert main(arguments) == 1
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert "stopped after 3 steps in a row whose loss or gradient was not finite" in stderr
    assert f"checkpoint (step {first_bad - 1}) is from before them" in stderr
    assert stderr.strip().removeprefix("hpm-video pretrain: ") in (
        (tmp_path / "run" / "log.txt").read_text()
    )
    bad = forgiven | {first_bad, first_bad + 1, first_bad + 2}
    assert said_skipped(tmp_path / "run").keys() == bad
    state = load_checkpoint(tmp_path / "run")
    assert state["step"] == first_bad - 1
    assert [len(rows) for rows in state["window"]] == [(first_bad - 1) % 5]
    checkpoints = os.listdir(tmp_path / "run" / "checkpoints")
    assert max(checkpoints) == f"step_{first_bad - 1:08d}.pt"

    assert main(arguments) == 0  # now that nothing is spoilt
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, forgiven)
        assert main(pretrain_arguments(tmp_path / "whole", *settings)) == 0
    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_a_signal_among_bad_steps_saves_the_state_before_them(
    tmp_path: Path, pretrain_arguments: Arguments, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {6, 7})
    schedule = optim.lr_schedule

    def signalling(*arguments: Any, **named: Any) -> Callable[[int], float]:
        lr_at = schedule(*arguments, **named)

        def at(step: int) -> float:
            if step == 6:
                os.kill(os.getpid(), signal.SIGTERM)
            return lr_at(step)

        return at

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optim, "lr_schedule", signalling)
            assert main(pretrain_arguments(tmp_path / "run", "run.log_every=4")) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert load_checkpoint(tmp_path / "run")["step"] == 5
    assert "stopped and saved after step 5 of 12" in (tmp_path / "run" / "log.txt").read_text()


# A loss that is not a number on rank 1 alone, at these steps.
SPOILT = """
import torch
from dataclasses import replace
from hpm_video.method import step as step_module

run_step, count = step_module.pretrain_step, 0
def spoiling(*arguments, **named):
    global count
    count += 1
    step = run_step(*arguments, **named)
    is_bad = named["rows"][0] > 0 and count in STEPS
    losses = {**step.losses, "loss": step.loss + torch.inf}
    return replace(step, losses=losses) if is_bad else step
step_module.pretrain_step = spoiling
"""


def test_all_processes_skip_and_stop_together(
    tmp_path: Path, pretrain_arguments: Arguments, toy: Path
) -> None:
    settings = (*HARD, "optim.epochs=3", "run.log_every=4", "run.max_bad_steps=2")
    arguments = pretrain_arguments(tmp_path / "run", *settings)  # 9 steps
    for done in run_together(2, [arguments], before=SPOILT.replace("STEPS", "(2, 6, 7)")):
        assert done.returncode == 1, done.stderr
        assert "stopped after 2 steps in a row" in done.stderr
    assert load_checkpoint(tmp_path / "run")["step"] == 5
    videos = videos_of_steps(toy, batch_size=8, steps=9)
    assert said_skipped(tmp_path / "run") == {step: videos[step - 1] for step in (2, 6, 7)}
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, {2, 6, 7})
        one = pretrain_arguments(tmp_path / "one", *settings, "data.batch_size=8")
        assert main(one) == 1
    mine, theirs = (load_checkpoint(tmp_path / name)["model"] for name in ("run", "one"))
    for name, value in mine.items():
        if name not in ("predictor.head.bias", "predictor.norm.bias"):  # no gradient
            assert (value - theirs[name]).abs().max() < 5e-5, name


def test_fine_tuning_has_the_same_rule(
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    host_looks: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cross_entropy = torch.nn.functional.cross_entropy

    def spoil_loss(patch: pytest.MonkeyPatch, steps: set[int]) -> None:
        count = 0

        def spoiling(*arguments: Any, **named: Any) -> Tensor:
            nonlocal count
            count += 1
            loss = cross_entropy(*arguments, **named)
            return loss * torch.nan if count in steps else loss

        patch.setattr(torch.nn.functional, "cross_entropy", spoiling)

    settings = ("model.drop_path=0.2", "run.max_bad_steps=3", "optim.epochs=2")
    with pytest.MonkeyPatch.context() as patch:
        spoil_loss(patch, {3, 4, 8})
        assert main(finetune_arguments(tmp_path / "bad", *settings)) == 0
    with pytest.MonkeyPatch.context() as patch:
        leave_out_updates(patch, {3, 4, 8})
        assert main(finetune_arguments(tmp_path / "without", *settings)) == 0
    assert_same_weights(tmp_path / "bad", tmp_path / "without")
    videos = videos_of_steps(toy, batch_size=4, steps=12)
    assert said_skipped(tmp_path / "bad") == {step: videos[step - 1] for step in (3, 4, 8)}
    assert [r["skipped_steps"] for r in untimed(tmp_path / "bad")] == [0, 2, 0, 1, 0, 0]

    with pytest.MonkeyPatch.context() as patch:
        spoil_loss(patch, {6, 7, 8, 9})
        assert main(finetune_arguments(tmp_path / "stopped", *settings)) == 1
    assert "checkpoint (step 5) is from before them" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "stopped")["step"] == 5


def test_the_device_lets_nothing_pass_after_too_many() -> None:
    """Until the host learns of it: also a good step."""
    bad = BadSteps(torch.device("cpu"), max_in_a_row=2)
    nan = torch.nan
    judged = [bad.judge(torch.tensor(1.0 + x)).item() for x in (nan, 0, nan, nan, 0, 0)]
    assert judged == [1, 0, 1, 1, 1, 1]
    rows = [torch.zeros(1)]
    told = [bad.note(skipped=bool(s), steps_done=k, rows=rows) for k, s in enumerate(judged)]
    assert told == [True, False, True, True, False, False]
    assert bad.is_over and bad.before == (2, rows)


def test_an_optimizer_told_to_skip_stays_as_it_is() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
    for skip in (1.0, 0.0, 1.0):
        before = weight.detach().clone()
        weight.grad = torch.full((3,), torch.nan if skip else 1.0)
        step_unless(torch.tensor(skip), optimizer)
        assert torch.equal(weight, before) == bool(skip)
        assert weight.isfinite().all()
    assert optimizer.state[weight]["step"] == 1


@pytest.mark.gpu
@pytest.mark.parametrize(
    "how",
    [
        ("masking.ramp=time",),
        ("masking.ramp=competence",),
        ("masking.source=motion", "masking.pattern=blocks"),
        ("masking.source=measured", "masking.ramp=competence"),
    ],
)
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_no_step_waits_for_the_gpu(
    tmp_path: Path,
    pretrain_arguments: Arguments,
    monkeypatch: pytest.MonkeyPatch,
    gpu: torch.device,
    graphs: str,
    how: tuple[str, ...],
) -> None:
    """But for records and checkpoints: PyTorch raises an error if one does. A bad one included."""
    steps, waiting_is_wrong = Run.steps, range(4, 9)  # one is captured before

    def watched(run: Run) -> Iterator[int]:
        for step in steps(run):
            mode = "error" if step in waiting_is_wrong else "default"
            torch.cuda.set_sync_debug_mode(mode)
            yield step

    monkeypatch.setattr(Run, "steps", watched)
    spoil(monkeypatch, {6})  # calls, of which graphs make no more
    settings = (
        *("run.device=cuda", "run.compile=false", f"run.cuda_graphs={graphs}"),
        *("run.log_every=100", "masking.hard_ratio_end=0.5", *HARD, *how),
    )
    try:
        assert main(pretrain_arguments(tmp_path / "run", *settings)) == 0
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert said_skipped(tmp_path / "run").keys() == (set() if graphs == "true" else {6})
