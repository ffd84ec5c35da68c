"""``hpm-video bench train``."""

import argparse

from hpm_video.cli import bench_options as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml key=value",
        help="settings of a pre-training, as hpm-video pretrain has them (default: none)",
    )
    options.add_number(
        parser, "--steps", 12, "of the optimizer, of which the first third does not count"
    )
    text = "toy videos, where data.manifest names none"
    options.add_number(parser, "--videos", 16, text, dest="num_videos")
    options.add_threads(parser)
