"""``hpm-video bench pictures``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import SIZES, add_clip, add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=4, rounds=1)
    add_clip(parser)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.pictures import bench_pictures

    return bench_pictures(
        size=arguments.size,
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        precision=arguments.precision,
        device=arguments.device,
    )
