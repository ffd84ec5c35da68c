"""Videos per second from a store that is slow and fails, over those of the same videos as files.

    python tools/measure/urls.py [--videos 1000] [--latency-s 0.2] [--failures 0.05] [--workers 2]

Goes through the training loader for two epochs: the first fetches each video, the second finds all
in the cache; then the same for tars of 50 videos without an index. The store is that of the tests,
in which every request takes so long, and each video needs two: one about its file or tar, one for
it. Videos are copies of toy videos.
"""

import argparse
import contextlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.loading.loader import StepSampler, train_loader
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.samples.clips import ClipDataset, ClipReader

sys.path.insert(0, str(Path(__file__).parents[2] / "tests"))
from fake_store import make_store, requests_of
from shards import write_tar

_BATCH = 10
_TOYS = 10
_IN_TAR = 50  # videos


def make_list(folder: Path, *, num_videos: int) -> Path:
    """A list of so many videos: copies of a few toy videos."""
    toy = folder / "toy"
    write_toy_videos(toy, num_videos=_TOYS, size=128, num_frames=64, seed=0, formats=("mp4",))
    found = sorted(toy.rglob("*.mp4"))
    names = [f"{number:06d}.mp4" for number in range(num_videos)]
    for number, name in enumerate(names):
        shutil.copyfile(found[number % len(found)], folder / name)
    write_manifest(folder / "all.csv", [{"path": name} for name in names])
    return folder / "all.csv"


def make_tars(folder: Path, *, num_videos: int) -> str:
    """The pattern of tars of the same videos."""
    starts = range(0, num_videos, _IN_TAR)
    for number, start in enumerate(starts):
        names = [f"{k:06d}.mp4" for k in range(start, min(start + _IN_TAR, num_videos))]
        files = ((name, (folder / name).read_bytes()) for name in names)
        write_tar(folder / f"{number:06d}.tar", files)
    return f"{{{0:06d}..{len(starts) - 1:06d}}}.tar"


def seconds_per_epoch(path: str, *, workers: int, epochs: int) -> tuple[list[float], int]:
    """How long each epoch of a list takes, and how many videos were unreadable."""
    manifest = read_manifest(path)
    data = DataConfig(num_workers=workers, decoder="pyav", crop_size=112)
    dataset = ClipDataset(manifest, ClipReader(data), seed=0)
    steps = len(manifest) // _BATCH
    sampler = StepSampler(
        len(manifest), batch_size=_BATCH, accumulation=1, world_size=1, rank=0, seed=0,
        start_step=0, num_steps=steps * epochs,
    )  # fmt: skip
    ends, num_bad = [time.perf_counter()], 0
    for step, batch in enumerate(train_loader(dataset, sampler), start=1):
        num_bad += len(batch.bad)
        if step % steps == 0:
            ends.append(time.perf_counter())
    return [end - start for start, end in itertools.pairwise(ends)], num_bad


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=int, default=1000)
    parser.add_argument("--latency-s", type=float, default=0.2)
    parser.add_argument("--failures", type=float, default=0.05, help="share of requests that fail")
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        os.environ["HPM_VIDEO_CACHE"] = str(Path(place, "cache"))
        folder = Path(place, "store")
        url = make_store(folder, latency_s=asked.latency_s, failures=asked.failures)
        file = make_list(folder, num_videos=asked.videos)
        say = sys.stdout.write
        say(
            f"{asked.videos} videos, {asked.workers} workers; each request takes "
            f"{asked.latency_s:g} s, {asked.failures:.0%} fail\n"
        )
        ((_, of_files), _) = seconds_per_epoch(str(file), workers=asked.workers, epochs=2)
        say(f"videos per second: {asked.videos / of_files:.1f} as files\n")
        tars = make_tars(folder, num_videos=asked.videos)
        for kind, name in (("URL", file.name), ("URL, in tars", tars)):
            before = len(requests_of(folder))
            with contextlib.redirect_stderr(io.StringIO()) as failures:
                start = time.perf_counter()
                (first, second), num_bad = seconds_per_epoch(
                    f"{url}/{name}", workers=asked.workers, epochs=2
                )
                listed = time.perf_counter() - start - first - second
            named = failures.getvalue().count(" failed: ")
            say(f"videos per second: {asked.videos / first:.1f} by {kind}, first epoch\n")
            say(f"videos per second: {asked.videos / second:.1f} by {kind}, from the cache\n")
            say(
                f"{listed:.1f} s for the list; {len(requests_of(folder)) - before} requests, "
                f"{named} failures named, {num_bad} unreadable\n"
            )


if __name__ == "__main__":
    main()
