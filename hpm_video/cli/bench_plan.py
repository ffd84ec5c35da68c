"""``hpm-video bench plan``."""

import argparse

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
    parser.add_argument("file", metavar="CONFIG.yaml", nargs=1, help="of a pre-training")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="override the file's")
    parser.add_argument("--gpus", type=int, nargs="+", help="one or more (default: 1 to 512)")
    parser.add_argument("--gpus-per-node", type=int, default=8, help="(default %(default)s)")
    parser.add_argument(
        "--videos", type=int, help="in the data set (default: in data.manifest)", dest="num_videos"
    )
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


def _add(group: argparse._ArgumentGroup, name: str, default: float, what: str) -> None:
    group.add_argument(name, type=float, default=default, help=f"{what} (default {default:g})")
