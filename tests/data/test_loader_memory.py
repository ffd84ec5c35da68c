"""What the loader costs in memory over a long run, and over a long list.

`python -m pytest -m slow tests/test_loader_memory.py -s` prints the figures.
"""

import os
from pathlib import Path

import pytest
from processes import children_of
from videos import write_indexed_video

from hpm_video.config import DataConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import StepSampler, train_loader
from hpm_video.data.samples.clips import ClipDataset, ClipReader

NUM_CLIPS = 20_000
BATCH = 20
MIB = 2**20


def memory_in_use(*pids: int, fields: tuple[str, ...] = ("Pss_Anon:", "Pss_Shmem:")) -> int:
    """Bytes of some processes; what they share is divided by the number of those who do.

    Without mapped files, such as PyTorch's libraries: the system drops them where memory is short,
    and counts shares of them that change with what else runs.
    """
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(fields):
                total += int(line.split()[1]) * 1024
    return total


def _clips(folder: Path, num_rows: int, num_workers: int) -> ClipDataset:
    for k in range(20):
        write_indexed_video(folder / f"video {k}.mp4", 12, size=(32, 32))
    names = "".join(f"video {k % 20}.mp4 {k % 7}\n" for k in range(num_rows))
    (folder / "list.txt").write_text(names)
    data = DataConfig(num_frames=4, frame_stride=2, crop_size=32, num_workers=num_workers)
    return ClipDataset(read_manifest(folder / "list.txt"), ClipReader(data), seed=0)


def _sampler(num_videos: int, num_clips: int) -> StepSampler:
    return StepSampler(
        num_videos,
        batch_size=BATCH,
        accumulation=1,
        world_size=1,
        rank=0,
        seed=0,
        start_step=0,
        num_steps=num_clips // BATCH,
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux")
def test_memory_is_flat_over_many_clips(tmp_path: Path) -> None:
    dataset = _clips(tmp_path, num_rows=1000, num_workers=2)
    sampler = _sampler(1000, NUM_CLIPS + 1000)  # the workers end with the last ones
    used: dict[int, int] = {}
    loader = train_loader(dataset, sampler)
    for step, _ in zip(range(1, NUM_CLIPS // BATCH + 1), loader, strict=False):
        if step * BATCH % 2000 == 0:
            used[step * BATCH] = memory_in_use(os.getpid(), *children_of(os.getpid()))
            print(f"\nafter {step * BATCH} clips: {used[step * BATCH] / MIB:.1f} MiB", end="")
    # What grows by 100 bytes a clip would be past this
    assert used[NUM_CLIPS] - used[2000] < 4 * MIB


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="asks Linux")
def test_a_long_list_stays_in_the_parent(tmp_path: Path) -> None:
    """Two million rows and 8 workers, beside what the libraries take in this process."""
    before = memory_in_use(os.getpid())
    dataset = _clips(tmp_path, num_rows=2_000_000, num_workers=8)
    loader = train_loader(dataset, _sampler(2_000_000, 4000))
    for _ in zip(range(150), loader, strict=False):
        pass
    here = memory_in_use(os.getpid()) - before
    starter, *workers = (
        memory_in_use(pid, fields=("Private_Dirty:",)) for pid in children_of(os.getpid())
    )
    shared = memory_in_use(*children_of(os.getpid())) - starter - sum(workers)
    print(
        f"\n2,000,000 rows: {here / MIB:.0f} MiB here, {max(workers) / MIB:.0f} MiB in each of "
        f"{len(workers)} workers, {(starter + shared) / MIB:.0f} MiB that these share"
    )
    assert len(workers) == 8 and max(workers) < 20 * MIB
    assert here + sum(workers) + starter + shared < 700 * MIB
