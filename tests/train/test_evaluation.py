"""Which checkpoint of a fine-tuning is kept as the best, also over interruptions."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from processes import run_together
from runs import run_until_stopped

from hpm_video.cli.main import main
from hpm_video.evaluate.predictions import Evaluation
from hpm_video.train.run import evaluation as run_evaluation
from hpm_video.train.run.evaluation import BestCheckpoint
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import load_checkpoint

Arguments = Callable[..., list[str]]


def _state(value: float) -> dict[str, Any]:
    weights = {"weight": torch.full((2,), value)}
    return {"kind": "finetune", "config": {}, "model": weights, "optimizer": {"state": {}}}


def _kept(folder: Path) -> tuple[int, float, float]:
    """Step, top-1 and weight of what is there."""
    state = load_checkpoint(folder / "best.pt", kind="finetune")
    assert "optimizer" not in state
    return state["step"], state["top1"], float(state["model"]["weight"][0])


def _offer(best: BestCheckpoint, value: float, *, step: int, top1: float) -> bool:
    return best.offer(_state(value), step=step, value=top1, top1=top1)


@pytest.mark.parametrize("first", [False, True])
def test_of_equals_the_later_is_kept(first: bool, tmp_path: Path) -> None:
    """The earlier in runs from before there was a choice."""
    best = BestCheckpoint(tmp_path, best_by="first_top1" if first else "top1", is_new=True)
    for step, top1, is_best in [
        *((2, 0.0, True), (4, 0.5, True), (6, 0.5, not first), (8, 0.25, False)),
        *((10, 0.75, True), (12, 0.75, not first)),
    ]:
        assert _offer(best, step, step=step, top1=top1) == is_best
    assert _kept(tmp_path) == ((10, 0.75, 10.0) if first else (12, 0.75, 12.0))
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_run_that_goes_on_knows_its_best(tmp_path: Path) -> None:
    _offer(BestCheckpoint(tmp_path, best_by="top1", is_new=True), 1, step=6, top1=0.5)
    best = BestCheckpoint(tmp_path, best_by="top1", is_new=False)
    # Steps that an interruption took back are evaluated again
    assert not _offer(best, 2, step=6, top1=0.5)
    assert not _offer(best, 2, step=4, top1=0.5)
    assert _kept(tmp_path) == (6, 0.5, 1.0)
    assert _offer(best, 3, step=8, top1=0.5)
    assert _offer(best, 4, step=10, top1=0.75)
    BestCheckpoint(tmp_path, best_by="top1", is_new=True)
    assert not list(tmp_path.iterdir()), "of an earlier start with other settings"


def _evaluations_with(top1s: list[float], patch: pytest.MonkeyPatch) -> None:
    """Has the k-th evaluation of every run find the k-th top-1, of four videos."""
    calls = count()

    def evaluated(*_: object, **__: object) -> Evaluation:
        right = round(4 * top1s[next(calls)])
        scores = np.eye(8, dtype=np.float32)[[0] * right + [1] * (4 - right)]
        return Evaluation(scores, np.zeros(4, dtype=np.int64), ("x",) * 4, ())

    patch.setattr(run_evaluation, "evaluate_classifier", evaluated)


def test_an_interrupted_run_keeps_the_same_best(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the third of four epochs of 6 steps, right after the best was found."""
    top1s = [0.25, 0.75, 0.5, 0.5]
    settings = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1", "optim.epochs=4"),
        "run.log_every=7",
    )
    _evaluations_with(top1s, monkeypatch)
    assert main(finetune_arguments(tmp_path / "whole", *settings)) == 0

    _evaluations_with(top1s, monkeypatch)
    arguments = finetune_arguments(tmp_path / "stopped", *settings)
    run_until_stopped(arguments, at=12)
    assert main(arguments) == 0

    one, other = (
        load_checkpoint(tmp_path / name / "checkpoints" / "best.pt")
        for name in ("stopped", "whole")
    )
    for state in (one, other):
        assert (state["step"], state["top1"]) == (12, 0.75)
    assert all(torch.equal(value, other["model"][name]) for name, value in one["model"].items())
    last = load_checkpoint(tmp_path / "whole")
    assert last["step"] == 24
    assert not torch.equal(last["model"]["head.weight"], one["model"]["head.weight"])


