"""``hpm-video data list|check|transcode|toy``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from hpm_video.cli import data_check, data_list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    words = "list|check|transcode|toy"
    jobs = parser.add_subparsers(dest="data_job", required=True, metavar=words)
    text = "write a manifest of a data set: what is there, what is missing, the class names"
    listing = jobs.add_parser("list", help=text, description=text)
    data_list.add_arguments(listing)
    listing.set_defaults(run_data=partial(data_list.run, say=print))
    text = "decode every video of a list, and write what was found out into it"
    check = jobs.add_parser("check", help=text, description=text)
    data_check.add_check_arguments(check)
    check.set_defaults(run_data=partial(data_check.run_check, say=print))
    text = "encode the videos of a list anew: small, and quick to decode"
    transcode = jobs.add_parser("transcode", help=text, description=text)
    data_check.add_transcode_arguments(transcode)
    transcode.set_defaults(run_data=partial(data_check.run_transcode, say=print))
    toy = jobs.add_parser(
        "toy", help="write videos of moving objects in 8 classes that differ in motion only"
    )
    toy.add_argument("-o", "--output-dir", required=True, help="folder to fill")
    toy.add_argument("--num-videos", type=int, default=800)
    toy.add_argument("--size", type=int, default=64, help="side in pixels (default 64)")
    toy.add_argument("--num-frames", type=int, default=24, help="frames per video (default 24)")
    toy.add_argument("--seed", type=int, default=0)
    toy.add_argument("--num-workers", type=int, default=2, help="processes (default 2)")
    toy.set_defaults(run_data=_data_toy)


def run(arguments: argparse.Namespace) -> int:
    run_data: Callable[[argparse.Namespace], int] = arguments.run_data
    return run_data(arguments)


def _data_toy(arguments: argparse.Namespace) -> int:
    from hpm_video.data.prepare.toy import write_toy_videos

    try:
        manifest = write_toy_videos(
            arguments.output_dir,
            num_videos=arguments.num_videos,
            size=arguments.size,
            num_frames=arguments.num_frames,
            seed=arguments.seed,
            num_workers=arguments.num_workers,
        )
    except OSError as error:
        raise ValueError(
            f"output_dir ({arguments.output_dir}) cannot be written: {error.strerror}"
        ) from error
    print(manifest)
    return 0
