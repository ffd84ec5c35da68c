"""Speed of this machine for a config: clips per second of a device and of a reading core."""

import time
from dataclasses import dataclass, replace
from itertools import islice

import torch

from hpm_video.bench.finetune import classifier_of, step_of
from hpm_video.bench.steps import micro_batches_of, random_frames, step_on
from hpm_video.bench.timing import median_seconds
from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, pick_device
from hpm_video.runtime.machine import device_words

_MOST_CLIPS = {"cuda": 32, "cpu": 2}  # per timed step, so that it fits and is short
_ROUNDS = 3
_CLIPS_READ = 8


@dataclass(frozen=True)
class Here:
    """Figures of this machine. clips_per_core: None without data.manifest. said: description of the
    measurement."""

    devices: int
    clips_per_s: float
    clips_per_core: float | None
    said: str


def devices_here(config: PretrainConfig) -> tuple[torch.device, int, str]:
    """The device that a run of the config would use, the number of such devices, and its name."""
    device = pick_device(config.run.device, setting="run.device")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    return device, count, device_words(device)


def measure_here(config: PretrainConfig, *, most_clips: int | None = None) -> Here:
    """Time steps with a small batch on one device, and reading some clips in one process.

    ``most_clips``: the largest batch; by default one that is quick with any model.
    """
    device, count, words = devices_here(config)
    data, most = config.data, most_clips or _MOST_CLIPS[device.type]
    size = most if isinstance(data.batch_size, str) else min(data.batch_size, most)
    data = replace(data, batch_size=size, repeats=1, windows=1)
    optim = replace(config.optim, accumulation=1, total_batch=None)
    config = replace(config, data=data, optim=optim)
    step = step_on(config, random_frames(config, device), device)
    seconds = median_seconds({"step": step}, rounds=_ROUNDS, device=device)["step"]
    said = f"measured here, {words}, {_ROUNDS} steps of {size} clips"
    return Here(count, size / seconds, _read_rate(config), said)


def measure_finetuning(config: FinetuneConfig) -> float:
    """Clips a second of one device in steps of fine-tuning, without reading them."""
    device = pick_device(config.run.device, setting="run.device")
    alone = World(0, 1, device)
    precision, _ = choose_precision(config.run.precision, alone)
    config = replace(config, run=replace(config.run, precision=precision))
    data = config.data
    shape = (data.videos_at_once, 3, data.num_frames, data.crop_size, data.crop_size)
    with torch.device(device):
        step = step_of(classifier_of(config), config, torch.rand(shape), alone)
    seconds = median_seconds({"step": step}, rounds=_ROUNDS, device=device)["step"]
    return data.videos_at_once / seconds


def _read_rate(config: PretrainConfig) -> float | None:
    """Clips per second that one core reads from the config's videos, after the first one."""
    if not config.data.manifest:
        return None
    alone = replace(config, data=replace(config.data, num_workers=0, batch_size=1))
    batches = micro_batches_of(alone, World(0, 1, torch.device("cpu")), 1 + _CLIPS_READ)
    next(batches)
    start = time.perf_counter()
    number = sum(1 for _ in islice(batches, _CLIPS_READ))
    return number / (time.perf_counter() - start) if number else None
