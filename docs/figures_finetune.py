"""Draw the picture of docs/finetune.md: ``python docs/figures_finetune.py [FOLDER]``.

Toy videos, augmented and mixed by the functions that training uses.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from hpm_video.config import AugmentConfig, MixingConfig
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.prepare.toy_drawing import render_toy_video
from hpm_video.data.samples.augment import OPERATIONS, augment
from hpm_video.data.video.crops import random_resized_crop, resize_crop
from hpm_video.train.mixing import Mix, draw_mix, mix_clips

_SIZE = 112  # pixels
_FRAMES = (0, 5, 10, 15)


def augmentations() -> Figure:
    """Augmentation of clips, equal in all frames, and each operation of RandAugment."""
    settings = AugmentConfig()
    video, other = (_video(index) for index in (0, 3))
    plain = replace(settings, erasing=0.0)
    rows = {
        "the clip": video,
        "crop": _crop(video, seed=4),
        "crop and\nRandAugment": augment(_crop(video, seed=4), plain, rng=_rng(6)),
        "... drawn\nanother time": augment(_crop(video, seed=8), plain, rng=_rng(7)),
        "random\nerasing": augment(
            video, replace(settings, num_operations=0, erasing=1.0), rng=_rng(1)
        ),
        "mixup": _mixed(video, other, MixingConfig(cutmix=0.0), seed=2),
        "cutmix": _mixed(video, other, MixingConfig(mixup=0.0), seed=3),
    }
    figure = plt.figure(figsize=(9, 6.3))
    left, right = figure.add_gridspec(1, 2, width_ratios=[4.0, 3.3], wspace=0.06)
    strips = left.subgridspec(len(rows), len(_FRAMES), wspace=0.04, hspace=0.04)
    for row, (name, clip) in enumerate(rows.items()):
        for column, frame in enumerate(_FRAMES):
            panel = figure.add_subplot(strips[row, column])
            _show(panel, clip[frame])
            if row == 0:
                panel.set_title(f"frame {frame}", fontsize=8)
            if column == 0:
                panel.set_ylabel(name, rotation=0, ha="right", va="center", labelpad=4, fontsize=9)
    each = right.subgridspec(5, 3, wspace=0.04, hspace=0.3)
    for place, (name, operation) in enumerate(OPERATIONS.items()):
        panel = figure.add_subplot(each[place // 3, place % 3])
        _show(panel, operation(video, settings.magnitude / 10, 1)[5])
        panel.set_title(name.replace("_", " "), fontsize=8)
    figure.text(
        0.79,
        0.975,
        f"RandAugment's operations at magnitude {settings.magnitude:g}",
        ha="center",
        fontsize=9,
    )
    figure.subplots_adjust(left=0.1, right=0.99, top=0.94, bottom=0.01)
    return figure


def _video(index: int) -> Tensor:
    """A toy video (T, H, W, 3) uint8."""
    frames, _ = render_toy_video(2, index, size=_SIZE, num_frames=16, distractors=2)
    return torch.from_numpy(frames)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def _crop(clip: Tensor, *, seed: int) -> Tensor:
    box = random_resized_crop(_SIZE, _SIZE, rng=_rng(seed), scale=(0.3, 0.7))
    return resize_crop(clip, box, _SIZE)


def _mixed(one: Tensor, other: Tensor, mixing: MixingConfig, *, seed: int) -> Tensor:
    """The first of two mixed clips; redrawn until both are clearly present."""
    rng = _rng(seed)
    mix = Mix(np.zeros(1), np.zeros((1, 4), dtype=np.int64))
    while not 0.45 < mix.share[0] < 0.75:
        mix = draw_mix(1, height=_SIZE, width=_SIZE, mixing=mixing, rng=rng)
    clips = to_clips(torch.stack([one, other]), "cpu")
    mixed, _ = mix_clips(clips, torch.tensor([0, 1]), mix, repeats=1, num_classes=2)
    return mixed[0].permute(1, 2, 3, 0)  # (3, T, H, W) -> (T, H, W, 3)


def _show(panel: Axes, frame: Tensor) -> None:
    panel.imshow(frame.numpy())
    panel.set(xticks=[], yticks=[])


def draw(folder: Path) -> None:
    """Write the picture as PNG into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    figure = augmentations()
    figure.savefig(folder / "augmentations.png", facecolor="white", dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    images = Path(__file__).parent / "images"
    parser.add_argument(
        "folder", nargs="?", type=Path, default=images, help="folder for the picture"
    )
    draw(parser.parse_args().folder)
