"""``hpm-video weights export``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from hpm_video.weights.targets import TARGETS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "export"
    jobs = parser.add_subparsers(dest="weights_job", required=True, metavar=words)
    text = "a checkpoint as one file, or in the format of others"
    export = jobs.add_parser("export", help=text, description=text)
    _add_export_arguments(export)
    export.set_defaults(run_weights=_export)


def run(arguments: argparse.Namespace) -> int:
    run_weights: Callable[[argparse.Namespace], int] = arguments.run_weights
    return run_weights(arguments)


def _add_export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    parser.add_argument("-o", "--output", required=True, help="file or folder to write")
    meanings = "; ".join(f"{name}: {target.help}" for name, target in TARGETS.items())
    parser.add_argument(
        "--to", choices=list(TARGETS),
        help=f"{meanings} (default: checkpoint, or safetensors where the name ends so)",
    )  # fmt: skip
    parts = parser.add_mutually_exclusive_group()
    text = "leave out what only training needs (all but checkpoints always do)"
    parts.add_argument(
        "--weights-only", dest="part", action="store_const", const="weights-only", help=text
    )
    text = "the encoder's weights alone"
    parts.add_argument("--encoder", dest="part", action="store_const", const="encoder", help=text)


def _export(arguments: argparse.Namespace) -> int:
    from hpm_video.weights.export import export

    output = export(arguments.checkpoint, arguments.output, to=arguments.to, part=arguments.part)
    print(output)
    return 0
