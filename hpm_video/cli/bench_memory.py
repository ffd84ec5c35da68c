"""``hpm-video bench memory``."""

import argparse

from hpm_video.cli import bench_options as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_sizes(parser)
    options.add_clip(parser)
    options.add_precision(parser)
    text = "left free on a GPU: CUDA's own, workspaces, fragments (default %(default)s)"
    parser.add_argument("--reserve-gb", type=float, default=2.0, help=text, metavar="GB")
    text = "what a CPU measures (default %(default)s); a GPU measures every --size"
    choices = [*options.SIZES, "none"]
    parser.add_argument("--measured-size", choices=choices, default="small", help=text)
    options.add_device(parser)
    options.add_threads(parser)
