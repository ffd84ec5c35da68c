"""``hpm-video pretrain``."""

import argparse

from hpm_video.cli.options import add_config
from hpm_video.config import PretrainConfig
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, PretrainConfig)


def run(arguments: argparse.Namespace) -> int:
    file = find_recipe("pretrain", arguments.config)
    config = load_config(PretrainConfig, file, arguments.settings)
    from hpm_video.train.pretrain import pretrain

    return 0 if pretrain(config) else 1
