"""``hpm-video bench memory``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from hpm_video.cli.bench_options import SIZES, add_clip, add_device, add_sizes

if TYPE_CHECKING:
    from hpm_video.bench.report import Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sizes(parser, ["small", "base", "large"])
    add_clip(parser)
    parser.add_argument("--precision", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument(
        "--reserve-gb",
        type=float,
        default=2.0,
        help="left free on a GPU: CUDA's own, workspaces, fragments (default %(default)s)",
    )
    parser.add_argument(
        "--measured-size",
        choices=[*SIZES, "none"],
        default="small",
        help="what a CPU measures (default %(default)s); a GPU measures every --size",
    )
    add_device(parser)


def measure(arguments: argparse.Namespace) -> Report:
    from hpm_video.bench.memory import bench_memory

    return bench_memory(
        sizes=arguments.size,
        measured_size=arguments.measured_size,
        num_frames=arguments.frames,
        crop_size=arguments.crop_size,
        precision=arguments.precision,
        reserve_gb=arguments.reserve_gb,
        device=arguments.device,
    )
