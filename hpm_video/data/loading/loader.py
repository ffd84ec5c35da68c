"""From items to batches: the order of clips, and the content of a batch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Subset

from hpm_video.config import AugmentConfig, DataConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.data.loading.batches import read_batches
from hpm_video.data.loading.device_copy import Copied, on_device
from hpm_video.data.loading.mixture import Mixture, mixture_of
from hpm_video.data.samples.clips import MAX_UNREADABLE_IN_A_ROW, ClipDataset, ClipReader
from hpm_video.data.samples.device_crops import FrameReader
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.samples.views import ViewDataset, ViewSample
from hpm_video.data.video.frames import NO_SUCH_FILE, check_decoder
from hpm_video.runtime.distributed import World


@dataclass(frozen=True)
class ClipBatch:
    """A micro-batch of B videos with R crops each; the R crops of a video are adjacent."""

    clips: torch.Tensor  # (B * R, T, S, S, 3) uint8; or (B, bytes), rows of `frames` or `scored`
    labels: torch.Tensor  # (B * R,) int64
    indices: torch.Tensor  # (B * R,) int64, indices in the manifest
    bad: list[tuple[int, str]]  # (manifest index, reason) of unreadable videos
    notes: list[tuple[int, str]]  # (manifest index, `Video.note`) of unusual videos
    frames: FrameReader | None = None  # crops on the device, if workers do not
    copied: Copied | None = None  # copy of `clips` to a GPU, under way
    scored: ClipReader | None = None  # locates the scores in rows, if requested

    def scores(self, device: torch.device | str) -> torch.Tensor | None:
        """Scores (B * R, N) float32 of the clips' tokens, on a device; None unless requested."""
        if self.scored is None:
            return None
        scores = self.scored.scores(on_device(self.clips, self.copied, device))
        return None if scores is None else scores.contiguous()  # a copy, as rows are reused

    def on(self, device: torch.device | str, *, as_floats: bool = True) -> torch.Tensor:
        """The clips (B * R, 3, T, S, S) on a device: float32 in [0, 1].

        With ``as_floats`` False, in their own type: uint8, or float32 in [0, 1] if the device makes
        crops.
        """
        there = on_device(self.clips, self.copied, device)
        if self.frames is not None:
            return self.frames.crop(self.clips, there)
        if self.scored is not None:
            there = self.scored.clips(there)
        return to_clips(there, device) if as_floats else to_bytes(there, device)


@dataclass(frozen=True)
class ViewBatch:
    """All V views of each of B videos."""

    views: torch.Tensor  # (B, V, T, S, S, 3) uint8, zeros for an unreadable video
    labels: torch.Tensor  # (B,) int64
    indices: torch.Tensor  # (B,) int64, indices in the manifest
    errors: list[str | None]  # per video, why it is unreadable; None if it is not
    copied: Copied | None = None  # copy of `views` to a GPU, under way

    def on(self, device: torch.device | str, *, num_videos: int | None = None) -> torch.Tensor:
        """The views (B * V, 3, T, S, S) float32 in [0, 1], on a device, video by video.

        ``num_videos``: pad with black views to this number of videos.
        """
        views = on_device(self.views, self.copied, device)
        if num_videos is not None and num_videos > len(views):
            views = torch.cat([views, views.new_zeros(num_videos - len(views), *views.shape[1:])])
        return to_clips(views.flatten(0, 1), device)


def steps_per_epoch(num_videos: int, global_batch: int) -> int:
    """Return the number of whole batches of `global_batch` videos per epoch; the rest is dropped.

    Raises ValueError if not even one batch can be filled.
    """
    if global_batch > num_videos:
        raise ValueError(
            f"videos per step ({global_batch}) must be at most the number of videos "
            f"({num_videos}): lower optim.total_batch, or data.batch_size x optim.accumulation "
            "x processes"
        )
    return num_videos // global_batch


@dataclass(frozen=True)
class StepSampler:
    """The clips of each micro-batch of this rank, as lists of (epoch, index).

    The order of an epoch depends on the seed and the epoch alone. Its first `steps_per_epoch`
    batches of `global_batch` videos are used, so no video appears more often than `mixture` says,
    or more than once without it. The slots of a step are assigned in the order
    [micro-batch][rank][position]. Hence the content and order of a step depend only on the product
    of these sizes. A run that starts at `start_step` continues exactly like one that never stopped.

    Raises ValueError if the data set is smaller than one step.
    """

    num_videos: int  # per epoch
    _: KW_ONLY
    batch_size: int  # videos per rank and micro-batch
    accumulation: int  # micro-batches per step
    world_size: int  # number of ranks
    rank: int  # of this process
    seed: int  # of the order, at least 0; equal on all ranks
    start_step: int  # first step to yield
    num_steps: int  # end step (exclusive), counted from the start of the run
    mixture: Mixture | None = None  # of several lists; its epochs have num_videos videos

    def __post_init__(self) -> None:
        assert 0 <= self.rank < self.world_size and 0 <= self.start_step <= self.num_steps
        assert self.mixture is None or self.mixture.num_videos == self.num_videos
        _ = self.steps_per_epoch

    @property
    def global_batch(self) -> int:
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.num_videos, self.global_batch)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        mixture = self.mixture or Mixture((self.num_videos,))
        order_epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.num_steps):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            if epoch != order_epoch:
                order_epoch, order = epoch, mixture.order(self.seed, epoch)
            start = step_in_epoch * self.global_batch
            chosen = order[start : start + self.global_batch]
            # (G,) -> (accumulation, world_size, batch_size) -> ours
            layout = chosen.reshape(self.accumulation, self.world_size, self.batch_size)
            for indices in layout[:, self.rank].tolist():
                yield [(epoch, index) for index in indices]


