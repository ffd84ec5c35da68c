"""``hpm-video bench step``."""

import argparse

from hpm_video.cli import bench_options as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_timing(parser, batch_size=4)
    options.add_threads(parser)
    options.add_clip(parser)
    options.add_variants(parser, [0.25], ["pixels"], [1])
    options.add_size(parser, "base")
    options.add_precision(parser)
    parser.add_argument("--compile", action="store_true", help="torch.compile every model")
