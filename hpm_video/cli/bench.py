"""``hpm-video bench``. Imports nothing slow, so that --help answers at once."""

import argparse
from importlib import import_module
from typing import Any

from hpm_video.cli import bench_options as options

BENCHES = {
    "step": "time of a whole pre-training step: VideoMAE, HPM literal, sparse and default, "
    "transformers' VideoMAE",
    "flops": "multiply-adds of a step, counted; no timing",
    "memory": "memory of a step, fixed and per clip, and the largest batch of a GPU",
    "train": "clips per second of a real pre-training with real videos, and what limits it",
    "plan": "what 1 to 512 GPUs need for a config: hours, cores, bandwidth; names the bottleneck",
    "teacher": "how well sparse teachers stand in for one that sees all, and at what cost",
    "loader": "clips per second on one thread, of each reader, beside the classic loader",
    "ablation": "a study: variants x seeds x data sets, resumable, compared with intervals",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One sub-command per bench."""
    jobs = parser.add_subparsers(dest="bench", required=True, metavar="|".join(BENCHES))
    for name, what in BENCHES.items():
        bench = jobs.add_parser(name, help=what, description=what)
        if name != "ablation":
            bench.add_argument("--json", metavar="FILE", help="also write the result here")
        _module(name).add_arguments(bench)


def run(arguments: argparse.Namespace) -> int:
    """Run the bench that was asked for, print its report and write it as JSON."""
    if arguments.bench == "ablation":  # a folder of results, not one report
        code: int = _module("ablation").run(arguments)
        return code
    import torch

    from hpm_video.bench.report import check_json_path, publish
    from hpm_video.config.limits import at_least

    asked = {key: value for key, value in vars(arguments).items() if key not in ("job", "bench")}
    json_path, threads = asked.pop("json"), asked.pop("threads", None)
    check_json_path(json_path)
    if threads is not None:
        at_least("--threads", threads, 1)
        torch.set_num_threads(threads)
    if "settings" in asked:
        asked["config"] = options.config_from([*asked.pop("file", ()), *asked.pop("settings")])
    name = arguments.bench
    bench = getattr(import_module(f"hpm_video.bench.{name}"), f"bench_{name}")
    publish(bench(**asked), json_path)
    return 0


def _module(bench: str) -> Any:
    """``add_arguments(parser)`` of its module declares options by the keywords (``dest``) of
    ``hpm_video.bench.NAME.bench_NAME``, which returns the `Report`. ``settings`` are a config."""
    return import_module(f"hpm_video.cli.bench_{bench}")
