"""Print the tables of docs/scale.md, the needs of 1 to 512 GPUs: ``python docs/scale.py``.

Measured and counted values are constants with their source; assumptions are options.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

from hpm_video.bench.flops import step_cost
from hpm_video.bench.steps import build_student
from hpm_video.bench.variants import step_config
from hpm_video.config import OptimConfig
from hpm_video.method.teacher import Teacher
from hpm_video.train.optim import scaled

Size = Literal["base", "large", "huge", "giant"]
SIZES: tuple[Size, ...] = ("base", "large", "huge", "giant")
# GPUs -> videos per GPU and micro-batch, optim.accumulation. Up to 64 GPUs a step has the papers'
# 1024 videos; for 512 GPUs that would be too few.
LAYOUTS = {1: (32, 32), 8: (32, 4), 64: (16, 1), 512: (8, 1)}


@dataclass(frozen=True)
class Recipe:
    """A recipe of configs/pretrain/, with the measurements of docs/data.md on similar videos.

    clips_per_s: read by one core (PyAV, one crop of a window), for original and re-encoded files.
    kilobytes: size of these files.
    """

    name: str
    num_videos: int
    clips_per_s: tuple[float, float]
    kilobytes: tuple[float, float]


RECIPES = (
    Recipe("SSv2", 168_913, (37.4, 74.5), (182, 155)),
    Recipe("K400", 240_000, (16.8, 59.2), (435, 608)),
)


@dataclass(frozen=True)
class Model:
    """Counted values of a model.

    operations: per clip and step, two per multiply-add. checkpoint: bytes of weights, two moments
    and the teacher. kept: bytes in training besides activations, that is these and the gradients.
    """

    operations: float
    parameters: int
    checkpoint: int
    kept: int


@cache
def count(size: Size) -> Model:
    """Count for the default pre-training at 16 x 224 x 224 pixels."""
    config = step_config(size=size, frames=16, crop_size=224)
    cost = step_cost(config)
    with torch.device("meta"):
        student = build_student(config)
        teacher = Teacher(student)
    weights, averaged = (sum(p.numel() for p in part.parameters()) for part in (student, teacher))
    return Model(2 * cost.step, weights, 4 * (3 * weights + averaged), 4 * (4 * weights + averaged))


def recipe_rows(teraflops: float, utilisation: float, cores_per_gpu: int) -> list[list[str]]:
    """Rows of the recipes with ViT-B."""
    model, optim, rows = count("base"), OptimConfig(), []
    on_one = teraflops * 1e12 * utilisation / model.operations  # clips/s per GPU
    for recipe in RECIPES:
        cores = [on_one / of_core for of_core in recipe.clips_per_s]
        for gpus, (per_gpu, accumulation) in LAYOUTS.items():
            videos = gpus * per_gpu * accumulation
            steps = optim.epochs * (recipe.num_videos // videos)
            hours = steps * videos / (gpus * on_one) / 3600
            rows.append(
                [
                    *(recipe.name, str(gpus), f"{per_gpu} x {accumulation}", f"{videos:,}"),
                    *(_short(scaled(optim.base_lr, videos)), f"{steps:,}"),
                    _short(1000 * per_gpu * accumulation / on_one),
                    _short(hours),
                    _both(cores),
                    _both([hours * max(1, needed / cores_per_gpu) for needed in cores]),
                    _both([gpus * on_one * size / 1e6 for size in recipe.kilobytes]),
                ]
            )
    return rows


def model_rows(storage_gb_s: float) -> list[list[str]]:
    """Rows of all model sizes: memory per GPU for the training state, and checkpoints."""
    rows = []
    for size in SIZES:
        model = count(size)
        held, saved = model.kept / 1e9, model.checkpoint / 1e9
        rows.append(
            [
                *(size, f"{model.parameters / 1e6:,.0f}", _short(held)),
                *(_short(held / gpus) for gpus in (8, 64, 512)),
                _short(saved),
                *(_short(saved / storage_gb_s / nodes) for nodes in (1, 8, 64)),
            ]
        )
    return rows


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _both(values: Sequence[float]) -> str:
    """Values for original / re-encoded files."""
    return " / ".join(_short(value) for value in values)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> str:
    """Both tables, for the assumptions in ``arguments``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teraflops", type=float, default=989, help="peak of a GPU in bfloat16")
    parser.add_argument("--utilisation", type=float, default=0.2, help="share of the peak reached")
    parser.add_argument("--cores", type=int, default=12, help="loader cores per GPU")
    parser.add_argument(
        "--storage-gb-s", type=float, default=1, help="write rate of a node in GB/s"
    )
    chosen = parser.parse_args(arguments)
    recipes = table(
        [
            *("recipe", "GPUs", "videos per GPU x accumulation", "videos per step", "lr", "steps"),
            *("ms per step", "hours", "loader cores per GPU", f"hours with {chosen.cores} of them"),
            "GB/s read",
        ],
        recipe_rows(chosen.teraflops, chosen.utilisation, chosen.cores),
    )
    models = table(
        [
            *("size", "M parameters", "GB on each GPU, ddp", "fsdp on 8", "on 64", "on 512"),
            *("checkpoint, GB", "s to write, 1 node", "8 nodes", "64 nodes"),
        ],
        model_rows(chosen.storage_gb_s),
    )
    return f"{recipes}\n\n{models}"


if __name__ == "__main__":
    sys.stdout.write(main() + "\n")
