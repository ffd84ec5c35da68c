"""A cost model of pre-training on many GPUs: speed, duration and bottleneck.

A step on g GPUs, with v videos each, consists of:

- compute: v x repeats clips at the rate of one GPU, but at least the time that the host needs to
  launch the kernels of the micro-batches;
- gradients: a ring all-reduce sends 2 (g - 1) / g times their bytes over the slowest link (FSDP:
  3 (g - 1) / g times the bytes of the weights, for two all-gathers and a reduce-scatter). A share
  of the last micro-batch's backward pass, two thirds of its compute, hides part of it;
- loader: v x repeats clips at the rate of the cores. It runs in parallel; the slower one counts.

Checkpoints stop training while they are copied to host memory, and while the previous one is still
being written.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, fields

from hpm_video.config.limits import between


@dataclass(frozen=True)
class Job:
    """A training job.

    total_batch: videos per step, divided among the GPUs; if None, each GPU adds accumulation x
    batch_size. batch_size: maximum number of videos per micro-batch.
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
        """Videos per GPU and step; raises ValueError if GPUs do not divide the batch evenly, or
        there are too few videos for a step."""
        if self.total_batch is None:
            videos = self.batch_size * self.accumulation
            if videos * gpus > self.num_videos:
                raise ValueError(
                    f"--videos ({self.num_videos}) must be at least {videos * gpus}, the videos of "
                    f"one step on {gpus} GPUs"
                )
            return videos
        if self.total_batch % gpus:
            raise ValueError(f"--gpus ({gpus}) must divide optim.total_batch ({self.total_batch})")
        return self.total_batch // gpus

    def has_steps(self, gpus: int) -> bool:
        """Whether the GPUs can divide a step evenly, and there are enough videos for one."""
        with suppress(ValueError):
            return self.videos_per_gpu(gpus) > 0
        return False


@dataclass(frozen=True)
class Machine:
    """Measured or assumed figures of the machines.

    clips_per_s: rate of one GPU. node_gb_s, network_gb_s: all-reduce bandwidth per GPU within a
    node and between nodes. overlap: share of the last backward pass that can hide the all-reduce.
    launch_ms: minimum time of a micro-batch. cores_per_gpu: decoding cores. clips_per_core: clips
    per second and core. video_kb: size of a file. copy_gb_s: from a GPU to the host. storage_gb_s:
    write bandwidth of a node.
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
                between("--overlap", value, 0, 1)
            elif item.name in ("launch_ms", "video_kb"):
                if not 0 <= value < math.inf:
                    raise ValueError(f"--{option} ({value}) must be at least 0, and finite")
            elif not 0 < value < math.inf:
                raise ValueError(f"--{option} ({value}) must be above 0, and finite")

    def link_gb_s(self, gpus: int) -> float:
        """Bandwidth of the slowest link in a ring of ``gpus`` GPUs."""
        return self.node_gb_s if gpus <= self.gpus_per_node else self.network_gb_s


@dataclass(frozen=True)
class Prediction:
    """Prediction for a job on ``gpus`` GPUs, a row of the table; milliseconds are per step.

    waited_ms: part of the all-reduce that is not hidden. efficiency: clips_per_s relative to linear
    scaling. cores_per_gpu_needed: cores with which the loader is no bottleneck.
    gb_s_per_gpu_needed: bandwidth at which the all-reduce is fully hidden; None if nothing can hide
    it. gb_s_read: read rate of all GPUs together.
    """

    gpus: int
    videos_per_step: int
    step_ms: float
    compute_ms: float
    all_reduce_ms: float
    waited_ms: float
    loader_ms: float
    clips_per_s: float
    efficiency: float
    bottleneck: str
    hours: float
    cores_per_gpu_needed: float
    gb_s_per_gpu_needed: float | None
    gb_s_read: float


def predict(job: Job, machine: Machine, gpus: int) -> Prediction:
    """Apply the cost model; see the module's docstring."""
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

    takes_longer = {  # excess over all else; the first positive one is the bottleneck
        "checkpoints": stopped - 1,
        "loader": loader_s - gpu_s,
        "gradients": waited_s - compute_s,
        "kernel launches": launch_s - work_s,
    }
    rate = gpus * clips / step_s / (1 + stopped)
    return Prediction(
        gpus=gpus,
        videos_per_step=videos * gpus,
        step_ms=step_s * 1e3,
        compute_ms=compute_s * 1e3,
        all_reduce_ms=all_reduce_s * 1e3,
        waited_ms=waited_s * 1e3,
        loader_ms=loader_s * 1e3,
        clips_per_s=rate,
        efficiency=rate / (gpus * machine.clips_per_s),
        bottleneck=next((name for name, by in takes_longer.items() if by > 0), "compute"),
        hours=steps * step_s * (1 + stopped) / 3600,
        cores_per_gpu_needed=clips / gpu_s / machine.clips_per_core,
        gb_s_per_gpu_needed=sent / room_s / 1e9 if room_s > 0 else None,
        gb_s_read=gpus * videos / step_s * machine.video_kb / 1e6,
    )
