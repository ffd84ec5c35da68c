"""A cost model of pre-training on many GPUs: how fast, how long, and what it waits for.

Of a step on g GPUs, with v videos each:

- compute: v x repeats clips at the rate of one GPU, but no less than the time that the host takes
  to start the kernels of its micro-batches;
- gradients: an all-reduce in a ring sends 2 (g - 1) / g times their bytes over the slowest link
  (FSDP: 3 (g - 1) / g times those of the weights: two gathers and a scatter). It hides behind a
  share of the last micro-batch's backward pass, two thirds of its compute; the rest is waited for;
- loader: v x repeats clips at the rate of the cores, beside all that: the slower one decides.

Checkpoints stop training for their copy to the host's memory, and for writing what has not been
written when the next one is due.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

from hpm_video.bench.report import Cell


@dataclass(frozen=True)
class Job:
    """What a config asks for.

    total_batch: videos per step, if given: then GPUs share them out; else it grows with the GPUs,
    accumulation x batch_size each. batch_size: videos of a micro-batch, at most.
    """

    num_videos: int
    epochs: int
    repeats: int
    batch_size: int
    accumulation: int
    total_batch: int | None
    gradient_bytes: float
    checkpoint_bytes: float
    checkpoint_minutes: float
    saves_in_background: bool
    is_sharded: bool = False

    def videos_per_gpu(self, gpus: int) -> int:
        """Per step; ValueError where they cannot be shared out evenly, or do not make a step."""
        if self.total_batch is None:
            videos = self.batch_size * self.accumulation
            if videos * gpus > self.num_videos:
                raise ValueError(
                    f"--videos ({self.num_videos}) must be at least {videos * gpus}, those of one "
                    f"step on {gpus} GPUs"
                )
            return videos
        if self.total_batch % gpus:
            raise ValueError(f"--gpus ({gpus}) must divide optim.total_batch ({self.total_batch})")
        return self.total_batch // gpus


@dataclass(frozen=True)
class Machine:
    """What is measured or assumed of the machines.

    clips_per_s: of one GPU. node_gb_s, network_gb_s: that an all-reduce reaches per GPU, within a
    node and between nodes. overlap: share of the last backward pass behind which it can hide.
    launch_ms: least time of a micro-batch. cores_per_gpu: that decode, clips_per_core a second
    each. video_kb: of a file. copy_gb_s: from a GPU to the host. storage_gb_s: that a node writes.
    """

    clips_per_s: float
    gpus_per_node: int
    node_gb_s: float
    network_gb_s: float
    overlap: float
    launch_ms: float
    cores_per_gpu: float
    clips_per_core: float
    video_kb: float
    copy_gb_s: float
    storage_gb_s: float

    def __post_init__(self) -> None:
        for item in fields(self):
            value, option = getattr(self, item.name), item.name.replace("_", "-")
            if item.name == "overlap":
                if not 0 <= value <= 1:
                    raise ValueError(f"--overlap ({value}) must be in [0, 1]")
            elif item.name in ("launch_ms", "video_kb"):
                if not 0 <= value < math.inf:
                    raise ValueError(f"--{option} ({value}) must be at least 0, and finite")
            elif not 0 < value < math.inf:
                raise ValueError(f"--{option} ({value}) must be above 0, and finite")

    def link_gb_s(self, gpus: int) -> float:
        """Of the slowest link in a ring of so many GPUs."""
        return self.node_gb_s if gpus <= self.gpus_per_node else self.network_gb_s


@dataclass(frozen=True)
class Prediction:
    """Of a job on so many GPUs; seconds are per optimizer step.

    waited_s: for gradients, after what hides. efficiency: clips_per_s over GPUs x that of one.
    needed_cores: per GPU, that it does not wait for them. needed_gb_s: per GPU, that all of the
    all-reduce hides; None where there is nothing to hide behind. read_gb_s: of all GPUs together.
    """

    gpus: int
    videos_per_step: int
    compute_s: float
    all_reduce_s: float
    waited_s: float
    loader_s: float
    step_s: float
    clips_per_s: float
    efficiency: float
    bottleneck: str
    hours: float
    needed_cores: float
    needed_gb_s: float | None
    read_gb_s: float


def predict(job: Job, machine: Machine, gpus: int) -> Prediction:
    """The cost model, see the top of this file."""
    videos = job.videos_per_gpu(gpus)
    clips = videos * job.repeats
    micro_batches = -(-videos // job.batch_size)
    work_s, launch_s = clips / machine.clips_per_s, micro_batches * machine.launch_ms / 1e3
    compute_s = max(work_s, launch_s)
    sent = (3 if job.is_sharded else 2) * (gpus - 1) / gpus * job.gradient_bytes
    all_reduce_s = sent / (machine.link_gb_s(gpus) * 1e9)
    room_s = machine.overlap * compute_s / micro_batches * 2 / 3
    waited_s = max(0.0, all_reduce_s - room_s)
    gpu_s = compute_s + waited_s
    loader_s = clips / (machine.cores_per_gpu * machine.clips_per_core)
    step_s = max(gpu_s, loader_s)

    steps = job.epochs * (job.num_videos // (videos * gpus))
    nodes_that_write = -(-gpus // machine.gpus_per_node) if job.is_sharded else 1
    copied = job.checkpoint_bytes / (gpus if job.is_sharded else 1)
    copy_s = copied / (machine.copy_gb_s * 1e9)
    write_s = job.checkpoint_bytes / (machine.storage_gb_s * 1e9 * nodes_that_write)
    interval_s = max(job.checkpoint_minutes * 60, step_s)
    unhidden_s = max(0.0, write_s - interval_s) if job.saves_in_background else write_s
    stopped = (copy_s * job.saves_in_background + unhidden_s) / interval_s

    rate = gpus * clips / step_s / (1 + stopped)
    return Prediction(
        gpus=gpus,
        videos_per_step=videos * gpus,
        compute_s=compute_s,
        all_reduce_s=all_reduce_s,
        waited_s=waited_s,
        loader_s=loader_s,
        step_s=step_s,
        clips_per_s=rate,
        efficiency=rate / (gpus * machine.clips_per_s),
        bottleneck=_bottleneck(
            loader=loader_s - gpu_s,
            gradients=waited_s - compute_s,
            launch=launch_s - work_s,
            checkpoints=stopped - 1,
        ),
        hours=steps * step_s * (1 + stopped) / 3600,
        needed_cores=clips / gpu_s / machine.clips_per_core,
        needed_gb_s=sent / room_s / 1e9 if room_s > 0 else None,
        read_gb_s=gpus * videos / step_s * machine.video_kb / 1e6,
    )


def _bottleneck(*, loader: float, gradients: float, launch: float, checkpoints: float) -> str:
    """The name of what takes longer than all else, given by how much each takes longer."""
    if checkpoints > 0:
        return "checkpoints"
    if loader > 0:
        return "loader"
    if gradients > 0:
        return "gradients"
    return "kernel launches" if launch > 0 else "compute"


def table(job: Job, machine: Machine, gpus: Sequence[int]) -> list[dict[str, Cell]]:
    """A row for each number of GPUs."""
    rows: list[dict[str, Cell]] = []
    for count in gpus:
        found = predict(job, machine, count)
        rows.append(
            {
                "gpus": count,
                "videos_per_step": found.videos_per_step,
                "step_ms": found.step_s * 1e3,
                "compute_ms": found.compute_s * 1e3,
                "all_reduce_ms": found.all_reduce_s * 1e3,
                "waited_ms": found.waited_s * 1e3,
                "loader_ms": found.loader_s * 1e3,
                "clips_per_s": found.clips_per_s,
                "efficiency": found.efficiency,
                "bottleneck": found.bottleneck,
                "hours": found.hours,
                "cores_per_gpu_needed": found.needed_cores,
                "gb_s_per_gpu_needed": found.needed_gb_s,
                "gb_s_read": found.read_gb_s,
            }
        )
    return rows
