"""Is a run the same again, and is one that was killed and resumed? Bit for bit, or where not."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpu_stages.repeats import first_difference
from gpu_stages.stage import Stage
from gpu_stages.states import saved_tensors
from gpu_stages.timing import medians
from hpm_video.bench.steps import random_frames, step_on
from hpm_video.config import PretrainConfig
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint

_FORKS = multiprocessing.get_context("fork")  # nothing here has touched CUDA yet


def run(stage: Stage) -> None:
    steps = stage.either(60, 8)
    folder = Path(stage.folder)
    names = ("once", "again", "killed")
    runs = {name: config_of(stage, folder / f"resume_{name}", steps, name) for name in names}
    started = {name: start(config) for name, config in runs.items()}
    killed_at = kill_after(started["killed"], Path(folder / "resume_killed"), step=steps // 2)
    started["resumed"] = start(runs["killed"])
    for name, process in started.items():
        process.join()
        if process.exitcode and name != "killed":
            raise RuntimeError(f"the run {name!r} ended with exit code {process.exitcode}")
    once, again, resumed = (folder / f"resume_{name}" for name in names)
    is_repeatable = same(stage, "two whole runs", once, again)
    same(stage, f"killed after {killed_at} of {steps}", once, resumed)
    if not is_repeatable:
        with stage.measuring("first difference"):
            what_differs(stage)


def config_of(stage: Stage, folder: Path, steps: int, name: str) -> PretrainConfig:
    settings = ["run.log_every=1", "run.keep_checkpoints=2"]
    if name == "killed":
        settings.append("run.checkpoint_every_minutes=0")  # after every step
    return stage.run(folder, *settings, steps=steps)


def start(config: PretrainConfig) -> Any:
    process = _FORKS.Process(target=pretrain, args=(config,))
    process.start()
    return process


def kill_after(process: Any, folder: Path, *, step: int) -> int:
    """Kill a run once it has so many steps and a checkpoint; returns the steps it had done."""
    while process.is_alive():
        records = []
        with suppress(FileNotFoundError, ValueError):  # nothing yet, or a line half written
            records = read_records(folder)
        if len(records) >= step and (folder / "checkpoints" / "last").exists():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            return len(records)
        time.sleep(0.005)
    raise RuntimeError(f"the run to be killed ended before step {step}")


def same(stage: Stage, what: str, one: Path, other: Path) -> bool:
    """Report whether two runs have the same records and the same weights, moments and teacher."""
    records, tensors = (
        [read_records(folder) for folder in (one, other)],
        [saved_tensors(find_checkpoint(folder)) for folder in (one, other)],
    )
    for record in [record for found in records for record in found]:
        del record["clips_per_second"], record["data_wait_fraction"]
    lines = sum(mine != theirs for mine, theirs in zip(*records, strict=True))
    differ = [name for name, value in tensors[0].items() if not value.equal(tensors[1][name])]
    # Whole runs may differ where kernels add in any order; the table then says which
    ok = not differ and not lines
    stage.row(
        what, ok=ok, records=len(records[0]), differing=lines,
        tensors=len(tensors[0]), of_them_differing=len(differ),
    )  # fmt: skip
    return ok


def what_differs(stage: Stage) -> None:
    """The first operation of a step that gives something else when repeated, and what the
    deterministic one costs."""
    config = stage.pair(stage.either(64, 2))["default"]
    frames = random_frames(config, stage.device)

    def make() -> Callable[[], Tensor]:
        return step_on(config, frames, stage.device)

    stage.row("first difference", note=first_difference(make))
    step = make()

    def deterministic() -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            step()
        finally:
            torch.use_deterministic_algorithms(False)

    seconds = medians(stage, {"as it is": step, "deterministic": deterministic})
    stage.row("determinism, ms", **{name: 1000 * value for name, value in seconds.items()})
