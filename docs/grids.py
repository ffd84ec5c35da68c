"""Print the table of docs/weights.md: a classifier on clips that differ from training.

``python docs/grids.py [RUN [MANIFEST]]``; by default the demo's fine-tuning and its held-out
videos. One clip and one crop per video, in float32.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from hpm_video.config import ClipConfig
from hpm_video.data.lists.manifest import read_manifest
from hpm_video.data.loading.loader import to_clips
from hpm_video.data.samples.views import ViewDataset
from hpm_video.models.build import Classifier
from hpm_video.models.vit import position_table
from hpm_video.weights.load import load_classifier

RUN = Path("outputs/demo/finetune")
MANIFEST = Path("outputs/demo/videos/held_out/manifest.csv")
BATCH = 16


def clips_to_try(frames: int, side: int, patch: int) -> Iterator[ClipConfig]:
    """Clips and tokens that differ from training: finer, longer, resized."""
    yield ClipConfig()
    yield ClipConfig(crop_size=side * 3 // 2)
    yield ClipConfig(num_frames=2 * frames)
    yield ClipConfig(num_frames=2 * frames, crop_size=side * 3 // 2)
    yield ClipConfig(crop_size=side * 3 // 2, patch_size=patch * 3 // 2)
    yield ClipConfig(crop_size=side // 2, patch_size=patch // 2)


@torch.no_grad()
def row(run: Path, manifest_file: Path, clip: ClipConfig) -> str:
    """Clip, tokens, and top-1 with interpolated positions and with a new flat table."""
    model, config, classes = load_classifier(run, clip)
    if not isinstance(model, Classifier):
        raise ValueError(f"run ({run}) must be of a VideoMAE classifier")
    data, encoder = config.data, model.eval().encoder
    manifest = read_manifest(manifest_file, classes=classes)
    views = ViewDataset(manifest, data, num_clips=1, num_crops=1)
    tables = (encoder.positions, position_table(model.grid, encoder.width))
    right = [0, 0]
    for start in range(0, len(manifest), BATCH):
        samples = [views[index] for index in range(start, min(start + BATCH, len(manifest)))]
        clips = to_clips(torch.cat([sample.views for sample in samples]), "cpu")
        labels = torch.tensor([sample.label for sample in samples])
        for number, table in enumerate(tables):
            encoder.positions = table
            right[number] += int((model(clips).argmax(dim=1) == labels).sum())
    top1 = [f"{count / len(manifest):.3f}".lstrip("0") for count in right]
    clips_text = f"{data.num_frames} frames, {data.crop_size} x {data.crop_size}"
    return f"| {clips_text} | {encoder.tokens.shape} | {model.grid} | {top1[0]} | {top1[1]} |"


def main(run: Path, manifest: Path) -> None:
    """Print the table."""
    _, config, _ = load_classifier(run)
    sys.stdout.write("| clips | a token | grid | top-1, interpolated | top-1, flat table |\n")
    sys.stdout.write("|---|---|---|---|---|\n")
    data = config.data
    for clip in clips_to_try(data.num_frames, data.crop_size, config.model.patch_size):
        sys.stdout.write(row(run, manifest, clip) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="?", type=Path, default=RUN, help="run folder of fine-tuning")
    parser.add_argument("manifest", nargs="?", type=Path, default=MANIFEST, help="labelled videos")
    arguments = parser.parse_args()
    main(arguments.run, arguments.manifest)
