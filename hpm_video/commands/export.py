"""``hpm-video export``."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    parser.add_argument("-o", "--output", required=True, help="FILE.pt, or FILE.safetensors")
    parts = parser.add_mutually_exclusive_group()
    text = "leave out what only training needs"
    parts.add_argument(
        "--weights-only", dest="part", action="store_const", const="weights-only", help=text
    )
    text = "the encoder's weights alone, for model.init"
    parts.add_argument("--encoder", dest="part", action="store_const", const="encoder", help=text)


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.export import export

    print(export(arguments.checkpoint, arguments.output, part=arguments.part or "all"))
    return 0
