"""``hpm-video bench plan``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpm_video.bench.report import Report

# Name, default, meaning: all of them are assumptions until measured.
_MACHINE = (
    ("--node-gb-s", 300.0, "that an all-reduce reaches per GPU within a node"),
    ("--network-gb-s", 25.0, "... and between nodes"),
    ("--overlap", 0.8, "share of the last backward pass behind which an all-reduce hides"),
    ("--launch-ms", 10.0, "least time of a micro-batch: that of starting its kernels"),
    ("--video-kb", 182.0, "size of a video's file"),
    ("--copy-gb-s", 10.0, "from a GPU to the host's memory"),
    ("--storage-gb-s", 1.0, "that a node writes to storage"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG.yaml", help="of a pre-training")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="override the file's")
    parser.add_argument("--gpus", type=int, nargs="+", help="one or more (default: 1 to 512)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(default %(default)s)")
    parser.add_argument("--videos", type=int, help="in the data set (default: in data.manifest)")
    rate = parser.add_argument_group("one GPU: the first that is given")
    rate.add_argument("--clips-per-s", type=float, help="of a training step")
    rate.add_argument("--step-json", metavar="FILE", help="written by bench step or bench train")
    _add(rate, "--teraflops", 989.0, "peak of a GPU, bfloat16")
    _add(rate, "--utilisation", 0.2, "share of it that is used")
    loader = parser.add_argument_group("the loader")
    loader.add_argument("--loader-json", metavar="FILE", help="written by bench loader")
    loader.add_argument("--like", choices=["k400", "ssv2"], default="ssv2", help="row of that")
    loader.add_argument("--files", choices=["raw", "transcoded"], default="raw", help="row of that")
    _add(loader, "--clips-per-core", 37.4, "a second, without --loader-json: docs/data.md, ssv2")
    loader.add_argument("--cores-per-gpu", type=float, help="(default: data.num_workers)")
    machine = parser.add_argument_group("machines")
    for name, default, what in _MACHINE:
        _add(machine, name, default, what)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.plan import bench_plan
    from hpm_video.cli.bench_options import split_settings
    from hpm_video.config import PretrainConfig
    from hpm_video.config.settings import load_config

    config = load_config(PretrainConfig, *split_settings([arguments.config, *arguments.settings]))
    assumed = {
        name: getattr(arguments, name)
        for name in (option[2:].replace("-", "_") for option, _, _ in _MACHINE)
    }
    return bench_plan(
        config,
        gpus=arguments.gpus,
        num_videos=arguments.videos,
        clips_per_s=arguments.clips_per_s,
        step_json=arguments.step_json,
        teraflops=arguments.teraflops,
        utilisation=arguments.utilisation,
        clips_per_core=arguments.clips_per_core,
        loader_json=arguments.loader_json,
        like=arguments.like,
        files=arguments.files,
        cores_per_gpu=arguments.cores_per_gpu,
        gpus_per_node=arguments.gpus_per_node,
        **assumed,
    )


def _add(group: argparse._ArgumentGroup, name: str, default: float, what: str) -> None:
    group.add_argument(name, type=float, default=default, help=f"{what} (default {default:g})")
