"""Mixup and cutmix of whole clips: pairs are blended, or a box of each becomes the other's.

Partners are neighbours in a step's batch, and each pair has draws of its own, which follow (seed,
step) and its place in that batch. So what is mixed does not depend on how a batch is split over
processes and micro-batches; timm's Mixup and torchvision's, which pair the ends of what they are
given or roll it, and draw from the global generators, would.
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
    """How P pairs of clips are mixed.

    share (P,) float64: of each clip, what stays its own; the rest is its partner's.
    boxes (P, 4) int64: top, left, bottom, right of what is the partner's; all 0: blended instead.
    """

    share: npt.NDArray[np.float64]
    boxes: npt.NDArray[np.int64]

    def part(self, first: int, count: int) -> Mix:
        """That of the pairs first, first + 1, ... first + count - 1."""
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
    """Draw and `mix_clips`. ``rows``: (the first of these clips, number) of the whole batch whose
    part they are; ``rng`` begins anew for every part of it."""
    first, num_clips = rows or (0, len(clips))
    height, width = clips.shape[-2:]
    mix = draw_mix(num_clips // 2, height=height, width=width, mixing=mixing, rng=rng)
    part = mix.part(first // 2, len(clips) // 2)
    return mix_clips(clips, labels, part, repeats=repeats, num_classes=num_classes)


def draw_mix(
    num_pairs: int, *, height: int, width: int, mixing: MixingConfig, rng: np.random.Generator
) -> Mix:
    """Draw a `Mix` for clips of height x width pixels; mixup or cutmix has to be on.

    The partner's share of a cutmix is what of the box lies inside the frame.
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
    """Mix clips (B, 3, T, H, W) float and labels (B,): mixed clips, targets (B, classes) float32.
    Where clips have several labels, these are (B, classes) float already.

    Of every two neighbouring videos, each with ``repeats`` = R clips, clip r of one is mixed with
    clip r of the other, both ways; pair p = R * (video // 2) + r, of B / 2 in all. A target holds
    the shares of the classes.
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
    # (B, H, W) -> (B, 1, 1, H, W): the same in all colours and frames
    mixed = torch.lerp(of_partners(clips), clips, own[:, None, None])
    classes = labels if labels.is_floating_point() else F.one_hot(labels, num_classes).float()
    return mixed, torch.lerp(of_partners(classes), classes, share[:, None])
