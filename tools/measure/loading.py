"""What the loader itself costs for each video: requests, messages and copies, nothing decoded.

    python tools/measure/loading.py [--videos 4096] [--batch-size 16] [--workers 2] [--rounds 5]

Workers answer at once and write nothing. What counts is the time of a video, in microseconds: its
inverse is the most that one process can be fed, whatever its GPU does.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import StepSampler, train_loader
from hpm_video.data.samples.clips import ClipDataset, ClipReader, Request
from hpm_video.runtime.host_memory import keep_freed_memory


@dataclass(frozen=True)
class Costless(ClipReader):
    """Claims to have read a video."""

    def read(self, request: Request, out: torch.Tensor) -> str | None:
        return None


def microseconds(dataset: ClipDataset, sampler: StepSampler) -> float:
    """Time of a video, over all batches but the first ones, while which workers start."""
    batches: Iterator[object] = train_loader(dataset, sampler)
    first = sampler.num_steps // 8
    for _ in range(first):
        next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    seconds = time.perf_counter() - start
    return seconds / (sampler.num_steps - first) / sampler.batch_size * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("videos", 4096), ("batch-size", 16), ("workers", 2), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    keep_freed_memory()  # as commands do
    data = DataConfig(num_workers=asked.workers, decode_timeout_s=60.0)
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "list.csv"
        listed.write_text("path\n" + "".join(f"{k}.mp4\n" for k in range(asked.videos)))
        dataset = ClipDataset(read_manifest(listed), Costless(data), seed=0)
        sampler = StepSampler(
            asked.videos,
            batch_size=asked.batch_size,
            accumulation=1,
            world_size=1,
            rank=0,
            seed=0,
            start_step=0,
            num_steps=asked.videos // asked.batch_size,
        )
        times = sorted(microseconds(dataset, sampler) for _ in range(asked.rounds))
    spread = " ".join(f"{value:.0f}" for value in times)
    sys.stdout.write(f"{statistics.median(times):.0f} us per video ({spread})\n")


if __name__ == "__main__":
    import loading  # by its name, under which workers find its reader

    loading.main()
