"""``hpm-video bench step``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import SIZES, add_clip, add_timing, add_variants

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=4)
    add_clip(parser)
    add_variants(parser, token_ratios=[0.25], predictor_inputs=["pixels"], predictor_depths=[1])
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.step import bench_step

    return bench_step(
        size=arguments.size,
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        precision=arguments.precision,
        compile_models=arguments.compile,
        predictor_inputs=arguments.predictor_input,
        token_ratios=arguments.token_ratio,
        predictor_depths=arguments.predictor_depth,
        device=arguments.device,
    )
