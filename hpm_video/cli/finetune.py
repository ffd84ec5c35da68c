"""``hpm-video finetune``."""

import argparse

from hpm_video.cli.options import add_config
from hpm_video.config import FinetuneConfig
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config(parser, FinetuneConfig)


def run(arguments: argparse.Namespace) -> int:
    file = find_recipe("finetune", arguments.config)
    load_config(FinetuneConfig, file, arguments.settings)  # refuses mistakes at once
    from hpm_video.train.finetune import finetune
    from hpm_video.train.run.known_settings import load_finetune_config

    config, notes = load_finetune_config(file, arguments.settings)
    return 0 if finetune(config, notes=notes) else 1
