"""``hpm-video recipes``."""

import argparse
import re
import shutil
import textwrap
from itertools import groupby, zip_longest

from hpm_video.config.recipe import COMMANDS, FOLDER, find_named, list_recipes

_WIDTHS = (26, 20, 22)  # columns name, hardware, hours; the expected result gets the rest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "recipe to print, for copying; FOLDER/NAME if several commands have one of that name"
    parser.add_argument("name", nargs="?", metavar="NAME", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.name is not None:
        print(find_named(arguments.name).read_text(encoding="utf-8"), end="")
        return 0
    for kind, recipes in groupby(list_recipes(), key=lambda recipe: recipe.kind):
        name = {"demo": "", "probe": " MODEL --recipe NAME …"}.get(kind, " NAME …")
        print(f"hpm-video {COMMANDS[kind]}{name}")
        print(_row("NAME", "hardware", "hours", "expected result"))
        for recipe in recipes:
            facts = map(_first_sentence, (recipe.hardware, recipe.hours, recipe.expected))
            print(_row(recipe.name, *facts))
        print()
    print("`hpm-video recipes NAME` prints a whole recipe: description, command and settings.")
    print(f"The files are in {FOLDER}")
    return 0


def _first_sentence(text: str) -> str:
    return re.split(r"\.(?= |$)", text, maxsplit=1)[0]


def _row(*cells: str) -> str:
    """Lay out one table row, on as many lines as its longest cell needs."""
    columns = max(100, shutil.get_terminal_size(fallback=(120, 24)).columns)
    widths = (*_WIDTHS, columns - sum(_WIDTHS) - 2 * len(cells))
    wrapped = [
        textwrap.wrap(cell, width, break_on_hyphens=False, break_long_words=False)
        for cell, width in zip(cells, widths, strict=True)
    ]
    lines = zip_longest(*wrapped, fillvalue="")
    padded = ("  ".join(f"{c:<{w}}" for c, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"  {line}".rstrip() for line in padded)
