"""Measures the speed of a real pre-training run, and whether the loader or the step limits it."""

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.steps import accumulation_of, config_step, micro_batches_of, random_frames
from hpm_video.bench.timing import round_seconds
from hpm_video.config import PretrainConfig
from hpm_video.config.limits import at_least
from hpm_video.data.lists.frame_index import index_beside, write_frame_index
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, join_world, pick_device
from hpm_video.train.batch_size import with_batch_size
from hpm_video.train.pretrain import pretrain
from hpm_video.train.run.logs import read_records

# data_wait_fraction from which the loader counts as the limit
_MUCH_WAITING = 0.1
_PERIODS = 3  # logging periods of the run; the first is a warm-up and does not count
_SIDE = 256  # of toy videos, pixels


def bench_train(config: PretrainConfig, *, steps: int, num_videos: int) -> Report:
    """Run ``steps`` optimizer steps of a config in one process, in a temporary folder.

    Without data.manifest it reads ``num_videos`` toy videos. The step alone, with a fixed batch,
    and the loader alone are timed for comparison. A note says which of them limits the run.
    """
    at_least("--steps", steps, _PERIODS)
    at_least("--videos", num_videos, 1)
    device = pick_device(config.run.device, setting="run.device")
    precision, _ = choose_precision(config.run.precision, World(0, 1, device))
    config = replace(config, run=replace(config.run, precision=precision))
    config = with_batch_size(config, World(0, 1, device))
    data = config.data
    accumulation = accumulation_of(config)
    steps -= steps % _PERIODS
    with tempfile.TemporaryDirectory() as name, redirect_stdout(sys.stderr):
        folder = Path(name)
        videos = data.manifest
        if not videos:
            toys = write_toy_videos(
                folder / "toy", num_videos=num_videos, size=_SIDE, num_frames=64, formats=("mp4",)
            )
            videos = [str(toys)]
        manifest = read_manifest(videos, root=data.root, labels=False)
        # A list that gives exactly ``steps`` steps, whatever the number of videos
        listed, count = folder / "train.csv", steps * accumulation * data.videos_at_once
        numbers = (k % len(manifest) for k in range(count))
        rows = [{**manifest.row(k), "num_frames": manifest.num_frames(k) or None} for k in numbers]
        write_manifest(listed, rows)
        places = range(min(count, len(manifest)))
        tables = ((manifest.file(k), table) for k in places if (table := manifest.table(k)))
        write_frame_index(index_beside(listed), tables)
        config = replace(
            config,
            run=replace(
                config.run,
                output_dir=str(folder / "run"),
                log_every=steps // _PERIODS,
                checkpoint_every_minutes=1e6,
                picture_every=0,
                history_checkpoints=0,
                probe_every=0,
                profile_steps=0,
                resume=None,
            ),
            data=replace(data, manifest=[str(listed)], weights=[], root=None),
            optim=replace(config.optim, epochs=1, warmup_epochs=0),
        )
        if not pretrain(config):  # stopped by a signal
            raise KeyboardInterrupt
        of_run, waited = rates(read_records(folder / "run")[1:])
        loader = _loader_alone(config, steps * accumulation)
    step = _step_alone(config)
    found = {"run": (of_run, waited), "step alone": (step, None), "loader alone": (loader, None)}
    settings: dict[str, object] = {"size": config.model.size}
    settings["videos"] = ", ".join(data.manifest) or f"{num_videos} toy videos of {_SIDE} pixels"
    settings |= {"frames": data.num_frames, "crop_size": data.crop_size}
    settings |= {"batch_size": data.batch_size, "accumulation": accumulation}
    settings |= {"repeats": data.repeats, "workers": data.num_workers, "decoder": data.decoder}
    settings |= {"precision": config.run.precision, "compile": config.run.compile, "steps": steps}
    limit = "loader" if waited >= _MUCH_WAITING else "step"
    return Report(
        "train",
        machine_facts(device),
        settings,
        [
            {"what": what, "clips_per_s": rate, "data_wait_fraction": wait, "vs_run": rate / of_run}
            for what, (rate, wait) in found.items()
        ],
        [
            f"limit: {limit} (the run waits for videos {waited:.0%} of its time)",
            f"the run's first {steps // _PERIODS} steps do not count; on a CPU the loader workers "
            "and the step share the cores, so both are slower than alone",
        ],
    )


def rates(records: Sequence[dict[str, float]]) -> tuple[float, float]:
    """Clips per second and data_wait_fraction over several periods with equal numbers of clips."""
    times = [1 / record["clips_per_second"] for record in records]  # per clip
    waits = [record["data_wait_fraction"] for record in records]
    waited = sum(time * wait for time, wait in zip(times, waits, strict=True))
    return len(times) / sum(times), waited / sum(times)


def _loader_alone(config: PretrainConfig, num_batches: int) -> float:
    """Clips per second of the config's loader workers when nothing else runs."""
    data = config.data
    first = num_batches // _PERIODS
    batches = micro_batches_of(config, World(0, 1, torch.device("cpu")), num_batches)
    for _ in islice(batches, first):
        pass
    start = time.perf_counter()
    for _ in batches:
        pass
    elapsed = time.perf_counter() - start
    return (num_batches - first) * data.videos_at_once * data.repeats / elapsed


def _step_alone(config: PretrainConfig) -> float:
    """Clips per second of the config's steps on a fixed batch."""
    with join_world(config.run.device) as world:
        frames = random_frames(config, world.device)
        step = config_step(config, lambda: to_clips(frames, world.device), world)
        times = round_seconds({"step": step}, rounds=3, warmup=2, device=world.device)
    return accumulation_of(config) * len(frames) / statistics.median(times["step"])
