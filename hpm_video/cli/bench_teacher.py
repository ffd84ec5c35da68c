"""``hpm-video bench teacher``."""

import argparse

from hpm_video.cli import bench_options as options
from hpm_video.config import TeacherConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_timing(parser, batch_size=20)
    options.add_threads(parser)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="or run folder")
    parser.add_argument("--manifest", nargs="+", required=True, help="list(s) of videos")
    parser.add_argument("--root", help="where relative paths of the lists start")
    options.add_number(
        parser, "--clips", 200, "videos of the lists, one clip each", dest="num_clips"
    )
    text = "random masks that measure the loss of a clip"
    options.add_number(parser, "--masks", 32, text, dest="num_masks")
    views = options.allowed(TeacherConfig, "view")
    options.add_several(
        parser, "--view", views, "tokens that sparse teachers see", "views", choices=views
    )
    options.add_token_ratios(parser, [0.5, 0.25, 0.1])
    text = "passes over different tokens, averaged"
    options.add_several(parser, "--draws", [1, 2], text, "draws", type=int, metavar="K")