def test_it_is_to_be_used_not_to_be_continued(
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Evaluated where it is asked for; the command says which checkpoint it took."""
    _evaluations_with([0.5, 0.25], monkeypatch)
    settings = (f"data.val_manifest={toy}", "evaluation.every_epochs=1")
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    command = ["evaluate", str(tmp_path / "run"), "--manifest", str(toy), "num_workers=0"]
    command += ["device=cpu", "evaluation.num_clips=1", "evaluation.num_crops=1"]
    capsys.readouterr()
    for choice, step, folder in [("last", 12, "manifest"), ("best", 6, "manifest_best")]:
        assert main([*command, f"checkpoint={choice}"]) == 0
        said = capsys.readouterr().out
        assert f", step {step}\n" in said
        assert f"{tmp_path / 'run' / 'evaluation' / folder / 'index.html'}\n" in said

    file = tmp_path / "run" / "checkpoints" / "best.pt"
    assert main(finetune_arguments(tmp_path / "other", f"run.resume={file}")) == 2
    assert "has no optimizer state: must be a step_*.pt or last" in capsys.readouterr().err
    file.unlink()
    assert main([*command, "checkpoint=best"]) == 2
    assert "holds no checkpoints/best.pt" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("top1s", "names_best"), [([0.25, 0.5], False), ([0.5, 0.5], False), ([0.5, 0.25], True)]
)
def test_the_closing_lines_name_the_best_unless_it_is_the_last(
    top1s: list[float],
    names_best: bool,
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _evaluations_with(top1s, monkeypatch)
    settings = (f"data.val_manifest={toy}", "evaluation.every_epochs=1")
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    _, _, closing = capsys.readouterr().out.partition("\nnext:\n")
    assert ("checkpoint=best" in closing) == ("for the last epoch" in closing) == names_best
    assert main(["evaluate", str(tmp_path / "run"), "num_workers=0", "device=cpu"]) == 0
    said = capsys.readouterr().out
    assert ("checkpoint=best" in said) == names_best
    assert ("it has the best top1" in said) != names_best


# Of two classes, of which the first has three of four videos: top-1, balanced accuracy and loss
# each call another evaluation the best
_LABELS = np.array([0, 0, 0, 1])
_SCORES = {
    "top1": [[0.51, 0.49]] * 4,  # all in the first class: top-1 .75, balanced .5, loss .68
    "balanced_accuracy": [[0.51, 0.49], [0.05, 0.95], [0.05, 0.95], [0.1, 0.9]],  # .5, .67, 1.7
    "loss": [[0.9, 0.1], [0.49, 0.51], [0.49, 0.51], [0.51, 0.49]],  # .25, .17, .55
}


def _evaluations_of(names: list[str], patch: pytest.MonkeyPatch, *, start: int = 0) -> None:
    """Has the k-th evaluation of a run, counted from ``start``, be one of the above."""
    calls = count(start)

    def evaluated(*_: object, **__: object) -> Evaluation:
        scores = np.array(_SCORES[names[next(calls)]], dtype=np.float32)
        return Evaluation(scores, _LABELS, ("x",) * 4, (), ("left", "right"))

    patch.setattr(run_evaluation, "evaluate_classifier", evaluated)


@pytest.mark.parametrize("best_by", ["top1", "balanced_accuracy", "loss"])
def test_the_best_is_chosen_by_what_is_asked(
    best_by: str,
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _evaluations_of([*_SCORES, *_SCORES], monkeypatch)
    settings = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1", "optim.epochs=6"),
        *(f"evaluation.best_by={best_by}", "run.log_every=7"),
    )
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 0
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.pt")
    assert state["step"] == 6 * (4 + list(_SCORES).index(best_by)), "of equals, the later"
    records = [r for r in read_records(tmp_path / "run") if "top1" in r]
    rows = np.array(_SCORES["loss"])[np.arange(4), _LABELS]
    assert records[2]["val_loss"] == pytest.approx(-np.log(rows).mean(), abs=1e-6)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count("best so far, saved as checkpoints/best.pt") >= 1
    assert log.count("equals the best so far: the later one is kept, saved as checkpoints") == 1
    assert log.count("warning: every video is predicted as 0 left: ") == 2
    said = "balanced_accuracy (0.167) is at chance (0.500, 1 of 2 classes with videos; standard"
    assert log.count(f"warning: {said}") == 2


def test_a_run_ends_when_nothing_gets_better(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it was interrupted while it waited; a tie is no better. More patience goes on."""
    names = ["loss", "top1", "loss", "top1", "loss", "top1"]
    settings = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1", "optim.epochs=6"),
        "run.log_every=7",
    )
    patient = (*settings, "evaluation.patience=2")
    _evaluations_of(names, monkeypatch)
    whole = finetune_arguments(tmp_path / "whole", *patient)
    assert main(whole) == 0
    _evaluations_of(names, monkeypatch)
    stopped = finetune_arguments(tmp_path / "stopped", *patient)
    run_until_stopped(stopped, at=20)
    _evaluations_of(names, monkeypatch, start=3)
    assert main(stopped) == 0
    states = [load_checkpoint(tmp_path / name) for name in ("whole", "stopped")]
    for state in states:
        assert (state["step"], state["since_best"], state["best_so_far"]) == (24, 2, 0.75)
    weights = [state["model"]["head.weight"] for state in states]
    assert torch.equal(*weights)
    folder = tmp_path / "whole"
    said = "stopped early: no better top1 in 2 evaluations in a row"
    assert (folder / "log.txt").read_text().count(said) == 1
    assert main(whole) == 0
    assert load_checkpoint(folder)["step"] == 24
    _evaluations_of(names, monkeypatch, start=4)
    assert main(finetune_arguments(folder, *settings)) == 0
    assert load_checkpoint(folder)["step"] == 36


