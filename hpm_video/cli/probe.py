"""``hpm-video probe``."""

import argparse
from dataclasses import replace

from hpm_video.cli.options import add_checkpoint, add_manifest, add_settings, lists_or_stored
from hpm_video.config import PROBE_KINDS, ProbeJobConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.files import printable

_LISTS = {
    "train": "data.manifest, or probe.train_manifest of pre-training",
    "val": "data.val_manifest, or probe.val_manifest of pre-training",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser)
    add_manifest(parser, "list(s) of labelled videos to learn from (default: the run's)", "--train")
    add_manifest(parser, "list(s) of labelled videos to judge on (default: the run's)", "--val")
    text = "one or several, which then share the encoder's work (default knn)"
    kinds = "|".join(PROBE_KINDS)
    parser.add_argument("--kind", nargs="+", default=["knn"], metavar=kinds, help=text)
    text = "a folder to become a run, whose classifier is the encoder with the linear probe"
    parser.add_argument("--keep", metavar="FOLDER", help=text)
    add_settings(parser, ProbeJobConfig)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(ProbeJobConfig, None, arguments.settings)
    from hpm_video.evaluate.probe import probe

    lists = {"train": arguments.train, "val": arguments.val}
    if not all(lists.values()):
        from hpm_video.weights.load import lists_of

        stored = lists_of(arguments.checkpoint)
        config = replace(config, root=config.root or stored.root)
        for name, there in (("train", stored.train), ("val", stored.val)):
            lists[name] = lists_or_stored(
                lists[name], there, option=f"--{name}", setting=_LISTS[name],
                checkpoint=arguments.checkpoint,
            )  # fmt: skip
    keep = arguments.keep
    report = probe(arguments.checkpoint, **lists, kinds=arguments.kind, config=config, keep=keep)
    if report is None:
        return 0  # under torchrun, one process speaks
    for path, reason, what in report.bad:
        print(printable(f"unreadable, {what}: {path}: {reason}"))
    for result in report.results:
        print(
            f"{result.kind:<9}  top1 {result.top1:.4f}  "
            f"balanced_accuracy {result.balanced_accuracy:.4f}  ({result.how})"
        )
    for warning in report.warnings:
        print(printable(f"warning: {warning}"))
    print(
        f"train {report.num_train}  val {report.num_val}  unreadable {len(report.bad)}  "
        f"precision {report.precision}"
    )
    if keep is not None:
        print(f"kept, as a classifier: {keep}")
    return 0
