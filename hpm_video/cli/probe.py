"""``hpm-video probe``."""

import argparse
from dataclasses import replace
from pathlib import Path

from hpm_video.cli.options import add_checkpoint, add_manifest, add_settings, lists_or_stored
from hpm_video.config import PROBE_KINDS, ProbeJobConfig
from hpm_video.config.recipe import find_recipe
from hpm_video.config.settings import load_config
from hpm_video.runtime.files import printable

_LISTS = {
    "train": "data.manifest, or probe.train_manifest of pre-training",
    "val": "data.val_manifest, or probe.val_manifest of pre-training",
}
MODEL = (
    "checkpoint, run folder, weights of VideoMAE, Hugging Face folder, or timm:NAME with "
    "encoder.weights=FILE"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, MODEL)
    add_manifest(
        parser, "list(s) of labelled videos to train probes on (default: the run's)", "--train"
    )
    add_manifest(parser, "list(s) of labelled videos to evaluate on (default: the run's)", "--val")
    text = "kinds of probe; several share one pass of the encoder (default knn)"
    kinds = "|".join(PROBE_KINDS)
    parser.add_argument("--kind", nargs="+", default=[], metavar=kinds, help=text)
    text = "settings to start from: name of a recipe, or a YAML file"
    parser.add_argument("--recipe", dest="config", metavar="RECIPE", help=text)
    text = "JSON file for the results; rows are added to an existing file, and all are shown"
    parser.add_argument("-o", "--output", metavar="FILE", help=text)
    text = "folder for a run whose classifier is the encoder with the linear probe"
    parser.add_argument("--keep", metavar="FOLDER", help=text)
    add_settings(parser, ProbeJobConfig)


def run(arguments: argparse.Namespace) -> int:
    recipe = arguments.config and find_recipe("probe", arguments.config)
    config = load_config(ProbeJobConfig, recipe, arguments.settings)
    if arguments.kind:
        config = replace(config, kinds=arguments.kind)
    from hpm_video.evaluate.probe import probe
    from hpm_video.evaluate.probe_table import read_rows, rows_of, table, write_rows

    lists = {"train": arguments.train, "val": arguments.val}
    if not all(lists.values()):
        from hpm_video.evaluate.frozen_encoder import stored_lists

        stored = stored_lists(arguments.checkpoint)
        config = replace(config, root=config.root or stored.root)
        if not config.probe.labels.are_several:
            config = replace(config, probe=replace(config.probe, labels=stored.labels))
        for name, there in (("train", stored.train), ("val", stored.val)):
            lists[name] = lists_or_stored(
                lists[name], there, option=f"--{name}", setting=_LISTS[name],
                checkpoint=arguments.checkpoint,
            )  # fmt: skip
    output, keep = None if arguments.output is None else Path(arguments.output), arguments.keep
    before = [] if output is None else read_rows(output, lists)
    report = probe(arguments.checkpoint, **lists, kinds=config.kinds, config=config, keep=keep)
    if report is None:
        return 0  # only rank 0 prints
    for path, reason, what in report.bad:
        print(printable(f"unreadable, {what}: {path}: {reason}"))
    for result in report.results:
        figures = "  ".join(f"{name} {value:.4f}" for name, value in result.figures.items())
        print(f"{result.kind:<14}  {figures}  ({result.how})")
    for warning in report.warnings:
        print(printable(f"warning: {warning}"))
    for note in report.notes:
        print(printable(note))
    print(
        f"train {report.num_train}  val {report.num_val}  unreadable {len(report.bad)}  "
        f"precision {report.precision}"
    )
    if keep is not None:
        print(f"kept as a classifier: {keep}")
    if output is not None:
        rows = rows_of(arguments.checkpoint, report, lists, config)
        print("", *table(write_rows(output, before, rows)), str(output), sep="\n")
    return 0
