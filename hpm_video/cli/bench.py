"""``hpm-video bench``. Imports nothing slow, so that --help answers at once."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Any

from hpm_video.cli import bench_ablation as ablation

BENCHES = {
    "step": "time of a whole pre-training step: VideoMAE, HPM literal, sparse and default, "
    "transformers' VideoMAE",
    "flops": "multiply-adds of a step, counted with fvcore; no timing",
    "memory": "memory of a step, fixed and per clip, and the largest batch of a GPU",
    "train": "clips per second of a real pre-training with real videos, and what limits it",
    "growth": "time and memory of a step against frames, resolution, mask ratio and batch",
    "plan": "what 1 to 512 GPUs need for a config: hours, cores, bandwidth; names the bottleneck",
    "scaling": "the cost model of plan against two real processes on this machine",
    "mask": "time of mask making against a loop over clips",
    "teacher": "how well sparse teachers stand in for one that sees all, and at what cost",
    "loader": "clips per second on one thread, of each reader, beside the classic loader",
    "eval": "reading all views of a video at once, against a video read anew for every view",
    "ranking": "time, memory and gradients of the ranking loss against the naive form",
    "attention": "attention forward and backward: the form we choose, PyTorch's, plain products",
    "checkpoint": "size of a checkpoint, and how long it stops training and is written",
    "ablation": "a study: variants x seeds x data sets, resumable, compared with intervals",
    "pictures": "the pictures of a pre-training in TensorBoard against its steps",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command per bench."""
    jobs = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, what in BENCHES.items():
        bench = jobs.add_parser(name, help=what, description=what)
        if name == "ablation":
            ablation.add_arguments(bench)
            continue
        bench.add_argument("--json", metavar="FILE", help="also write the result here")
        _module(name).add_arguments(bench)


def run(arguments: argparse.Namespace) -> int:
    """Run the bench that was asked for, print its report and write it as JSON."""
    if arguments.bench == "ablation":  # a folder of results, not one report
        return ablation.run(arguments)
    import torch

    from hpm_video.bench.report import check_json_path, format_report, write_json
    from hpm_video.bench.timing import at_least

    check_json_path(arguments.json)
    if getattr(arguments, "threads", None) is not None:
        at_least("threads", arguments.threads, 1)
        torch.set_num_threads(arguments.threads)
    report = _module(arguments.bench).measure(arguments)
    if arguments.json is not None:
        write_json(report, arguments.json)
    print(format_report(report))
    return 0


def _module(bench: str) -> Any:
    """Its module: ``add_arguments(parser)``, ``measure(arguments) -> Report``."""
    return import_module(f"hpm_video.cli.bench_{bench}")
