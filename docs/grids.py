"""The table of docs/weights.md: a classifier on other clips than it was trained with.

``python docs/grids.py [RUN [MANIFEST]]``, of the demo's fine-tuning and its held-out videos unless
others are named. One clip and one crop of each video, in float32.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from hpm_video.config import ClipConfig, EvaluationConfig
from hpm_video.data.manifest import read_manifest
from hpm_video.distributed import join_world
from hpm_video.evaluate import evaluate_classifier, load_classifier
from hpm_video.models import Classifier
from hpm_video.models.vit import position_table

RUN = Path("outputs/demo/finetune")
MANIFEST = Path("outputs/demo/videos/held_out/manifest.csv")


def clips_to_try(frames: int, side: int, tubelet: int, patch: int) -> Iterator[ClipConfig]:
    """Clips and tokens unlike those of training: finer, longer and resized."""
    yield ClipConfig()
    yield ClipConfig(crop_size=side * 3 // 2)
    yield ClipConfig(num_frames=2 * frames)
    yield ClipConfig(num_frames=2 * frames, crop_size=side * 3 // 2)
    yield ClipConfig(crop_size=2 * side, patch_size=2 * patch)
    yield ClipConfig(crop_size=side // 2, patch_size=patch // 2)
    yield ClipConfig(crop_size=side * 3 // 2, patch_size=patch * 3 // 2)


def top1(run: Path, manifest_file: Path, clip: ClipConfig) -> tuple[str, str, float, float]:
    """Clips, grid, top-1 with the trained positions interpolated, and with a fresh flat table."""
    model, config, classes = load_classifier(run, clip)
    if not isinstance(model, Classifier):
        raise ValueError(f"run ({run}) must be of VideoMAE's kind")
    manifest = read_manifest(manifest_file, classes=classes)

    def of(positions: Tensor) -> float:
        model.encoder.positions = positions
        with join_world("cpu", setting="device") as world:
            return evaluate_classifier(
                model,
                manifest,
                data=config.data,
                evaluation=EvaluationConfig(num_clips=1, num_crops=1, batch_size=16),
                precision="float32",
                num_workers=0,
                decode_timeout_s=None,
                world=world,
            ).top(1)

    clips = f"{config.data.num_frames} x {config.data.crop_size} x {config.data.crop_size}"
    tokens = f"{model.encoder.tokens.shape}: {model.grid}"
    flat = position_table(model.grid, model.encoder.width)
    return clips, tokens, of(model.encoder.positions), of(flat)


def main(run: Path = RUN, manifest: Path = MANIFEST) -> None:
    """Print the table."""
    _, config, _ = load_classifier(run)
    sys.stdout.write("| clips | tokens | interpolated | flat table |\n|---|---|---|---|\n")
    for clip in clips_to_try(
        config.data.num_frames,
        config.data.crop_size,
        config.model.tubelet_size,
        config.model.patch_size,
    ):
        clips, tokens, interpolated, flat = top1(run, manifest, clip)
        sys.stdout.write(f"| {clips} | {tokens} | {interpolated:.3f} | {flat:.3f} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
