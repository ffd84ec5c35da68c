"""DDP and FSDP2 in a world of one process, under NCCL: the same steps, and their checkpoints."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from measure.checkpoint import FORMS, state_of
from torch import Tensor

from gpu_stages.stage import Stage
from gpu_stages.states import saved_tensors, tensors_of
from hpm_video.bench.steps import build_student
from hpm_video.runtime.distributed import World
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run import folder as run_folder
from hpm_video.train.run.saving import copy_to_host
from hpm_video.weights.checkpoint import find_checkpoint, load_checkpoint

LARGEST = 1e-4  # relative difference of weights, teacher and moments after three steps


class WorldOfOne(World):
    """One process that wraps its models as one of several does."""

    is_alone = False


def run(stage: Stage) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "RANK": "0", "WORLD_SIZE": "1"}
    backend = "nccl" if stage.on_gpu else "gloo"
    if stage.on_gpu:
        torch.cuda.set_device(stage.device)
    plain = Path(stage.folder) / "world_plain"
    pretrain(config_of(stage, plain))
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        for parallel in ("ddp", "fsdp"):
            with stage.measuring(f"{parallel}, {backend}"):
                spread_steps(stage, plain, parallel, backend)
        with stage.measuring("checkpoint"):
            checkpoints(stage)
    finally:
        dist.destroy_process_group()


def config_of(stage: Stage, folder: Path, *settings: str) -> Any:
    exact = ("run.precision=float32", "run.save_in_background=false")
    return stage.run(folder, *exact, *settings, steps=3)


def spread_steps(stage: Stage, plain: Path, parallel: str, backend: str) -> None:
    """Three steps of a run whose models are wrapped, against those of a plain one."""
    folder = Path(stage.folder) / f"world_{parallel}"
    with patch.object(run_folder, "join_world", lambda *_, **__: joined(stage)):
        pretrain(config_of(stage, folder, f"run.parallel={parallel}"))
    mine, theirs = (saved_tensors(find_checkpoint(each)) for each in (folder, plain))
    # AdamW's steps do not depend on the scale of gradients: moments do
    parts = ("['model']", "['teacher']", "['exp_avg']", "['exp_avg_sq']")
    furthest = max(difference(mine, theirs, part) for part in parts)
    equal = sum(mine[name].equal(value) for name, value in theirs.items())
    stage.check(f"{parallel}, {backend}", furthest, LARGEST, bit_equal=f"{equal} of {len(theirs)}")


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor], part: str) -> float:
    """Relative difference of all tensors of a part, L2 norms."""
    names = [name for name in theirs if part in name]
    found, exact = (torch.cat([of[n].flatten().double() for n in names]) for of in (mine, theirs))
    return float((found - exact).norm() / exact.norm())


@contextmanager
def joined(stage: Stage) -> Iterator[World]:
    yield WorldOfOne(0, 1, stage.device)


def checkpoints(stage: Stage) -> None:
    """A checkpoint from the device to the disk and back, in both forms."""
    with stage.device:
        student = build_student(stage.config(1))
    state = state_of(student)
    for form, save in FORMS.items():
        folder, clock = Path(stage.folder) / f"checkpoint_{form}", time.perf_counter
        start = clock()
        copied = copy_to_host(state)
        copy_s, start = clock() - start, clock()
        save(folder, copied, keep=1)
        write_s, start = clock() - start, clock()
        read = load_checkpoint(folder, optimizer=True)
        read_s = clock() - start
        before, after = tensors_of(copied), tensors_of(read)
        differing = [name for name, value in before.items() if not value.equal(after[name])]
        size = sum(value.nbytes for value in before.values()) / 1e9
        rates = {"copy": copy_s, "write": write_s, "read": read_s}
        stage.row(
            f"checkpoint, {form}", ok=not differing, gb=size,
            **{f"{name}_gb_per_s": size / seconds for name, seconds in rates.items()},
            differing=len(differing),
        )  # fmt: skip
