"""``hpm-video bench ranking``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_number, add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=32)
    add_number(parser, "--tokens", 1408, "masked tokens per clip")


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.ranking import bench_ranking

    return bench_ranking(
        batch_size=arguments.batch_size,
        num_tokens=arguments.tokens,
        rounds=arguments.rounds,
        device=arguments.device,
    )
