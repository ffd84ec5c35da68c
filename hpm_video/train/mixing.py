"""Mixup and cutmix of whole clips: pairs are blended, or exchange a box.

Partners are neighbours in a step's batch, and each pair draws by (seed, step) and its place in that
batch. Results therefore do not depend on how a batch is split over ranks and micro-batches. timm's
and torchvision's versions flip or roll the tensor they get and use global generators, so theirs do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.config import MixingConfig
from hpm_video.method.masking import Rows


@dataclass(frozen=True)
class Mix:
    """Mixing parameters of P pairs of clips.

    share (P,) float64: share of each clip that is its own; the rest is its partner's.
    boxes (P, 4) int64: top, left, bottom, right of the box taken from the partner; all 0 for
    blending.
    """

    share: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.int64]

    def part(self, first: int, count: int) -> Mix:
        """The parameters of pairs first .. first + count - 1."""
        return Mix(self.share[first : first + count], self.boxes[first : first + count])


def mix_batch(
    clips: Tensor,
    labels: Tensor,
    *,
    mixing: MixingConfig,
    repeats: int,
    num_classes: int,
    rng: np.random.Generator,
    rows: Rows | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw parameters and mix, see `mix_clips`.

    ``rows``: (first, total). The clips are rows first .. first + B of a batch of ``total`` clips;
    pass an ``rng`` in the same state for every part of that batch.
    """
    first, num_clips = rows or (0, len(clips))
    height, width = clips.shape[-2:]
    mix = draw_mix(num_clips // 2, height=height, width=width, mixing=mixing, rng=rng)
    part = mix.part(first // 2, len(clips) // 2)
    return mix_clips(clips, labels, part, repeats=repeats, num_classes=num_classes)


def draw_mix(
    num_pairs: int, *, height: int, width: int, mixing: MixingConfig, rng: np.random.Generator
) -> Mix:
    """Draw a `Mix` for clips of height x width pixels; mixup or cutmix must be on.

    In cutmix the partner's share is the area of the box inside the frame.
    """
    assert mixing.is_on
    switch = mixing.switch if min(mixing.mixup, mixing.cutmix) > 0 else float(mixing.cutmix > 0)
    has_box = rng.random(num_pairs) < switch
    blended, pasted = (
        rng.beta(alpha, alpha, num_pairs) if alpha > 0 else np.zeros(num_pairs)
        for alpha in (mixing.mixup, mixing.cutmix)
    )
    size = np.array([height, width])
    side = (np.sqrt(1 - pasted)[:, None] * size).astype(np.int64)  # (P, 2)
    centre = rng.integers(0, size, (num_pairs, 2))
    start = (centre - side // 2).clip(0, size)
    stop = (centre + (side + 1) // 2).clip(0, size)
    inside = 1 - (stop - start).prod(axis=1) / (height * width)
    boxes = np.concatenate([start, stop], axis=1) * has_box[:, None]
    return Mix(np.where(has_box, inside, blended), boxes)


def mix_clips(
    clips: Tensor, labels: Tensor, mix: Mix, *, repeats: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Mix clips (B, 3, T, H, W) float -> mixed clips, targets (B, classes) float32.

    ``labels``: (B,) int64, or (B, classes) float if clips have several labels. Of two neighbouring
    videos with ``repeats`` = R clips each, clip r of one is mixed with clip r of the other, both
    ways. The pair's number is R * (video // 2) + r, of B / 2. Targets are the shares of classes.
    """
    pairs = (len(clips) // (2 * repeats), 2, repeats)
    assert len(mix.share) * 2 == len(clips) == pairs[0] * 2 * repeats

    def of_clips(values: npt.NDArray[np.generic]) -> Tensor:
        """(P, ...) of pairs -> (B, ...) of clips, on the device."""
        table = torch.from_numpy(values).to(clips.device, non_blocking=True)
        return (
            table.unflatten(0, (pairs[0], 1, repeats))
            .expand(*pairs, *table.shape[1:])
            .flatten(0, 2)
        )

    def of_partners(values: Tensor) -> Tensor:
        return values.unflatten(0, pairs).flip(1).flatten(0, 2)

    share = of_clips(mix.share.astype(np.float32))  # (B,)
    top, left, bottom, right = of_clips(mix.boxes).unbind(1)  # (B,) each
    rows = torch.arange(clips.shape[-2], device=clips.device)
    columns = torch.arange(clips.shape[-1], device=clips.device)
    in_rows = (rows >= top[:, None]) & (rows < bottom[:, None])  # (B, H)
    in_columns = (columns >= left[:, None]) & (columns < right[:, None])  # (B, W)
    in_box = in_rows[:, :, None] & in_columns[:, None, :]  # (B, H, W)
    has_box = (bottom > 0)[:, None, None]
    own = torch.where(has_box, (~in_box).float(), share[:, None, None])
    # (B, H, W) -> (B, 1, 1, H, W): equal for all channels and frames
    mixed = torch.lerp(of_partners(clips), clips, own[:, None, None])
    classes = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
    return mixed, torch.lerp(of_partners(classes), classes, share[:, None])
