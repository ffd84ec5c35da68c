"""Losses of a checkpoint on all videos of a list; notation as in `hpm_video.visualize.hardness`."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpm_video.config.limits import between
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.loader import view_loader
from hpm_video.data.samples.views import ViewDataset
from hpm_video.evaluate.mining_quality import measured_loss, predicted_loss
from hpm_video.evaluate.pretrained import Pretrained, require_scorer
from hpm_video.method.diagnostics import rank_correlation
from hpm_video.method.masking import unit_scores
from hpm_video.runtime.distributed import World, gather_to_main, seed_of
from hpm_video.runtime.progress import Progress
from hpm_video.visualize.hardness import Array, Hardness, Losses, ShownClip, rank_shares

NUM_FRAMES = 4  # frames shown of each of the hardest and easiest clips

_Losses = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Asking:
    """Settings of the measurement; raises ValueError for a number out of range.

    num_masks: random masks behind a measured loss; 0 measures none. num_views: draws of a sparse
    teacher's tokens behind a predicted loss. num_shown: clips shown at either end.
    """

    num_masks: int
    num_views: int
    num_shown: int
    batch_size: int
    num_workers: int
    decode_timeout_s: float | None
    seed: int

    def __post_init__(self) -> None:
        lowest = {"num_masks": 0, "num_views": 1, "num_shown": 0, "batch_size": 1, "num_workers": 0}
        for name, low in lowest.items():
            if (value := getattr(self, name)) < low:
                raise ValueError(f"{name} ({value}) must be at least {low}")
        between("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class _Clip:
    """A clip: list index, mean losses by kind (per tube, per time step), and their correlation."""

    index: int
    losses: dict[str, tuple[_Losses, _Losses]]
    spearman: float | None

    @property
    def hardness(self) -> float:
        return float(next(iter(self.losses.values()))[0].mean(dtype=np.float64))


@torch.no_grad()
def measure_list(
    pretrained: Pretrained, manifest: Manifest, asking: Asking, world: World
) -> Hardness | None:
    """Measure the middle clip of every video; processes share the list.

    Rank 0 gets the result, other ranks None. Raises ValueError if there is nothing to measure (no
    masks, and a checkpoint without a predictor); FloatingPointError if a loss is not finite: the
    weights do not form a working model.
    """
    if asking.num_masks == 0:
        require_scorer(pretrained)
    batches = view_loader(
        ViewDataset(manifest, pretrained.config.data, num_clips=1, num_crops=1),
        batch_size=asking.batch_size,
        num_workers=asking.num_workers,
        rank=world.rank,
        world_size=world.size,
        timeout_s=asking.decode_timeout_s or None,
        device=world.device,
    )
    clips: dict[int, _Clip] = {}
    shown: dict[int, ShownClip] = {}
    bad: list[tuple[int, str]] = []
    share = range(world.rank, len(manifest), world.size)
    with Progress("measured" if world.is_main else "", total=len(share)) as progress:
        for batch in batches:
            frames = batch.views[:, 0]  # (B, T, S, S, 3), zeros for unreadable ones
            # One seed per batch: with a single seed, every 8th clip would get the same 8 masks
            seed = seed_of(asking.seed, int(batch.indices[0]))
            losses, spearman = _ask(pretrained, batch.on(world.device), asking, seed=seed)
            for place, index in enumerate(batch.indices.tolist()):
                error = batch.errors[place]
                progress.step(bad=error is not None)
                if error is not None:
                    bad.append((index, error))
                    continue
                known = {kind: values[place] for kind, values in losses.items()}
                if not all(np.isfinite(values).all() for values in known.values()):
                    path = manifest.path(index)
                    raise FloatingPointError(f"the model's losses for {path} are not finite")
                clips[index] = _Clip(
                    index,
                    # (T, R, C) -> means of tubes (R, C) and of time steps (T,)
                    {kind: (v.mean(axis=0), v.mean(axis=(1, 2))) for kind, v in known.items()},
                    None if spearman is None else float(spearman[place]),
                )
                shown[index] = _shown(frames[place], known)
            ends = _ends((clips[index] for index in shown), asking.num_shown)
            shown = {index: shown[index] for index in ends}
    mine = {index: (clip.frames, clip.ranks) for index, clip in shown.items()}
    parts = gather_to_main((_stacked(clips.values()), bad, mine), world)
    if not world.is_main:
        return None
    whole = sorted((clip for part in parts for clip in _clips(*part[0])), key=lambda c: c.index)
    kinds = whole[0].losses if whole else ()
    columns = {kind: zip(*(clip.losses[kind] for clip in whole), strict=True) for kind in kinds}
    shown = {index: ShownClip(*clip) for part in parts for index, clip in part[2].items()}
    return Hardness(
        manifest,
        pretrained.grid,
        np.array([clip.index for clip in whole], dtype=np.int64),
        {kind: Losses(*map(np.stack, column)) for kind, column in columns.items()},
        np.array([clip.spearman for clip in whole]) if len(kinds) > 1 else None,
        {index: shown[index] for index in _ends(whole, asking.num_shown)},
        tuple(sorted(pair for part in parts for pair in part[1])),
    )


_Stacks = dict[str, tuple[_Losses, _Losses]]


def _stacked(clips: Iterable[_Clip]) -> tuple[list[int], _Stacks, list[float | None]]:
    """Clips as a few large arrays, to be gathered between processes."""
    clips = list(clips)
    losses: _Stacks = {}
    for kind in clips[0].losses if clips else ():
        tubes, times = zip(*(clip.losses[kind] for clip in clips), strict=True)
        losses[kind] = np.stack(tubes), np.stack(times)
    return [clip.index for clip in clips], losses, [clip.spearman for clip in clips]


def _clips(indices: list[int], losses: _Stacks, spearman: list[float | None]) -> Iterable[_Clip]:
    for place, index in enumerate(indices):
        own = {kind: (tubes[place], times[place]) for kind, (tubes, times) in losses.items()}
        yield _Clip(index, own, spearman[place])


def _ask(
    pretrained: Pretrained, clips: Tensor, asking: Asking, *, seed: int
) -> tuple[dict[str, _Losses], Array | None]:
    """Losses (B, T, R, C) by kind, and the rank correlation of the two kinds over units (B,)."""
    grid, losses, spearman = pretrained.grid, {}, None
    num_masks, num_views = asking.num_masks, asking.num_views
    if num_masks:
        losses["measured"] = measured_loss(pretrained, clips, num_masks=num_masks, seed=seed)
    if pretrained.scorer is not None:
        losses["predicted"] = predicted_loss(pretrained, clips, num_views=num_views, seed=seed)
    if len(losses) > 1:
        units = [unit_scores(one, grid, pretrained.tube_length) for one in losses.values()]
        spearman = rank_correlation(*units).double().cpu().numpy()
    shape = (-1, grid.time, grid.height, grid.width)
    return {k: v.float().reshape(shape).cpu().numpy() for k, v in losses.items()}, spearman


def _shown(frames: Tensor, losses: dict[str, _Losses]) -> ShownClip:
    """The frames to show out of (T, S, S, 3), with losses (T', R, C)."""
    steps = len(next(iter(losses.values())))
    chosen = np.linspace(0, steps - 1, min(steps, NUM_FRAMES)).round().astype(int)
    pixels = frames[torch.from_numpy(chosen * (len(frames) // steps))].numpy()
    ranks = {kind: rank_shares(values[None])[0, chosen] for kind, values in losses.items()}
    return ShownClip(pixels, ranks)


def _ends(clips: Iterable[_Clip], num_shown: int) -> set[int]:
    """List indices of the hardest and the easiest clips; ties go to the first."""
    order = sorted(clips, key=lambda clip: clip.index)
    hardest = sorted(order, key=lambda clip: -clip.hardness)[:num_shown]
    easiest = sorted(order, key=lambda clip: clip.hardness)[:num_shown]
    return {clip.index for clip in hardest + easiest}
