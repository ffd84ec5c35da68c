"""``hpm-video bench mask``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import add_clip, add_timing

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_timing(parser, batch_size=32, rounds=50)
    add_clip(parser)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.mask import bench_mask

    return bench_mask(
        batch_size=arguments.batch_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        rounds=arguments.rounds,
        device=arguments.device,
    )
