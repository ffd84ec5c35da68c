"""Saving beside the training: what is written is what was there, and no failure is lost."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import run_until_stopped

from hpm_video.cli.main import main
from hpm_video.config import RunConfig
from hpm_video.runtime.distributed import World
from hpm_video.train.run import saving
from hpm_video.train.run.saving import Saver
from hpm_video.weights.checkpoint import load_checkpoint, remove_history, run_checkpoints

ALONE = World(0, 1, torch.device("cpu"))


def _state(step: int, weight: torch.Tensor) -> dict[str, Any]:
    return {"kind": "pretrain", "config": {}, "step": step, "model": {"a": weight}, "window": []}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_training_goes_on_and_what_is_written_is_what_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parallel: Any
) -> None:
    name = "save_sharded" if parallel == "fsdp" else "save_checkpoint"
    write, may_write = getattr(saving, name), threading.Event()

    def late(*arguments: Any, **named: Any) -> Path:
        assert may_write.wait(60)
        path: Path = write(*arguments, **named)
        return path

    monkeypatch.setattr(saving, name, late)
    saver = Saver(tmp_path, RunConfig(parallel=parallel), ALONE)
    weight = torch.zeros(3)
    saver.save(_state(1, weight))
    weight += 1  # the next step
    saver.check()
    assert not (tmp_path / "last").exists()
    may_write.set()
    saver.save(_state(2, weight))  # one after the other
    weight += 1
    saver.close()
    for step in (1, 2):
        (path,) = tmp_path.glob(f"step_{step:08d}*")
        assert torch.equal(load_checkpoint(path)["model"]["a"], torch.full((3,), step - 1.0))
    assert load_checkpoint(tmp_path)["step"] == 2


@pytest.mark.parametrize("told_by", ["check", "wait", "save", "close"])
def test_a_failed_save_raises_in_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told_by: str
) -> None:
    def fail(*arguments: Any, **named: Any) -> Path:
        raise OSError("no space left on device")

    monkeypatch.setattr(saving, "save_checkpoint", fail)
    saver = Saver(tmp_path, RunConfig(), ALONE)
    state = _state(1, torch.zeros(1))
    saver.save(state)
    assert saver._pending is not None
    saver._pending.exception(timeout=60)
    with pytest.raises(OSError, match="no space left"):
        getattr(saver, told_by)(*[state] if told_by == "save" else [])
    saver.close()  # said once


def test_at_once_where_asked_for(tmp_path: Path) -> None:
    saver = Saver(tmp_path, RunConfig(save_in_background=False), ALONE)
    saver.save(_state(1, torch.zeros(1)))
    assert load_checkpoint(tmp_path)["step"] == 1
    saver.close()


def test_one_process_of_several_writes_a_single_file(tmp_path: Path) -> None:
    saver = Saver(tmp_path, RunConfig(), World(1, 2, torch.device("cpu")))
    saver.save(_state(1, torch.zeros(1)))
    saver.close()
    assert not list(tmp_path.iterdir())


def _history(run: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in (run / "checkpoints" / "history").glob("step_*"))


def test_checkpoints_to_look_at_are_spread_over_the_run(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    """Beside those to go on from, of which there are as many as before."""
    run, settings = tmp_path / "run", ["optim.epochs=4", "run.checkpoint_every_minutes=0"]
    assert main(pretrain_arguments(run, *settings)) == 0
    assert _history(run) == [2, 4, 7, 9, 12, 14, 16, 19, 21]  # of 24 steps
    assert list(run_checkpoints(run)) == [23, 24]
    assert list(run_checkpoints(run, history=True)) == [*_history(run), 23, 24]
    shown = load_checkpoint(run / "checkpoints" / "history" / "step_00000012.pt")
    assert shown["teacher"] is not None and "optimizer" not in shown
    text = (run / "log.txt").read_text()
    assert re.search(
        r"the newest 2 are kept.* 9 spread over the run are kept to evaluate, .* in all", text
    )
    few = tmp_path / "few"
    assert main(pretrain_arguments(few, *settings, "run.history_checkpoints=3")) == 0
    assert _history(few) == [8, 16]
    # A start that is turned back leaves nothing of a future that did not come
    remove_history(few / "checkpoints", after=8)
    assert _history(few) == [8]


def test_a_run_that_goes_on_has_the_same_ones(
    tmp_path: Path, pretrain_arguments: Callable[..., list[str]]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert main(pretrain_arguments(whole)) == 0
    run_until_stopped(pretrain_arguments(parts), at=5)
    assert main(pretrain_arguments(parts)) == 0
    assert _history(parts) == _history(whole) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    for step in _history(whole):
        one, other = (
            load_checkpoint(run / "checkpoints" / "history" / f"step_{step:08d}.pt")
            for run in (whole, parts)
        )
        assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
