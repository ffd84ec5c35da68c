"""Which checkpoint of a fine-tuning is kept as the best, also over interruptions."""

import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run_until_stopped

from hpm_video.cli.main import main
from hpm_video.evaluate.predictions import Evaluation
from hpm_video.train.run import evaluation as run_evaluation
from hpm_video.train.run.evaluation import BestCheckpoint
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


def test_of_equals_the_earlier_is_kept(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path, is_new=True)
    for step, top1, is_best in [
        *((2, 0.0, True), (4, 0.5, True), (6, 0.5, False), (8, 0.25, False)),
        *((10, 0.75, True), (12, 0.75, False)),
    ]:
        assert best.offer(_state(step), step=step, top1=top1) == is_best
    assert _kept(tmp_path) == (10, 0.75, 10.0)
    assert os.listdir(tmp_path) == ["best.pt"]


def test_a_run_that_goes_on_knows_its_best(tmp_path: Path) -> None:
    BestCheckpoint(tmp_path, is_new=True).offer(_state(1), step=6, top1=0.5)
    best = BestCheckpoint(tmp_path, is_new=False)
    # Steps that an interruption took back are evaluated again
    assert not best.offer(_state(2), step=6, top1=0.5)
    assert not best.offer(_state(2), step=8, top1=0.5)
    assert _kept(tmp_path) == (6, 0.5, 1.0)
    assert best.offer(_state(3), step=4, top1=0.5)
    assert best.offer(_state(4), step=10, top1=0.75)
    BestCheckpoint(tmp_path, is_new=True)
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
    top1s = [0.25, 0.75, 0.75, 0.5]
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
    assert "has no state of the optimizer: must be a step_*.pt or last" in capsys.readouterr().err
    file.unlink()
    assert main([*command, "checkpoint=best"]) == 2
    assert "holds no checkpoints/best.pt" in capsys.readouterr().err
