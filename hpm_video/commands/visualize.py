"""``hpm-video visualize``."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of pre-training, or a run folder")
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for pages and pictures")
    parser.add_argument(
        "--formats",
        nargs="*",
        choices=["png", "mp4", "gif"],
        default=["png", "mp4", "gif"],
        help="files beside the page of each video (default all; none after --formats alone)",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--num-crops",
        type=int,
        default=1,
        help="squares along the longer side (default 1, the centre)",
    )
    where.add_argument(
        "--whole-frame", action="store_true", help="the whole picture, pressed into a square"
    )
    parser.add_argument(
        "--whole-video",
        action="store_true",
        help="clips side by side from the first frame to the last, not only the one in the middle",
    )
    parser.add_argument(
        "--max-windows", type=int, default=64, help="most clips of a whole video (default 64)"
    )
    parser.add_argument(
        "--num-masks", type=int, default=8, help="random masks behind a measured loss (default 8)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random masks (default 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize import View, visualize

    page, results = visualize(
        arguments.checkpoint,
        arguments.videos,
        arguments.output_dir,
        view=View(
            num_crops=arguments.num_crops,
            whole_frame=arguments.whole_frame,
            whole_video=arguments.whole_video,
            max_windows=arguments.max_windows,
        ),
        formats=arguments.formats,
        num_masks=arguments.num_masks,
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
