"""The cost model of `bench plan` against real processes on this machine.

``torchrun --nproc-per-node 2 tools/measure/scaling.py``: each process times steps by itself, an
all-reduce as large as the gradients, and steps under DDP; from the first two the model predicts the
third. overlap 0: nothing of the all-reduce hides behind the backward pass, 1: all that can.
"""

import argparse

import torch
import torch.distributed as dist

from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.steps import build_student, config_step, random_frames, step_on
from hpm_video.bench.timing import median_seconds
from hpm_video.bench.variants import step_config
from hpm_video.cli import bench_options as options
from hpm_video.data.loading.loader import to_clips
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import join_world
from hpm_video.runtime.host_memory import keep_freed_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_timing(parser, batch_size=4)
    options.add_clip(parser)
    options.add_precision(parser)
    options.add_size(parser, "small")
    asked = parser.parse_args()
    keep_freed_memory()
    shape = {key: vars(asked)[key] for key in ("size", "batch_size", "frames", "crop_size")}
    with join_world(asked.device, timeout_s=600) as world:
        asked.precision, _ = choose_precision(asked.precision, world, setting="--precision")
        config = step_config(**shape, precision=asked.precision)
        if world.device.type == "cpu":
            torch.set_num_threads(1)
        weights = sum(parameter.numel() for parameter in build_student(config).parameters())
        gradients, frames = torch.zeros(weights, device=world.device), random_frames(config)
        alone = step_on(config, frames, world.device)
        calls = {
            "alone": lambda: (dist.barrier(), alone()),  # at the same time as the others
            "all_reduce": lambda: dist.all_reduce(gradients),
            "together": config_step(config, lambda: to_clips(frames, world.device), world),
        }
        seconds = median_seconds(calls, rounds=asked.rounds, device=world.device)
        if not world.is_main:
            return
        rows = []
        for overlap in (0, 1):  # as `hpm_video.bench.cost_model.predict`
            hidden = overlap * seconds["alone"] * 2 / 3
            predicted = seconds["alone"] + max(0.0, seconds["all_reduce"] - hidden)
            row = {"overlap": overlap, **{f"{key}_s": value for key, value in seconds.items()}}
            ratio = seconds["together"] / predicted
            rows.append({**row, "predicted_s": predicted, "measured_over_predicted": ratio})
        settings = {"all_reduce_mb": 4 * weights / 1e6, "processes": world.size, **vars(asked)}
        publish(Report("scaling", machine_facts(world.device), settings, rows))


if __name__ == "__main__":
    main()
