"""``hpm-video bench flops``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_clip, add_number, add_sizes, add_variants

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_clip(parser)
    add_variants(
        parser,
        token_ratios=[0.5, 0.25, 0.1],
        predictor_inputs=["pixels", "encoded"],
        predictor_depths=[1, 2, 4],
    )
    add_sizes(parser, ["small", "base", "large"])
    add_number(parser, "--decoder-depth", 4, "blocks of the reconstructor")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.flops import bench_flops

    return bench_flops(
        sizes=arguments.size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        decoder_depth=arguments.decoder_depth,
        predictor_inputs=arguments.predictor_input,
        token_ratios=arguments.token_ratio,
        predictor_depths=arguments.predictor_depth,
    )
