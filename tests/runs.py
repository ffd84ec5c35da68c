"""Runs that are stopped on the way, and whether two are the same but for how long they took."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpm_video.cli.main import main
from hpm_video.train import optim
from hpm_video.weights.checkpoint import load_checkpoint

_TIMING = re.compile(r', "clips_per_second": [^,]+, "data_wait_fraction": [^,]+}$')


def untimed(folder: Path) -> list[str]:
    """Lines of metrics.jsonl up to the two rates, which are no function of the settings."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert all(_TIMING.search(line) for line in lines)
    return [_TIMING.sub("", line) for line in lines]


def tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a run's last checkpoint: student, teacher and optimizer."""
    found: dict[str, Tensor] = {}

    def walk(value: Any, name: str) -> None:
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}/{key}")
        elif isinstance(value, list | tuple):
            for key, inner in enumerate(value):
                walk(inner, f"{name}/{key}")

    state = load_checkpoint(folder, kind="pretrain", optimizer=True)
    walk({key: state[key] for key in ("model", "teacher", "optimizer")}, "")
    return found


def assert_same_run(one: Path, other: Path, *, has_teacher: bool = True) -> None:
    """Records and every number of the last checkpoint, moments and EMA included, bit for bit."""
    assert untimed(one) == untimed(other)
    mine, theirs = tensors(one), tensors(other)
    assert mine.keys() == theirs.keys()
    assert any(name.startswith("/teacher/") for name in mine) == has_teacher
    assert any("exp_avg_sq" in name for name in mine)
    assert not [name for name in mine if not torch.equal(mine[name], theirs[name])]


def run_until_stopped(arguments: list[str], *, at: int) -> None:
    """Run a command until SIGTERM comes in the step after ``at`` ones, which is its last."""
    schedule, steps = optim.lr_schedule, []

    def interrupting(*given: object, **named: object) -> Callable[[int], float]:
        lr_at = schedule(*given, **named)

        def and_signal(step: int) -> float:
            steps.append(step)
            if step == at:
                os.kill(os.getpid(), signal.SIGTERM)
            return lr_at(step)

        return and_signal

    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(optim, "lr_schedule", interrupting)
            assert main(arguments) == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert steps[-1] == at
