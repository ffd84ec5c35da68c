"""From items to batches: which clip comes when, and the workers that read them."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler, Subset, default_collate

from hpm_video.config import DataConfig
from hpm_video.data.bad_videos import UnreadableDataError
from hpm_video.data.dataset import (
    MAX_UNREADABLE_IN_A_ROW,
    ClipDataset,
    ClipSample,
    ViewDataset,
    ViewSample,
)
from hpm_video.data.manifest import Manifest
from hpm_video.data.video import NO_SUCH_FILE, check_decoder
from hpm_video.distributed import World


@dataclass(frozen=True)
class ClipBatch:
    """A micro-batch of B videos with R crops each; the R crops of a video are neighbours.

    Attributes:
        clips: (B * R, T, S, S, 3) uint8; (0, T, S, S, 3) when 20 videos in a row were unreadable,
            which are then the last ones in `bad`.
        labels: (B * R,) int64.
        indices: (B * R,) int64, places in the manifest.
        bad: (manifest index, reason) of the unreadable videos met for this batch.
    """

    clips: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    bad: list[tuple[int, str]]

    def pin_memory(self) -> "ClipBatch":
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            clips=self.clips.pin_memory(),
            labels=self.labels.pin_memory(),
            indices=self.indices.pin_memory(),
        )


@dataclass(frozen=True)
class ViewBatch:
    """All V views of each of B videos.

    Attributes:
        views: (B, V, T, S, S, 3) uint8, zeros for an unreadable video.
        labels: (B,) int64.
        indices: (B,) int64, places in the manifest.
        errors: per video, why it is unreadable, else None.
    """

    views: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    errors: list[str | None]

    def pin_memory(self) -> "ViewBatch":
        """Return the batch in page-locked memory (called by the DataLoader)."""
        return replace(
            self,
            views=self.views.pin_memory(),
            labels=self.labels.pin_memory(),
            indices=self.indices.pin_memory(),
        )


def steps_per_epoch(num_videos: int, global_batch: int) -> int:
    """Return how many whole batches of `global_batch` videos an epoch has; the rest is dropped.

    Raises:
        ValueError: not even one batch can be filled.
    """
    if global_batch > num_videos:
        raise ValueError(
            f"data.batch_size x optim.accumulation x processes ({global_batch}) "
            f"must be at most the number of videos ({num_videos})"
        )
    return num_videos // global_batch


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) keys of this process, micro-batch by micro-batch, over the whole run.

    Every step takes the next batch_size * accumulation * world_size videos of its epoch's random
    order, laid out as [micro-batch][process][position]. Hence what is in a step, and in which
    order, depends on the product only, not on how it is shared out; and a run that starts at
    `start_step` goes on exactly as one that never stopped.

    Args:
        num_videos: size of the data set.
        batch_size: videos per process and micro-batch.
        accumulation: micro-batches per step.
        world_size: number of processes.
        rank: of this process.
        seed: of the order, at least 0; the same in all processes.
        start_step: the first step to yield.
        num_steps: the step to stop before, counted from the start of the run.

    Raises:
        ValueError: the data set is smaller than one step.
    """

    def __init__(
        self,
        num_videos: int,
        *,
        batch_size: int,
        accumulation: int,
        world_size: int,
        rank: int,
        seed: int,
        start_step: int,
        num_steps: int,
    ) -> None:
        assert 0 <= rank < world_size and 0 <= start_step <= num_steps
        self.num_videos = num_videos
        self.batch_size = batch_size
        self.accumulation = accumulation
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.start_step = start_step
        self.num_steps = num_steps
        self.global_batch = batch_size * accumulation * world_size
        self.steps_per_epoch = steps_per_epoch(num_videos, self.global_batch)

    def __len__(self) -> int:
        """Return the number of micro-batches to come."""
        return (self.num_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order_epoch, order = -1, torch.empty(0)
        for step in range(self.start_step, self.num_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, self._order(epoch)
            start = step_in_epoch * self.global_batch
            chosen = order[start : start + self.global_batch]
            # (G,) -> (accumulation, world_size, batch_size) -> ours
            layout = chosen.view(self.accumulation, self.world_size, self.batch_size)
            for indices in layout[:, self.rank].tolist():
                yield [(epoch, index) for index in indices]

    def _order(self, epoch: int) -> torch.Tensor:
        # SeedSequence mixes: with seed + epoch, run 0's epoch 1 would be run 1's epoch 0
        (seed,) = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(seed))
        return torch.randperm(self.num_videos, generator=generator)


def train_loader(
    dataset: ClipDataset, sampler: StepSampler, *, num_workers: int, pin_memory: bool
) -> DataLoader[Any]:
    """Return an iterable of `ClipBatch`, one per micro-batch: a single one for the whole run.

    As the sampler goes through all epochs, workers never stop and refill between two of them.
    With `num_workers` 0 clips are read by the calling process.
    """
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_collate_clips,
        worker_init_fn=_start_worker,
        persistent_workers=num_workers > 0,
        generator=torch.Generator(),  # else the loader draws from the global one
    )


