"""What the limits of processes that read strangers' videos cost: clips a second with and without.

    python tools/measure/limits.py [--source FOLDER] [--clips 400] [--workers 2] [--rounds 9]

Reads the same clips in turns, each time with new workers, and begins to count when these have read
some. Without a folder of videos it makes toy videos. The network is left once by the server that
workers are forked from, which costs no clip anything.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.loading import batches
from hpm_video.data.loading.loader import StepSampler, train_loader
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.video.limits import READING
from hpm_video.runtime.host_memory import keep_freed_memory
from hpm_video.runtime.sandbox import describe
from hpm_video.runtime.workers import fork_server

_BATCH = 8
_ENDINGS = (".mp4", ".mkv", ".webm", ".avi", ".mov")


def rate_of(dataset: ClipDataset, num_clips: int) -> tuple[float, float]:
    """Clips a second, of all batches but the first eighth, during which workers start; and how many
    for each second of the workers' processor time, which other work on the machine disturbs less.
    """
    first = num_clips // _BATCH // 8
    sampler = StepSampler(
        len(dataset),
        batch_size=_BATCH,
        accumulation=1,
        world_size=1,
        rank=0,
        seed=0,
        start_step=0,
        num_steps=num_clips // _BATCH,
    )
    before = _ended_workers_s()
    loader = train_loader(dataset, sampler)
    for _ in range(first):
        next(loader)
    start = time.perf_counter()
    for _ in loader:
        pass
    seconds = time.perf_counter() - start
    used = _ended_workers_s() - before
    return (sampler.num_steps - first) * _BATCH / seconds, sampler.num_steps * _BATCH / used


def _ended_workers_s() -> float:
    """Processor time of all workers that have ended: of the children of their server."""
    server = Path(f"/proc/{fork_server()._process.pid}/stat").read_text(encoding="ascii")
    user, system = server.rpartition(")")[2].split()[13:15]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", help="folder of videos (default: makes toy videos)")
    for name, default in (("clips", 400), ("workers", 2), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    keep_freed_memory()  # as commands do
    rates: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        if asked.source is None:
            write_toy_videos(folder, num_videos=32, size=128, num_frames=64, seed=0)
        videos = sorted(
            path.absolute()
            for path in Path(asked.source or folder).rglob("*")
            if path.suffix in _ENDINGS
        )
        listed = Path(folder) / "limits.csv"
        write_manifest(listed, [{"path": str(path)} for path in videos])
        data = DataConfig(decoder="pyav", num_workers=asked.workers, decode_timeout_s=60.0)
        dataset = ClipDataset(read_manifest(listed), ClipReader(data), seed=0)
        for number in range(2 * asked.rounds):
            with_limits = number % 2 == (number // 2) % 2  # which one comes first alternates
            batches.READING = READING if with_limits else None  # type: ignore[assignment]
            rates[with_limits].append(rate_of(dataset, asked.clips))
    sys.stdout.write(f"limits: {describe(READING, is_offline=fork_server().is_offline())}\n")
    for which, what in enumerate(("clips/s", "clips per second of processor time")):
        sides = [[each[which] for each in rates[side]] for side in (True, False)]
        ratios = [one / other for one, other in zip(*sides, strict=True)]
        medians = [statistics.median(side) for side in sides]
        low, middle, high = statistics.quantiles(ratios, n=4)
        sys.stdout.write(
            f"{what}: {medians[0]:.1f} with limits, {medians[1]:.1f} without; ratio of pairs: "
            f"median {middle:.3f}, quartiles {low:.3f} to {high:.3f}\n"
        )


if __name__ == "__main__":
    main()
