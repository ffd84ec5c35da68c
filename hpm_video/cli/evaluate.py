"""``hpm-video evaluate``."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hpm_video.cli.options import (
    CLASSIFIER,
    add_checkpoint,
    add_manifest,
    add_output_dir,
    add_settings,
    lists_or_stored,
)
from hpm_video.config import EvaluateConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, CLASSIFIER)
    what = parser.add_mutually_exclusive_group()
    add_manifest(what, "list(s) of labelled videos (default: the run's data.val_manifest)")
    text = "remake figures and page from predictions.csv; CHECKPOINT is the folder of an evaluation"
    what.add_argument("--recompute", action="store_true", help=text)
    add_output_dir(parser, "folder for results (default: evaluation/<list> in the run folder)")
    add_settings(parser, EvaluateConfig)


def with_stored_lists(
    config: EvaluateConfig, checkpoint: str, lists: Sequence[str]
) -> tuple[EvaluateConfig, Sequence[str]]:
    """Settings and lists of a command; without lists, the validation lists of the fine-tuning."""
    if lists:
        return config, lists
    from hpm_video.evaluate.classification import load_finetuned
    from hpm_video.weights.load import lists_in

    stored = lists_in(load_finetuned(checkpoint, config).state)
    names = {"option": "--manifest", "setting": "data.val_manifest", "checkpoint": checkpoint}
    return replace(config, root=config.root or stored.root), lists_or_stored(
        lists, stored.val, **names
    )


def run(arguments: argparse.Namespace) -> int:
    config = load_config(EvaluateConfig, None, arguments.settings)
    checkpoint, lists, folder = arguments.checkpoint, arguments.manifest, arguments.output_dir
    if not arguments.recompute:
        from hpm_video.weights.run_folders import check_kind_of_run

        check_kind_of_run(Path(checkpoint), "finetune", f"checkpoint ({checkpoint})")
    from hpm_video.evaluate.classification import evaluate, recompute, results_folder
    from hpm_video.evaluate.predictions import figures_line
    from hpm_video.runtime.rendezvous import find_place

    if arguments.recompute:
        folder = folder or checkpoint
        result = recompute(checkpoint, config, output_dir=folder)
    else:
        config, lists = with_stored_lists(config, checkpoint, lists)
        folder = folder or results_folder(checkpoint, lists, config.checkpoint)
        result = evaluate(checkpoint, lists, config, output_dir=folder)
    if find_place().rank != 0:
        return 0  # only rank 0 prints
    for index, reason in result.bad:
        print(printable(f"unreadable, counts as wrong: {result.paths[index]}: {reason}"))
    for name, words in result.about.items():
        print(printable(f"{name}: {words}"))
    print(figures_line(result))
    print(os.path.join(folder, "index.html"))
    return 0
