"""``hpm-video finetune``."""

import argparse

from hpm_video.cli.options import add_config
from hpm_video.config import FinetuneConfig
from hpm_video.config.recipe import find_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, FinetuneConfig)


def run(arguments: argparse.Namespace) -> int:
    file = find_recipe("finetune", arguments.config)
    from hpm_video.train.admission import read_settings, read_videos

    # Reject mistakes before the slow import of PyTorch
    settings = read_settings(FinetuneConfig, file, arguments.settings)
    manifest = read_videos(settings, recipe=file)
    from hpm_video.cli.next_steps import say_end
    from hpm_video.train.finetune import finetune
    from hpm_video.train.run.known_settings import load_finetune_config

    config, notes = load_finetune_config(file, arguments.settings)
    if not finetune(config, notes=notes, manifest=manifest):
        return 1
    say_end(arguments.config, config, manifest)
    return 0