def train_loader(
    dataset: ClipDataset,
    sampler: StepSampler,
    *,
    device: torch.device | None = None,
    given_up: Mapping[str, str] | None = None,
) -> Iterator[ClipBatch]:
    """Iterate over one `ClipBatch` per micro-batch, for the whole run.

    ``device``: where batches are needed. The sampler covers all epochs, so workers do not stop and
    refill between epochs.

    Raises UnreadableDataError if 20 videos in a row are unreadable.
    """
    reader = dataset.reader
    batches = read_batches(
        dataset,
        sampler,
        num_workers=reader.data.num_workers,
        timeout_s=reader.data.decode_timeout_s or None,
        device=device,
        given_up=given_up,
    )
    for rows, readings, copied in batches:
        bad = [entry for reading in readings for entry in reading.bad]
        found = [reading.index for reading in readings if reading.index is not None]
        if len(found) < len(readings):
            index, reason = next(r.bad[-1] for r in readings if r.index is None)
            raise UnreadableDataError(
                f"{MAX_UNREADABLE_IN_A_ROW} videos in a row are unreadable, "
                f"the last {dataset.manifest.path(index)}: {reason}",
                bad,
            )
        indices, labels = _indices_and_labels(
            np.repeat(found, reader.data.repeats), dataset.manifest.targets, device
        )
        notes = [(r.index, r.note) for r in readings if r.index is not None and r.note]
        frames = reader if isinstance(reader, FrameReader) else None
        scored = None if reader.tubelet is None else reader
        clips = rows if rows.ndim == 2 else reader.clips(rows)
        yield ClipBatch(clips, labels, indices, bad, notes, frames, copied, scored)
        del rows, clips, copied  # memory of the loader, see `read_batches`


def _indices_and_labels(
    places: Sequence[int] | npt.NDArray[np.int64],
    labels_of: Callable[[npt.NDArray[np.int64]], npt.NDArray[Any]],
    device: torch.device | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    indices = torch.tensor(places)
    labels = torch.from_numpy(labels_of(indices.numpy()))
    if device is not None and device.type == "cuda":
        return indices.pin_memory(), labels.pin_memory()
    return indices, labels


def clip_batches(
    manifest: Manifest,
    data: DataConfig,
    *,
    accumulation: int,
    world: World,
    seed: int,
    start_step: int,
    num_steps: int,
    given_up: Mapping[str, str] | None = None,
    augment: AugmentConfig | None = None,
    tubelet: Tubelet | None = None,
) -> Iterator[ClipBatch]:
    """Iterate over this rank's micro-batches of steps start_step to num_steps of a run.

    Videos in given_up, path -> reason, count as unreadable. ``tubelet``: also compute token scores.
    Raises UnreadableDataError if 20 videos in a row are unreadable, or ValueError if data.decoder
    is not installed.
    """
    check_decoder(data.decoder)
    reader = {"workers": ClipReader, "device": FrameReader}[data.crop_on](data, augment, tubelet)
    mixture = mixture_of(manifest, data.weights)
    sampler = StepSampler(
        mixture.num_videos,
        mixture=mixture,
        batch_size=data.videos_at_once,
        accumulation=accumulation,
        world_size=world.size,
        rank=world.rank,
        seed=seed,
        start_step=start_step,
        num_steps=num_steps,
    )
    dataset = ClipDataset(manifest, reader, seed=seed)
    try:
        yield from train_loader(dataset, sampler, device=world.device, given_up=given_up)
    except UnreadableDataError as error:
        if any(reason != NO_SUCH_FILE for _, reason in error.bad):
            raise
        root = "null: the folder of the list" if data.root is None else data.root
        raise UnreadableDataError(
            f"{error}; no file was found: check data.root ({root})", error.bad
        ) from None


def view_loader(
    dataset: ViewDataset | Subset[ViewSample],
    *,
    batch_size: int,
    num_workers: int,
    rank: int,
    world_size: int,
    timeout_s: float | None = None,
    device: torch.device | None = None,
) -> Iterator[ViewBatch]:
    """Iterate over this rank's share of the videos, in `ViewBatch` units.

    Rank r gets the videos r, r + world_size, ... Shares are disjoint, cover everything and are not
    padded, so their sizes may differ, and the last batch of each may be smaller. For num_workers,
    timeout_s and device see `read_batches`.
    """
    videos = dataset.dataset if isinstance(dataset, Subset) else dataset
    assert isinstance(videos, ViewDataset)
    order = dataset.indices if isinstance(dataset, Subset) else range(len(videos))
    share = order[rank::world_size]
    keys = [share[start : start + batch_size] for start in range(0, len(share), batch_size)]
    batches = read_batches(
        videos, keys, num_workers=num_workers, timeout_s=timeout_s, device=device
    )
    for batch_keys, batch in zip(keys, batches, strict=True):
        labels_of = videos.manifest.labels.__getitem__
        indices, labels = _indices_and_labels(batch_keys, labels_of, device)
        errors = [reading.bad[0][1] if reading.bad else None for reading in batch.readings]
        yield ViewBatch(batch.rows, labels, indices, errors, batch.copied)


def to_bytes(frames: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move frames (B, T, H, W, 3) uint8 to the device as clips (B, 3, T, H, W) uint8.

    The copy is asynchronous if `frames` are pinned.
    """
    # The memory layout stays channels-last, which is also that of patches.
    return frames.to(device, non_blocking=True).permute(0, 4, 1, 2, 3)


def to_clips(frames: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """`to_bytes`, converted to float32 in [0, 1] on the device."""
    return to_bytes(frames, device).to(torch.float32).div_(255)
