"""What a checkpoint costs: its size, how long it stops training, and how long it is written.

copy_s stops training; write_s goes on beside it until all is on disk; read_s is from the page
cache; longest_pause_ms: of a main thread that only looks at the clock meanwhile.
"""

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch

from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.steps import build_student
from hpm_video.bench.variants import step_config
from hpm_video.cli import bench_options as options
from hpm_video.cli.options import add_device
from hpm_video.config import OptimConfig
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPM
from hpm_video.runtime.distributed import pick_device
from hpm_video.train.optim import pretrain_optimizer
from hpm_video.train.run.optimizer_state import optimizer_state
from hpm_video.train.run.saving import copy_to_host
from hpm_video.weights.checkpoint import load_checkpoint, save_checkpoint, save_sharded

FORMS = {"file": save_checkpoint, "shards": partial(save_sharded, group=None)}


def state_of(student: HPM) -> dict:
    optimizer = pretrain_optimizer(student, OptimConfig())
    for parameter in student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {
        **{"kind": "pretrain", "config": {}, "step": 1, "window": []},
        **{"model": student.state_dict(), "teacher": Teacher(student).state_dict()},
        "optimizer": optimizer_state(optimizer, student),
    }


def measure(state: dict, form: str) -> dict[str, float]:
    times, clock = {}, time.perf_counter
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor(1) as pool:
        place, start = Path(name), clock()
        copied = copy_to_host(state)
        times["copy_s"], start = clock() - start, clock()
        future, ticks = pool.submit(FORMS[form], place, copied, keep=1), [clock()]
        while not future.done():
            time.sleep(0.001)
            ticks.append(clock())
        last = future.result().resolve()
        times["write_s"] = clock() - start
        times["longest_pause_ms"] = 1000 * max(b - a for a, b in pairwise(ticks))
        files, start = [path for path in last.rglob("*") if path.is_file()] or [last], clock()
        load_checkpoint(place, optimizer=True)
        times["read_s"] = clock() - start
        return {"gigabytes": sum(path.stat().st_size for path in files) / 1e9, **times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_sizes(parser)
    options.add_number(
        parser, "--rounds", 3, "number of measurements, of which the median is shown"
    )
    add_device(parser)
    asked = parser.parse_args()
    device = pick_device(asked.device, setting="--device")
    rows = []
    for size in asked.sizes:
        student = build_student(step_config(size=size, frames=16, crop_size=224)).to(device)
        millions, state = sum(p.numel() for p in student.parameters()) / 1e6, state_of(student)
        for form in FORMS:
            found = [measure(state, form) for _ in range(asked.rounds)]
            medians = {key: statistics.median(one[key] for one in found) for key in found[0]}
            rows.append({"size": size, "form": form, "parameters_m": millions, **medians})
    publish(Report("checkpoint", machine_facts(device), {"rounds": asked.rounds}, rows))


if __name__ == "__main__":
    main()
