"""Asking a checkpoint about all videos of a list; notation as in `hpm_video.visualize.hardness`."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.loader import to_clips, view_loader
from hpm_video.data.samples.views import views_of
from hpm_video.evaluate import mining_quality
from hpm_video.evaluate.pretrained import Pretrained, require_scorer
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.masking import unit_scores
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import World, gather_to_main, seed_of
from hpm_video.runtime.progress import Progress
from hpm_video.visualize.hardness import Array, Hardness, Losses, ShownClip, rank_shares

NUM_FRAMES = 4  # of a clip among the hardest or easiest


@torch.no_grad()
def measure_list(
    pretrained: Pretrained,
    manifest: Manifest,
    *,
    num_masks: int,
    num_views: int,
    num_shown: int,
    batch_size: int,
    num_workers: int,
    decode_timeout_s: float | None,
    seed: int,
    world: World,
) -> Hardness | None:
    """Ask a checkpoint about the middle clip of every video, shared out over processes.

    ``num_masks``: random masks behind a measured loss, 0: none is measured. ``num_shown``: clips
    shown at either end. The main process gets the result, the others None.

    Raises:
        ValueError: nothing to measure: no masks, and a checkpoint without a predictor.
        FloatingPointError: a loss is not finite: the weights are not those of a working model.
    """
    if num_masks == 0:
        require_scorer(pretrained)
    grid, data = pretrained.grid, pretrained.config.data
    batches = view_loader(
        views_of(manifest, data, num_clips=1, num_crops=1),
        batch_size=batch_size,
        num_workers=num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=decode_timeout_s or None,
    )
    extremes = _Extremes(num_shown)
    rows: list[_Row] = []
    bad: list[tuple[int, str]] = []
    share = len(range(world.rank, len(manifest), world.size))
    with Progress("asked about", total=share) as progress:
        for batch in batches:
            indices = batch.indices.tolist()
            frames = batch.views[:, 0]  # (B, T, S, S, 3), zeros for unreadable ones
            clips = to_clips(frames, world.device)
            # Of batches with the same masks, every 8th clip would be measured by the same 8 ones
            of_batch = seed_of(seed, indices[0])
            predicted, measured, spearman = _ask(
                pretrained, clips, num_masks=num_masks, num_views=num_views, seed=of_batch
            )
            for place, (index, error) in enumerate(zip(indices, batch.errors, strict=True)):
                progress.step(bad=error is not None)
                if error is not None:
                    bad.append((index, error))
                    continue
                row = _Row(
                    index,
                    None if predicted is None else _means(predicted[place]),
                    None if measured is None else _means(measured[place]),
                    None if spearman is None else float(spearman[place]),
                )
                if not row.is_finite:
                    raise FloatingPointError(
                        f"the model's losses of {manifest.path(index)} are not finite"
                    )
                rows.append(row)
                extremes.offer(row, frames[place], predicted, measured, place)
    parts = gather_to_main((rows, bad, extremes.clips()), world)
    if not world.is_main:
        return None
    return _join(parts, manifest, grid, num_shown)


@dataclass(frozen=True)
class _Row:
    """A clip: place in the list, (tubes, times) of both losses, their correlation."""

    index: int
    predicted: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None
    measured: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None
    spearman: float | None

    @property
    def hardness(self) -> float:
        losses = self.measured or self.predicted
        assert losses is not None
        return float(losses[0].mean(dtype=np.float64))

    @property
    def is_finite(self) -> bool:
        known = [losses[0] for losses in (self.predicted, self.measured) if losses is not None]
        return all(bool(np.isfinite(tubes).all()) for tubes in known)


class _Extremes:
    """The hardest and easiest clips so far, with what is shown of them."""

    def __init__(self, most: int) -> None:
        self._most = most
        # Sign 1: the hardest, -1: the easiest. The worst kept comes first, of equals the later one
        self._heaps: dict[int, list[tuple[float, int, ShownClip]]] = {1: [], -1: []}

    def offer(
        self,
        row: _Row,
        frames: Tensor,
        predicted: npt.NDArray[np.float32] | None,
        measured: npt.NDArray[np.float32] | None,
        place: int,
    ) -> None:
        """Take a clip of frames (T, S, S, 3), at a place in losses (B, T', R, C), if it is one."""
        for sign, heap in self._heaps.items():
            key = (sign * row.hardness, -row.index)
            if self._most == 0 or (len(heap) == self._most and key < heap[0][:2]):
                continue
            steps = (row.predicted or row.measured or ((), ()))[1]
            chosen = np.linspace(0, len(steps) - 1, min(len(steps), NUM_FRAMES)).round().astype(int)
            tubelet = len(frames) // len(steps)
            shown = ShownClip(
                frames[torch.from_numpy(chosen * tubelet)].numpy(),
                None if predicted is None else _ranks(predicted[place])[chosen],
                None if measured is None else _ranks(measured[place])[chosen],
            )
            change = heapq.heappush if len(heap) < self._most else heapq.heappushpop
            change(heap, (*key, shown))

    def clips(self) -> dict[int, ShownClip]:
        return {-key: shown for heap in self._heaps.values() for _, key, shown in heap}


def _ask(
    pretrained: Pretrained, clips: Tensor, *, num_masks: int, num_views: int, seed: int
) -> tuple[npt.NDArray[np.float32] | None, npt.NDArray[np.float32] | None, Array | None]:
    """Predicted and measured losses (B, T, R, C), and their rank correlation over units (B,)."""
    grid, tube_length = pretrained.grid, pretrained.tube_length
    predicted = measured = None
    if pretrained.scorer is not None:
        predicted = mining_quality.predicted_loss(pretrained, clips, seed=seed, num_views=num_views)
    if num_masks:
        measured = mining_quality.measured_loss(pretrained, clips, num_masks=num_masks, seed=seed)
    spearman = None
    if predicted is not None and measured is not None:
        units = [unit_scores(losses, grid, tube_length) for losses in (predicted, measured)]
        spearman = rank_correlation(*units).double().cpu().numpy()
    shape = (-1, grid.time, grid.height, grid.width)
    arrays = [
        None if losses is None else losses.float().reshape(shape).cpu().numpy()
        for losses in (predicted, measured)
    ]
    return arrays[0], arrays[1], spearman


def _ranks(losses: npt.NDArray[np.float32]) -> Array:
    """Losses of any shape -> `rank_shares` of all of them."""
    return rank_shares(losses.reshape(1, -1)).reshape(losses.shape)


def _means(
    losses: npt.NDArray[np.float32],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Losses (T, R, C) -> means of tubes (R, C) and of time steps (T,)."""
    return losses.mean(axis=0), losses.mean(axis=(1, 2))


def _join(
    parts: Sequence[tuple[list[_Row], list[tuple[int, str]], dict[int, ShownClip]]],
    manifest: Manifest,
    grid: TokenGrid,
    num_shown: int,
) -> Hardness:
    rows = sorted((row for part in parts for row in part[0]), key=lambda row: row.index)

    def losses(name: str) -> Losses | None:
        pairs = [getattr(row, name) for row in rows]
        if not pairs or pairs[0] is None:
            return None
        return Losses(np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs]))

    spearman = None
    if rows and rows[0].spearman is not None:
        spearman = np.array([row.spearman for row in rows])
    ends = {
        row.index
        for sign in (1, -1)
        for row in sorted(rows, key=lambda row: (-sign * row.hardness, row.index))[:num_shown]
    }
    return Hardness(
        manifest,
        grid,
        np.array([row.index for row in rows], dtype=np.int64),
        losses("predicted"),
        losses("measured"),
        spearman,
        {index: clip for part in parts for index, clip in part[2].items() if index in ends},
        tuple(sorted(pair for part in parts for pair in part[1])),
    )