def clip_batches(
    manifest: Manifest,
    data: DataConfig,
    *,
    accumulation: int,
    world: World,
    seed: int,
    start_step: int,
    num_steps: int,
) -> Iterator[ClipBatch]:
    """Iterate over this process's micro-batches of steps start_step to num_steps of a run.

    Raises:
        UnreadableDataError: 20 videos in a row are unreadable.
        ValueError: data.decoder is not installed.
    """
    check_decoder(data.decoder)
    dataset = ClipDataset(
        manifest,
        num_frames=data.num_frames,
        frame_stride=data.frame_stride,
        sampling=data.sampling,
        crop_size=data.crop_size,
        crop=data.crop,
        flip=data.flip,
        repeats=data.repeats,
        seed=seed,
        decoder=data.decoder,
    )
    sampler = StepSampler(
        len(manifest),
        batch_size=data.batch_size,
        accumulation=accumulation,
        world_size=world.size,
        rank=world.rank,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
    )
    on_cuda = world.device.type == "cuda"
    loader = train_loader(dataset, sampler, num_workers=data.num_workers, pin_memory=on_cuda)
    for batch in loader:
        # Raised here and not by a worker, from where nothing but a text would arrive
        if len(batch.clips) == 0:
            index, reason = batch.bad[-1]
            message = (
                f"{MAX_UNREADABLE_IN_A_ROW} videos in a row are unreadable, "
                f"the last {manifest.path(index)}: {reason}"
            )
            if all(reason == NO_SUCH_FILE for _, reason in batch.bad):
                root = "null, which means the list's own folder" if data.root is None else data.root
                message += f"; not one file was there: is data.root ({root}) right?"
            raise UnreadableDataError(message, batch.bad)
        yield batch


def view_loader(
    dataset: ViewDataset | Subset[ViewSample],
    *,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
) -> DataLoader[Any]:
    """Return an iterable of `ViewBatch` over this process's share of the videos.

    Process r gets the videos r, r + world_size, ...: shares are disjoint, cover everything, and
    are not padded, so that their sizes, and the last batch of each, may be smaller.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=range(rank, len(dataset), world_size),
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        collate_fn=_collate_views,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
    )


def to_clips(frames: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move frames (B, T, H, W, 3) uint8 to the device as clips (B, 3, T, H, W) float32 in [0, 1].

    The copy is of bytes, and does not wait where `frames` are pinned.
    """
    clips = frames.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)
    return clips.to(torch.float32, memory_format=torch.contiguous_format).div_(255)


def _collate_clips(samples: Sequence[ClipSample]) -> ClipBatch:
    if len(samples[-1].clips) == 0:
        nothing = torch.empty(0, dtype=torch.int64)
        bad = [entry for sample in samples for entry in sample.bad]
        return ClipBatch(samples[-1].clips, nothing, nothing, bad)
    # default_collate stacks straight into shared memory when in a worker
    clips: torch.Tensor = default_collate([sample.clips for sample in samples])
    repeats = clips.shape[1]
    return ClipBatch(
        clips=clips.flatten(0, 1),
        labels=torch.tensor([s.label for s in samples]).repeat_interleave(repeats),
        indices=torch.tensor([s.index for s in samples]).repeat_interleave(repeats),
        bad=[entry for sample in samples for entry in sample.bad],
    )


def _collate_views(samples: Sequence[ViewSample]) -> ViewBatch:
    return ViewBatch(
        views=default_collate([sample.views for sample in samples]),
        labels=torch.tensor([s.label for s in samples]),
        indices=torch.tensor([s.index for s in samples]),
        errors=[s.error for s in samples],
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C and SLURM's warning reach every process of the job; what to do about them is the
    # parent's business, which still wants its batches while it saves a checkpoint
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
