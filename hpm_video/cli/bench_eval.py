"""``hpm-video bench eval``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import DECODERS, add_videos

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_videos(parser)
    text = "(default %(default)s)"
    parser.add_argument("--decoder", choices=DECODERS, default="decord", help=text)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.views import bench_views

    return bench_views(
        source=arguments.source,
        num_videos=arguments.videos,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        decoder=arguments.decoder,
    )
