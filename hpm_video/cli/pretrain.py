"""``hpm-video pretrain``."""

import argparse

from hpm_video.cli.options import add_config
from hpm_video.config import PretrainConfig
from hpm_video.config.recipe import find_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, PretrainConfig)


def run(arguments: argparse.Namespace) -> int:
    file = find_recipe("pretrain", arguments.config)
    from hpm_video.train.admission import read_settings, read_videos

    # Reject mistakes before the slow import of PyTorch
    config = read_settings(PretrainConfig, file, arguments.settings)
    manifest = read_videos(config, recipe=file)
    from hpm_video.cli.next_steps import say_end
    from hpm_video.train.pretrain import pretrain

    if not pretrain(config, manifest=manifest):
        return 1
    say_end(arguments.config, config, manifest)
    return 0
