"""``hpm-video bench flops``."""

import argparse

from hpm_video.cli import bench_options as options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_clip(parser)
    options.add_variants(parser, [0.5, 0.25, 0.1], ["pixels", "encoded"], [1, 2, 4])
    options.add_sizes(parser)
    options.add_number(parser, "--decoder-depth", 4, "blocks of the reconstructor")
