"""``hpm-video probe``."""

from __future__ import annotations

import argparse

from hpm_video.config import PROBE_KINDS, ProbeJobConfig
from hpm_video.config.settings import load_config
from hpm_video.config.words import SETTINGS, settings_help, without_settings
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    text = "list(s) of labelled videos to learn from"
    parser.add_argument("--train", nargs="+", required=True, metavar="LIST", help=text)
    text = "list(s) of labelled videos to judge on"
    parser.add_argument("--val", nargs="+", required=True, metavar="LIST", help=text)
    text = "one or several, which then share the encoder's work (default knn)"
    parser.add_argument(
        "--kind", nargs="+", default=["knn"], metavar="|".join(PROBE_KINDS), help=text
    )
    parser.add_argument("settings", nargs="*", metavar=SETTINGS)
    parser.epilog = settings_help(ProbeJobConfig)


def run(arguments: argparse.Namespace) -> int:
    train, settings = without_settings(arguments.train, name="--train")
    val, more = without_settings(arguments.val, name="--val")
    kinds, others = without_settings(arguments.kind, name="--kind")
    config = load_config(ProbeJobConfig, None, settings + more + others + arguments.settings)
    from hpm_video.evaluate.probe import probe

    report = probe(arguments.checkpoint, train=train, val=val, kinds=kinds, config=config)
    if report is None:
        return 0  # under torchrun, one process speaks
    for path, reason, what in report.bad:
        print(printable(f"unreadable, {what}: {path}: {reason}"))
    for result in report.results:
        print(
            f"{result.kind:<9}  top1 {result.top1:.4f}  "
            f"balanced_accuracy {result.balanced_accuracy:.4f}  ({result.how})"
        )
    if warning := report.warning():
        print(warning)
    print(f"train {report.num_train}  val {report.num_val}  unreadable {len(report.bad)}")
    return 0
