"""What the pictures of a pre-training in progress cost, against its steps.

On a CPU: seconds at work. Pictures: of 4 clips, with TensorBoard's file.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.steps import build_student, grid_of, random_frames, step_on
from hpm_video.bench.timing import median_seconds
from hpm_video.bench.variants import step_config
from hpm_video.cli import bench_options as options
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.method.teacher import Teacher
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, pick_device
from hpm_video.train.run.logs import RunLog
from hpm_video.train.run.pictures import NUM_CLIPS, Pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_timing(parser, batch_size=4)
    options.add_clip(parser)
    options.add_precision(parser)
    options.add_size(parser, "base")
    asked = parser.parse_args()
    shape = {key: vars(asked)[key] for key in ("size", "batch_size", "frames", "crop_size")}
    device = pick_device(asked.device, setting="--device")
    alone = World(0, 1, device)
    asked.precision, _ = choose_precision(asked.precision, alone, setting="--precision")
    config = step_config(**shape, precision=asked.precision)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    student = build_student(config).to(device)
    with tempfile.TemporaryDirectory() as name:
        toy = {"num_videos": NUM_CLIPS, "num_frames": 16, "formats": ("mp4",)}
        manifest = read_manifest(write_toy_videos(Path(name) / "videos", **toy))
        read = replace(config.data, sampling="uniform", num_workers=0)
        pictures = Pictures(replace(config, data=read), manifest, grid_of(config))
        with RunLog(Path(name) / "run", is_main=True, start_step=0, total_steps=1) as log:
            how = {"hard_ratio": config.masking.hard_ratio_end, "step": 1, "log": log}
            draw = partial(pictures.draw, student, Teacher(student), **how)
            calls = {
                "step": step_on(config, random_frames(config, device), device),
                "pictures": draw,
            }
            seconds = median_seconds(calls, rounds=asked.rounds, device=device, clock=clock)
    steps = {key: value / seconds["step"] for key, value in seconds.items()}
    rows = [{"what": key, "median_s": seconds[key], "steps": steps[key]} for key in seconds]
    every = config.run.pictures_every(10_000)
    taken = f"{steps['pictures'] / every:.2%}"
    share = f"pictures every {every} steps, as in runs of 10,000 or more, add {taken} to the time"
    publish(Report("pictures", machine_facts(device), vars(asked), rows, [share]))


if __name__ == "__main__":
    main()
