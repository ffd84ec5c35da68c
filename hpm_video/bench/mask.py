"""Batched mask making against the loop over clips of published code."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds
from hpm_video.config import EncoderConfig
from hpm_video.method.masking import hard_mask, num_masked_units, random_mask
from hpm_video.models.build import token_grid
from hpm_video.models.tokens import TokenGrid
from hpm_video.runtime.distributed import pick_device


def loop_random_mask(
    batch_size: int, grid: TokenGrid, *, mask_ratio: float, random: np.random.Generator
) -> Tensor:
    """Random tubes, clip by clip in numpy, as data sets of published code do -> (B, N) bool."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=grid.time)
    masks = []
    for _ in range(batch_size):
        tubes = np.zeros(grid.num_tubes, dtype=bool)
        tubes[random.permutation(grid.num_tubes)[:masked]] = True
        masks.append(np.tile(tubes, grid.time))
    return torch.from_numpy(np.stack(masks))


def loop_hard_mask(
    scores: Tensor,
    grid: TokenGrid,
    *,
    mask_ratio: float,
    hard_ratio: float,
    random: np.random.Generator,
) -> Tensor:
    """The tubes of highest mean score (B, N), then random others, clip by clip -> (B, N) bool."""
    masked = num_masked_units(grid, mask_ratio=mask_ratio, tube_length=grid.time)
    masks = []
    for row in scores.cpu().numpy():
        order = np.argsort(-row.reshape(grid.time, grid.num_tubes).mean(axis=0))
        hard = int(hard_ratio * masked)
        tubes = np.zeros(grid.num_tubes, dtype=bool)
        tubes[order[:hard]] = True
        tubes[random.permutation(order[hard:])[: masked - hard]] = True
        masks.append(np.tile(tubes, grid.time))
    return torch.from_numpy(np.stack(masks))


def bench_mask(
    *, batch_size: int, num_frames: int, crop_size: int, rounds: int, device: str
) -> Report:
    """Tube masks of mask_ratio .9, half of it hard, made on the device; the loop's are copied."""
    at_least("batch-size", batch_size, 1)
    at_least("frames", num_frames, 1)
    at_least("crop-size", crop_size, 1)
    at_least("rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    grid = token_grid(EncoderConfig(), num_frames=num_frames, crop_size=crop_size)
    generator = torch.Generator(place).manual_seed(0)
    scores = torch.rand(batch_size, grid.num_tokens, generator=generator, device=place)
    random = np.random.default_rng(0)
    seconds = median_seconds(
        {
            "random, ours": lambda: random_mask(
                batch_size,
                grid,
                mask_ratio=0.9,
                tube_length=grid.time,
                generator=generator,
                device=place,
            ),
            "random, loop": lambda: loop_random_mask(
                batch_size, grid, mask_ratio=0.9, random=random
            ).to(place),
            "hard, ours": lambda: hard_mask(
                scores,
                grid,
                mask_ratio=0.9,
                hard_ratio=0.5,
                tube_length=grid.time,
                generator=generator,
            ),
            "hard, loop": lambda: loop_hard_mask(
                scores, grid, mask_ratio=0.9, hard_ratio=0.5, random=random
            ).to(place),
        },
        rounds=rounds,
        warmup=3,
        device=place,
    )
    return Report(
        "mask",
        machine_facts(place),
        {"batch_size": batch_size, "tokens": grid.num_tokens, "rounds": rounds},
        [
            {
                "mask": name,
                "median_ms": 1000 * value,
                "ratio_to_loop": value / seconds[f"{name.partition(',')[0]}, loop"],
            }
            for name, value in seconds.items()
        ],
    )
