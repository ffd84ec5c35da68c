"""What the arguments of several commands have in common."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Sequence
from typing import Any

from hpm_video.config.schema import settings_table

SETTINGS = "key=value"


def settings_help(schema: type[Any]) -> str:
    """The end of a --help: a table of settings."""
    columns = min(shutil.get_terminal_size(fallback=(100, 24)).columns, 100)
    return "settings, their defaults and meanings:\n" + settings_table(schema, columns=columns)


def add_config_arguments(parser: argparse.ArgumentParser, schema: type[Any]) -> None:
    """A YAML of settings, and settings that override it."""
    parser.add_argument("config", metavar="CONFIG.yaml", help="a file of settings")
    parser.add_argument("settings", nargs="*", metavar=SETTINGS, help="override the file's")
    parser.epilog = settings_help(schema)


def is_setting(word: str) -> bool:
    """Whether a word of the command line is a setting, and neither an option nor a file."""
    return "=" in word and not word.startswith("-") and not os.path.exists(word)


def without_settings(words: Sequence[str], *, name: str) -> tuple[list[str], list[str]]:
    """The values of the option ``name``, and the settings that argparse took for values because
    they follow these. Raises ValueError where there are settings only."""
    values = [word for word in words if not is_setting(word)]
    if words and not values:
        raise ValueError(f"{name} must have a value: only settings follow it ({' '.join(words)})")
    return values, [word for word in words if is_setting(word)]
