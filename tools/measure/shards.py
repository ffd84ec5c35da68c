"""Clips a second of videos in tars, over those of the same videos as files.

    python tools/measure/shards.py [--source FOLDER] [--videos 64] [--rounds 9] [--folder DIR]

Reads each clip of a file and of its tar in turns, in one process, with the tables of an index.
"warm": the system has the bytes in memory; "cold": it is told to forget them before each clip.
Without a folder of videos it makes toy videos.
"""

import argparse
import os
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import torch

from hpm_video.config import DataConfig
from hpm_video.config.values import Decoder, values_of
from hpm_video.data.lists.frame_index import index_beside, write_frame_index
from hpm_video.data.lists.manifest import read_manifest, write_manifest
from hpm_video.data.prepare.toy import write_toy_videos
from hpm_video.data.prepare.tree import VideoTree
from hpm_video.data.samples.clips import ClipDataset, ClipReader
from hpm_video.data.video.frames import missing
from hpm_video.data.video.readers.tables import decoded_table
from hpm_video.data.video.source import locate

_SIDES = ("files", "tar")


def write_lists(folder: Path, videos: list[str]) -> list[Path]:
    """Lists of the same videos, as files and in a tar, each with its index."""
    names = [f"{number:05d}{Path(path).suffix}" for number, path in enumerate(videos)]
    with tarfile.open(folder / "all.tar", "w") as tar:
        for path, name in zip(videos, names, strict=True):
            tar.add(path, name)
    read_manifest(folder / "all.tar")  # writes the tar's index
    lists = []
    for side, paths in zip(_SIDES, (videos, [f"all.tar/{name}" for name in names]), strict=True):
        lists.append(folder / f"{side}.csv")
        write_manifest(lists[-1], [{"path": path} for path in paths])
        tables = ((path, decoded_table(str(folder / path)).to_bytes()) for path in paths)
        write_frame_index(index_beside(lists[-1]), tables)
    return lists


def seconds_of(dataset: ClipDataset, key: tuple[int, int], *, is_cold: bool) -> tuple[float, float]:
    """Time on the wall, and at work, to read a clip."""
    if is_cold:
        file = os.open(locate(dataset.manifest.path(key[1])).file, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)
    wall, work = time.perf_counter(), time.process_time()
    sample = dataset[key]
    seconds = time.perf_counter() - wall, time.process_time() - work
    assert not sample.bad, sample.bad
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", help="folder of videos (default: makes toy videos)")
    parser.add_argument("--folder", help="parent of the folder to write to (default: temporary)")
    for name, default in (("videos", 64), ("rounds", 9)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=asked.folder) as name:
        folder = Path(name)
        if asked.source is None:
            write_toy_videos(
                folder / "toy", num_videos=asked.videos, size=128, num_frames=64, seed=0
            )
        found = VideoTree(asked.source or str(folder / "toy")).videos
        videos = [os.path.abspath(path) for path in found][: asked.videos]
        lists = [read_manifest(path) for path in write_lists(folder, videos)]
        sys.stdout.write(f"{len(videos)} videos, {asked.rounds} rounds\n")
        for decoder in values_of(Decoder):
            if missing(decoder):
                continue
            reader = ClipReader(DataConfig(decoder=decoder))
            sides = [ClipDataset(each, reader, seed=0) for each in lists]
            for is_cold in (False, True):
                _measure(decoder, sides, rounds=asked.rounds, is_cold=is_cold)


def _measure(decoder: str, sides: list[ClipDataset], *, rounds: int, is_cold: bool) -> None:
    totals: list[list[tuple[float, float]]] = [[], []]  # of each round: wall, work
    for number in range(rounds + 1):  # the first one warms up
        sums = [[0.0, 0.0], [0.0, 0.0]]
        for index in range(len(sides[0])):
            for side in (0, 1) if (index + number) % 2 else (1, 0):
                for k, value in enumerate(
                    seconds_of(sides[side], (number, index), is_cold=is_cold)
                ):
                    sums[side][k] += value
        for side in range(2):
            totals[side].append((sums[side][0], sums[side][1]))
    for k, clock in enumerate(("of wall time", "of processor time")):
        of_files, of_tar = ([len(sides[0]) / each[k] for each in t[1:]] for t in totals)
        ratios = [one / other for one, other in zip(of_tar, of_files, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        sys.stdout.write(
            f"{decoder}, {'cold' if is_cold else 'warm'}, clips per second {clock}: "
            f"{statistics.median(of_files):.1f} as files, {statistics.median(of_tar):.1f} in a "
            f"tar; ratio of rounds: median {middle:.3f}, quartiles {low:.3f} to {high:.3f}\n"
        )


if __name__ == "__main__":
    main()
