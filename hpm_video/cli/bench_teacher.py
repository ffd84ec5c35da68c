"""``hpm-video bench teacher``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import ALL, add_number, add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report

VIEWS = ("tokens", "tubes", "frames", "spread")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=20)
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="or run folder")
    parser.add_argument("--manifest", nargs="+", required=True, help="list(s) of videos")
    parser.add_argument("--root", help="where relative paths of the lists start")
    add_number(parser, "--clips", 200, "videos of the lists, one clip each")
    add_number(parser, "--masks", 32, "random masks that measure the loss of a clip")
    parser.add_argument("--view", nargs="+", choices=VIEWS, default=list(VIEWS), help=ALL)
    parser.add_argument(
        "--token-ratio", type=float, nargs="+", metavar="R", default=[0.5, 0.25, 0.1]
    )
    parser.add_argument("--draws", type=int, nargs="+", metavar="K", default=[1, 2])


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.teacher import report_teachers, study_teachers
    from hpm_video.runtime.distributed import pick_device

    def say(line: str) -> None:
        sys.stderr.write(f"{line}\n")

    device = pick_device(arguments.device, setting="--device")
    rows = study_teachers(
        arguments.checkpoints,
        arguments.manifest,
        num_clips=arguments.clips,
        num_masks=arguments.masks,
        views=arguments.view,
        token_ratios=arguments.token_ratio,
        draws=arguments.draws,
        batch_size=arguments.batch_size,
        num_rounds=arguments.rounds,
        root=arguments.root,
        device=device,
        say=say,
    )
    return report_teachers(rows, device=device, num_masks=arguments.masks)
