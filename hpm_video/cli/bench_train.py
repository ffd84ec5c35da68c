"""``hpm-video bench train``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_number

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="CONFIG.yaml key=value",
        help="settings of a pre-training, as hpm-video pretrain has them (default: none)",
    )
    add_number(parser, "--steps", 12, "of the optimizer, of which the first third does not count")
    add_number(parser, "--videos", 16, "toy videos, where data.manifest names none")
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.train import bench_train
    from hpm_video.cli.bench_options import split_settings
    from hpm_video.config import PretrainConfig
    from hpm_video.config.settings import load_config

    config = load_config(PretrainConfig, *split_settings(arguments.settings))
    return bench_train(config, steps=arguments.steps, num_videos=arguments.videos)
