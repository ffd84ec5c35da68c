"""``hpm-video bench scaling``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import SIZES, add_device, add_number

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--processes", 2, "one thread or GPU each")
    add_number(parser, "--rounds", 7, "median of so many")
    add_number(parser, "--batch-size", 4, "clips of each process")
    add_number(parser, "--frames", 16, "per clip")
    add_number(parser, "--crop-size", 112, "pixels")
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    add_device(parser)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.scaling import bench_scaling

    return bench_scaling(
        size=arguments.size,
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        precision=arguments.precision,
        processes=arguments.processes,
        rounds=arguments.rounds,
        device=arguments.device,
    )
