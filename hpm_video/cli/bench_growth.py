"""``hpm-video bench growth``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import SIZES, add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=2, rounds=3)
    parser.add_argument("--size", choices=SIZES, default="tiny")
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.growth import bench_growth

    return bench_growth(
        size=arguments.size,
        batch_size=arguments.batch_size,
        rounds=arguments.rounds,
        precision=arguments.precision,
        device=arguments.device,
    )