def test_a_run_from_before_there_was_a_choice_goes_on_as_it_began(
    tmp_path: Path,
    finetune_arguments: Arguments,
    toy: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1", "optim.epochs=4"),
        "run.log_every=7",
    )
    _evaluations_with([0.5, 0.5, 0.5, 0.5], monkeypatch)
    arguments = finetune_arguments(tmp_path / "run", *settings)
    run_until_stopped(arguments, at=8)
    folder = tmp_path / "run"
    file = folder / "checkpoints" / os.readlink(folder / "checkpoints" / "last")
    state = load_checkpoint(file, optimizer=True)
    for name in ("best_by", "patience"):
        del state["config"]["evaluation"][name]
    old = {n: value for n, value in state.items() if n not in ("best_so_far", "since_best")}
    torch.save(old, file)
    yaml = [line for line in (folder / "config.yaml").read_text().splitlines() if line]
    kept = [line for line in yaml if line.split(":")[0].strip() not in ("best_by", "patience")]
    assert len(kept) == len(yaml) - 2
    (folder / "config.yaml").write_text("\n".join(kept) + "\n")
    assert main(finetune_arguments(folder, *settings, "evaluation.best_by=loss")) == 2
    assert "to continue the old one, set evaluation.best_by=first_top1" in capsys.readouterr().err
    assert main(arguments) == 0
    assert load_checkpoint(folder / "checkpoints" / "best.pt")["step"] == 6
    assert "evaluation.best_by=auto: first_top1 (as before)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "rule"),
    [
        (["evaluation.patience=2"], "must be 0 while evaluation.every_epochs is 0"),
        (["evaluation.patience=2", "evaluation.every_epochs=1"], "0 without data.val_manifest"),
        (["evaluation.patience=-1"], "evaluation.patience (-1) must be at least 0"),
        (["evaluation.best_by=top3"], "evaluation.best_by (top3) must be one of"),
    ],
)
def test_patience_without_evaluations_is_refused(
    settings: list[str],
    rule: str,
    tmp_path: Path,
    finetune_arguments: Arguments,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(finetune_arguments(tmp_path / "run", *settings)) == 2
    assert rule in capsys.readouterr().err


def test_two_processes_end_at_the_same_step(
    tmp_path: Path, finetune_arguments: Arguments, toy: Path
) -> None:
    """With a rate of 0 nothing ever gets better."""
    settings = (
        *(f"data.val_manifest={toy}", "evaluation.every_epochs=1", "evaluation.patience=1"),
        *("optim.epochs=5", "run.log_every=4", "optim.base_lr=0", "optim.min_lr=0"),
        *("optim.warmup_lr=0", "data.batch_size=2", "evaluation.num_clips=1"),
    )
    arguments = finetune_arguments(tmp_path / "run", *settings)
    processes = run_together(2, [arguments])
    assert [done.returncode for done in processes] == [0, 0], processes[0].stderr
    assert load_checkpoint(tmp_path / "run")["step"] == 12
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "stopped early: no better top1 in 1 evaluations" in log


def test_chance_is_that_of_guessing() -> None:
    labels = np.repeat(np.arange(4), 25)

    def result(right: int) -> Evaluation:
        called = (labels + 1) % 4
        called[np.arange(100) % 25 < right] = labels[np.arange(100) % 25 < right]
        return Evaluation(np.eye(4, dtype=np.float32)[called], labels, ("x",) * 100, ())

    assert run_evaluation.at_chance(result(7)) is not None  # .28; .25 and an error of .043
    assert run_evaluation.at_chance(result(8)) is None  # .32
    one_class = Evaluation(np.ones((4, 2), np.float32), np.zeros(4, np.int64), ("x",) * 4, ())
    assert run_evaluation.at_chance(one_class) is None
