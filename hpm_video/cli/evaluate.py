"""``hpm-video evaluate``."""

from __future__ import annotations

import argparse
import os

from hpm_video.config import EvaluateConfig
from hpm_video.config.settings import load_config
from hpm_video.config.words import SETTINGS, settings_help, without_settings
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--manifest", nargs="+", default=[], help="list(s) of labelled videos")
    text = "CHECKPOINT is the folder of an evaluation: its figures and page, from predictions.csv"
    what.add_argument("--recompute", action="store_true", help=text)
    text = "folder for results (default: evaluation/<list> in the run folder)"
    parser.add_argument("-o", "--output-dir", help=text)
    parser.add_argument("settings", nargs="*", metavar=SETTINGS)
    parser.epilog = settings_help(EvaluateConfig)


def run(arguments: argparse.Namespace) -> int:
    manifests, settings = without_settings(arguments.manifest, name="--manifest")
    config = load_config(EvaluateConfig, None, settings + arguments.settings)
    from hpm_video.evaluate.classification import evaluate, recompute, results_folder
    from hpm_video.evaluate.predictions import figures_line
    from hpm_video.runtime.rendezvous import find_place

    checkpoint, folder = arguments.checkpoint, arguments.output_dir
    if arguments.recompute:
        folder = folder or checkpoint
        result = recompute(checkpoint, config, output_dir=folder)
    else:
        folder = folder or results_folder(checkpoint, manifests, config.checkpoint)
        result = evaluate(checkpoint, manifests, config, output_dir=folder)
    if find_place().rank != 0:
        return 0  # of several processes, one speaks
    for index, reason in result.bad:
        print(printable(f"unreadable, counts as wrong: {result.paths[index]}: {reason}"))
    for name, words in result.about.items():
        print(printable(f"{name}: {words}"))
    print(figures_line(result))
    print(os.path.join(folder, "index.html"))
    return 0
