"""``hpm-video bench loader``."""

import argparse

from hpm_video.cli import bench_options as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", metavar="FOLDER", help="videos to make it of (default: toys)")
    options.add_number(parser, "--videos", 6, "of each kind", dest="num_videos")
    options.add_number(parser, "--rounds", 5, "median of so many")
    options.add_number(parser, "--crop-size", 224, "pixels")
    options.add_several(
        parser, "--decoder", options.DECODERS, "readers", "decoders", choices=options.DECODERS
    )
