"""``hpm-video bench attention``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=4)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.attention import bench_attention

    return bench_attention(
        batch_size=arguments.batch_size, rounds=arguments.rounds, device=arguments.device
    )
