"""``hpm-video pretrain``."""

from __future__ import annotations

import argparse

from hpm_video.config import PretrainConfig
from hpm_video.config.settings import load_config
from hpm_video.config.words import add_config_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser, PretrainConfig)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(PretrainConfig, arguments.config, arguments.settings)
    from hpm_video.train.pretrain import pretrain

    return 0 if pretrain(config) else 1
