"""How time, memory and multiply-adds of a step grow with frames, resolution, mask ratio and batch.

docs/growth.py draws what --json writes. A quantity grows as x^exponent from the row above; x: what
varies (pixels, visible share of a mask ratio). Memory: allocated on CUDA, else counted.
"""

import argparse
import math

import torch

from hpm_video.bench.flops import step_cost
from hpm_video.bench.live_bytes import modelled_bytes
from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.steps import grid_of, random_frames, step_on
from hpm_video.bench.timing import median_seconds
from hpm_video.bench.variants import step_config
from hpm_video.cli import bench_options as options
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, pick_device

VARIED = {
    "frames": (4, 8, 16, 32),
    "crop_size": (112, 160, 224, 288),
    "mask_ratio": (0.95, 0.9, 0.75, 0.5),
    "batch_size": (1, 2, 4, 8),
}
BASE = {"frames": 16, "crop_size": 224, "mask_ratio": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_timing(parser, batch_size=2)
    options.add_precision(parser)
    options.add_size(parser, "tiny")
    parser.add_argument("--json", metavar="FILE")
    asked = parser.parse_args()
    device = pick_device(asked.device, setting="--device")
    alone = World(0, 1, device)
    asked.precision, _ = choose_precision(asked.precision, alone, setting="--precision")
    fixed = {"size": asked.size, "batch_size": asked.batch_size, "precision": asked.precision}
    rows = []
    for name, values in VARIED.items():
        before = {}
        for value in values:
            config = step_config(**{**fixed, **BASE, name: value})
            step = step_on(config, random_frames(config, device), device)
            seconds = median_seconds({"step": step}, rounds=asked.rounds, device=device)["step"]
            if device.type == "cuda":
                memory = torch.cuda.max_memory_allocated(device)
                torch.cuda.reset_peak_memory_stats(device)
            else:
                memory = modelled_bytes(config, as_on_gpu=False)
            products = step_cost(config).step * config.data.batch_size / 1e9
            x = {"mask_ratio": 1 - value, "crop_size": value**2}.get(name, value)
            now = {"seconds": seconds, "memory_mb": memory / 1e6, "multiply_adds_g": products}
            row = {"varied": name, "value": value, "tokens": grid_of(config).num_tokens, **now}
            for q, new in now.items():
                grown = math.log(new / before[q]) / math.log(x / before["x"]) if before else None
                row[f"{q}_exponent"] = grown
            rows.append(row)
            before = {**now, "x": x}
    publish(Report("growth", machine_facts(device), {**BASE, **vars(asked)}, rows), asked.json)


if __name__ == "__main__":
    main()
