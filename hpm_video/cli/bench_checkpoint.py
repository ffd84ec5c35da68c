"""``hpm-video bench checkpoint``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_device, add_number, add_sizes

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sizes(parser, ["small", "base", "large"])
    add_number(parser, "--rounds", 3, "median of so many")
    parser.add_argument("--folder", help="where to write (default: a temporary folder)")
    add_device(parser)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.checkpoint import bench_checkpoint

    return bench_checkpoint(
        sizes=arguments.size,
        rounds=arguments.rounds,
        folder=arguments.folder,
        device=arguments.device,
    )
