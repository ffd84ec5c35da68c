"""``hpm-video visualize``."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of pre-training, or a run folder")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for page and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the random masks (default 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize import visualize

    page, results = visualize(
        arguments.checkpoint,
        arguments.videos,
        arguments.output_dir,
        seed=arguments.seed,
        device=arguments.device,
    )
    bad = [result for result in results if result.error is not None]
    for result in bad:
        print(f"unreadable: {result.name}: {result.error}", file=sys.stderr)
    if page is None:
        print("hpm-video visualize: no video could be read: no page is written", file=sys.stderr)
        return 1
    print(page)
    return 1 if bad else 0
