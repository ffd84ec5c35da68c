"""Several processes as far as one device goes: DDP and FSDP2 in a world of one, under NCCL, and DDP
in two processes that share the device, under gloo. The same steps, and their checkpoints."""

import multiprocessing
import os
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
import torch.distributed as dist
from measure.checkpoint import FORMS, state_of
from torch import Tensor

from gpu_stages.stage import Stage
from gpu_stages.states import saved_tensors, tensors_of
from hpm_video.bench.steps import build_student
from hpm_video.config import PretrainConfig
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
    with stage.measuring("ddp, two processes, gloo"):
        two_processes(stage, plain)


def config_of(stage: Stage, folder: Path, *settings: str) -> PretrainConfig:
    exact = ("run.precision=float32", "run.save_in_background=false")
    return stage.run(folder, *exact, *settings, steps=3)


def spread_steps(stage: Stage, plain: Path, parallel: str, backend: str) -> None:
    """Three steps of a run whose models are wrapped, against those of a plain one."""
    folder = Path(stage.folder) / f"world_{parallel}"
    world = WorldOfOne(0, 1, stage.device)
    with patch.object(run_folder, "join_world", lambda *_, **__: nullcontext(world)):
        pretrain(config_of(stage, folder, f"run.parallel={parallel}"))
    compare(stage, f"{parallel}, {backend}", folder, plain)


def two_processes(stage: Stage, plain: Path) -> None:
    """Three steps of two processes with half of the batch each, against those of a plain run. NCCL
    wants a device for each process; gloo takes tensors of one that they share."""
    folder = Path(stage.folder) / "world_two"
    half = stage.either(16, 4) // 2
    config = config_of(stage, folder, f"data.batch_size={half}", f"optim.total_batch={2 * half}")
    processes = [
        multiprocessing.get_context("spawn").Process(target=be_rank, args=(config, rank, stage))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if codes := [process.exitcode for process in processes if process.exitcode]:
        raise RuntimeError(f"a process ended with exit code {codes[0]}")
    compare(stage, "ddp, two processes, gloo", folder, plain)


def be_rank(config: PretrainConfig, rank: int, stage: Stage) -> None:
    """Pre-train as one of two processes."""
    if stage.on_gpu:
        torch.cuda.set_device(stage.device)
    store = dist.FileStore(f"{config.run.output_dir}.store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    world = World(rank, 2, stage.device, store)
    with patch.object(run_folder, "join_world", lambda *_, **__: nullcontext(world)):
        pretrain(config)
    dist.destroy_process_group()


def compare(stage: Stage, what: str, folder: Path, plain: Path) -> None:
    """Report how far a run's last checkpoint is from a plain one's."""
    mine, theirs = (saved_tensors(find_checkpoint(each)) for each in (folder, plain))
    # AdamW's steps do not depend on the scale of gradients: moments do
    parts = ("['model']", "['teacher']", "['exp_avg']", "['exp_avg_sq']")
    furthest = max(difference(mine, theirs, part) for part in parts)
    equal = sum(mine[name].equal(value) for name, value in theirs.items())
    stage.check(what, furthest, LARGEST, bit_equal=f"{equal} of {len(theirs)}")


def difference(mine: dict[str, Tensor], theirs: dict[str, Tensor], part: str) -> float:
    """Relative difference of all tensors of a part, L2 norms."""
    names = [name for name in theirs if part in name]
    found, exact = (torch.cat([of[n].flatten().double() for n in names]) for of in (mine, theirs))
    return float((found - exact).norm() / exact.norm())


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
