"""``hpm-video visualize``."""

from __future__ import annotations

import argparse
import sys

from hpm_video.data.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of pre-training, or a run folder")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for page and pictures")
    parser.add_argument("--seed", type=int, default=0, help="of the random masks (default 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    text = "random masks behind a measured loss (default: 8; of a list 4, where 0 measures none)"
    parser.add_argument("--masks", type=int, metavar="N", help=text)
    training = parser.add_argument_group("through training: CHECKPOINT is a run folder")
    text = "the videos over the checkpoints of the run, on one page with a slider"
    training.add_argument("--through-training", action="store_true", help=text)
    text = "ask at most so many, evenly picked (default %(default)s)"
    training.add_argument("--checkpoints", type=int, default=12, metavar="N", help=text)
    of_list = parser.add_argument_group("over a data set: no VIDEO is named")
    text = "list(s) of videos: hardest and easiest clips, classes, places"
    of_list.add_argument("--manifest", nargs="+", metavar="LIST", help=text)
    of_list.add_argument("--root", help="where relative paths of the lists start")
    text = "clips shown at either end (default %(default)s)"
    of_list.add_argument("--clips", type=int, default=12, metavar="N", help=text)
    text = "clips at a time (default %(default)s)"
    of_list.add_argument("--batch-size", type=int, default=8, metavar="N", help=text)
    text = "decoding processes per process; 0: it decodes itself (default %(default)s)"
    of_list.add_argument("--workers", type=int, default=8, metavar="N", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.manifest is not None:
        if arguments.videos or arguments.through_training:
            what = "--through-training" if arguments.through_training else "VIDEO"
            raise ValueError(f"--manifest ({arguments.manifest[0]}) must come without {what}")
        return _over_data_set(arguments)
    if not arguments.videos:
        raise ValueError("VIDEO (none) must name at least one file, unless --manifest names a list")
    if arguments.through_training:
        return _through_training(arguments)
    return _of_videos(arguments)


def _of_videos(arguments: argparse.Namespace) -> int:
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


def _through_training(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize.training import visualize_training

    page, history = visualize_training(
        arguments.checkpoint,
        arguments.videos,
        arguments.output_dir,
        num_checkpoints=arguments.checkpoints,
        num_masks=8 if arguments.masks is None else arguments.masks,
        seed=arguments.seed,
        device=arguments.device,
    )
    for name, reason in history.skipped:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    for name, reason in history.bad:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if history.is_short:
        print(f"note: {history.num_asked} checkpoints show no training: see the page")
    print(page)
    return 1 if history.bad or history.skipped else 0


def _over_data_set(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize.dataset import visualize_list

    page, found = visualize_list(
        arguments.checkpoint,
        arguments.manifest,
        arguments.output_dir,
        root=arguments.root,
        num_masks=4 if arguments.masks is None else arguments.masks,
        num_shown=arguments.clips,
        batch_size=arguments.batch_size,
        num_workers=arguments.workers,
        seed=arguments.seed,
        device=arguments.device,
    )
    if found is None:
        return 0  # of several processes, one speaks
    for index, reason in found.bad:
        print(
            printable(f"unreadable, left out: {found.manifest.path(index)}: {reason}"),
            file=sys.stderr,
        )
    print(page)
    return 1 if found.bad else 0
