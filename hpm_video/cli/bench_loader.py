"""``hpm-video bench loader``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import ALL, DECODERS, add_videos

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_videos(parser)
    parser.add_argument("--decoder", nargs="+", choices=DECODERS, default=list(DECODERS), help=ALL)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.loader import bench_loader

    return bench_loader(
        source=arguments.source,
        num_videos=arguments.videos,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        decoders=arguments.decoder,
    )
