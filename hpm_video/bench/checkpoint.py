"""What a checkpoint costs: its size, how long it stops training, and how long it is written."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least
from hpm_video.config import ModelConfig, OptimConfig
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import build_model, token_grid
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.files import check_can_be_folder
from hpm_video.train.optim import pretrain_optimizer
from hpm_video.train.run.optimizer_state import optimizer_state
from hpm_video.train.run.saving import copy_to_host
from hpm_video.weights.checkpoint import load_checkpoint, save_checkpoint, save_sharded

_FORMS: Mapping[str, Callable[..., Path]] = {
    "file": save_checkpoint,
    "shards": partial(save_sharded, group=None),
}


def bench_checkpoint(
    *, sizes: Sequence[str], rounds: int, folder: str | None, device: str
) -> Report:
    """Save and read checkpoints of pre-training with the default model, by one process.

    ``folder``: where to write, a folder that may be made; what is written is removed.
    """
    at_least("rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    if folder is not None:
        check_can_be_folder(Path(folder), name="--folder")
        Path(folder).mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Cell]] = []
    for size in sizes:
        parameters, state = _state(size, place)
        for form, save in _FORMS.items():
            measured = [_measure(state, save, folder) for _ in range(rounds)]
            middle = {
                name: statistics.median(one[name] for one in measured) for name in measured[0]
            }
            rows.append({"size": size, "form": form, "parameters_m": parameters / 1e6, **middle})
    return Report(
        "checkpoint",
        machine_facts(place),
        {"rounds": rounds, "folder": folder or "temporary"},
        rows,
        [
            "copy_s stops training; write_s, until all is on disk, goes on beside it, and read_s, "
            "from the page cache, is that of a start",
            "longest_pause_ms: of a main thread that does nothing but look at the clock meanwhile",
        ],
    )


def _state(size: str, device: torch.device) -> tuple[int, dict[str, Any]]:
    """Number of the student's parameters, and all that a checkpoint of it holds."""
    model = ModelConfig(size=size)  # type: ignore[arg-type]
    student = build_model(
        model, token_grid(model, num_frames=16, crop_size=224), predict_loss=True
    ).to(device)
    optimizer = pretrain_optimizer(student, OptimConfig())
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return sum(parameter.numel() for parameter in student.parameters()), {
        **{"kind": "pretrain", "config": {}, "step": 1, "window": []},
        "model": student.state_dict(),
        "teacher": Teacher(student).state_dict(),
        "optimizer": optimizer_state(optimizer, student),
    }


def _measure(
    state: Mapping[str, Any], save: Callable[..., Path], folder: str | None
) -> dict[str, float]:
    """Save beside a main thread that is at work, and read, once."""
    place = Path(tempfile.mkdtemp(dir=folder))
    try:
        start = time.perf_counter()
        copied = copy_to_host(state)
        copy_s = time.perf_counter() - start
        with ThreadPoolExecutor(max_workers=1) as pool:
            start = time.perf_counter()
            pause_s = _longest_pause(pool.submit(save, place, copied, keep=1))
            write_s = time.perf_counter() - start
        del copied
        files = [path for path in (place / "last").resolve().rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files or [place / "last"])
        start = time.perf_counter()
        load_checkpoint(place, optimizer=True)
        read_s = time.perf_counter() - start
    finally:
        shutil.rmtree(place)
    return {
        "gigabytes": size / 1e9,
        "copy_s": copy_s,
        "write_s": write_s,
        "longest_pause_ms": 1000 * pause_s,
        "read_s": read_s,
    }


def _longest_pause(future: Future[Path]) -> float:
    longest, before = 0.0, time.perf_counter()
    while not future.done():
        now = time.perf_counter()
        longest, before = max(longest, now - before), now
        time.sleep(0.001)
    future.result()
    return longest
