"""Is a run the same again, and is one that was killed and resumed? Bit for bit, or where not."""

import multiprocessing
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from gpu_stages.repeats import first_difference
from gpu_stages.stage import Stage, described
from gpu_stages.states import saved_tensors
from gpu_stages.timing import medians
from hpm_video.bench.steps import random_frames, step_on
from hpm_video.config import PretrainConfig
from hpm_video.runtime.determinism import deterministic
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run.logs import read_records
from hpm_video.weights.checkpoint import find_checkpoint

_FORKS = multiprocessing.get_context("fork")  # nothing here has touched CUDA yet


def run(stage: Stage) -> None:
    """Five runs at the same time, on one device: two whole ones, one that is killed, and with
    run.deterministic a whole one and one that is killed."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as run.deterministic has it
    steps = stage.either(60, 8)
    folder = Path(stage.folder)
    once, again, killed, steady, steady_killed = runs = [
        folder / f"resume_{name}"
        for name in ("once", "again", "killed", "deterministic", "deterministic_killed")
    ]
    configs = {run: config_of(stage, run, steps) for run in runs}
    processes = {run: start(config) for run, config in configs.items()}
    for run in (killed, steady_killed):
        if kill_after(processes[run], run, step=steps // 2):
            processes[run] = start(configs[run])
    for process in processes.values():
        process.join()
    # Only a CPU promises to repeat without run.deterministic
    is_same = same(stage, "two whole runs", once, again, must=not stage.on_gpu)
    what = f"killed near {steps // 2} of {steps}"
    same(stage, what, once, killed, must=is_same)
    same(stage, f"{what}, deterministic", steady, steady_killed, must=True)
    if not is_same or stage.tiny:
        with stage.measuring("first difference"):
            what_differs(stage)


def config_of(stage: Stage, folder: Path, steps: int) -> PretrainConfig:
    settings = ["run.log_every=1", "run.keep_checkpoints=2"]
    if folder.name.endswith("killed"):
        settings.append("run.checkpoint_every_minutes=0")  # after every step
    if "deterministic" in folder.name:
        settings.append("run.deterministic=true")
    return stage.run(folder, *settings, steps=steps)


def start(config: PretrainConfig) -> Any:
    process = _FORKS.Process(target=train, args=(config,))
    process.start()
    return process


def train(config: PretrainConfig) -> None:
    """Pre-train; why that failed is in a file beside the run's folder."""
    try:
        pretrain(config)
    except Exception as error:
        Path(f"{config.run.output_dir}.error").write_text(described(error))
        raise


def kill_after(process: Any, folder: Path, *, step: int) -> bool:
    """Kill a run once it has so many steps and a checkpoint; False if it ended before."""
    while process.is_alive():
        records = []
        with suppress(FileNotFoundError, ValueError):  # nothing yet, or a line half written
            records = read_records(folder)
        if len(records) >= step and (folder / "checkpoints" / "last").exists():
            process.kill()
            process.join()
            return True
        time.sleep(0.005)
    return False


def same(stage: Stage, what: str, one: Path, other: Path, *, must: bool) -> bool:
    """Report whether two runs have the same records, and the same weights, moments and teacher."""
    for folder in (one, other):
        if (reason := Path(f"{folder}.error")).exists():
            stage.row(what, ok=False, note=reason.read_text())
            return False
    records = [read_records(folder) for folder in (one, other)]
    for record in [*records[0], *records[1]]:
        del record["clips_per_second"], record["data_wait_fraction"]
    differing = sum(mine != theirs for mine, theirs in zip(*records, strict=True))
    mine, theirs = (saved_tensors(find_checkpoint(folder)) for folder in (one, other))
    changed = sum(not value.equal(theirs[name]) for name, value in mine.items())
    is_same = not differing and not changed
    stage.row(
        what, ok=is_same if must or is_same else None, note="" if is_same else "they differ",
        records=f"{len(records[0]) - differing} of {len(records[0])} equal",
        tensors=f"{len(mine) - changed} of {len(mine)} equal",
    )  # fmt: skip
    return is_same


def what_differs(stage: Stage) -> None:
    """The first operation of a step that gives something else when repeated, and what the
    deterministic one costs."""
    config = stage.pair(stage.either(16, 2))["default"]
    frames = random_frames(config, stage.device)

    def make() -> Callable[[], Tensor]:
        return step_on(config, frames, stage.device)

    stage.row("first difference", in_a_step=first_difference(make))
    step = make()

    def steady() -> None:
        with deterministic(True):
            step()

    seconds = medians(stage, {"as it is": step, "deterministic": steady})
    stage.row("determinism, ms", **{name: 1000 * value for name, value in seconds.items()})
