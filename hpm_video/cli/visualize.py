"""``hpm-video visualize``."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from hpm_video.runtime.files import printable

# Options of one kind of page alone. Where one is not given the default is that of the function.
_OF_CLIPS = ("num_crops", "whole_frame", "whole_video", "max_windows", "formats")
_OF_TRAINING = ("num_checkpoints",)
_OF_LISTS = ("root", "num_shown", "batch_size", "num_workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="of pre-training, or a run folder")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video files")
    parser.add_argument("-o", "--output-dir", required=True, help="folder for pages and pictures")
    text = "random masks behind a measured loss (default 8; of a list 4, where 0 measures none)"
    parser.add_argument("--num-masks", type=int, metavar="N", help=text)
    parser.add_argument("--seed", type=int, default=0, help="of the random masks (default 0)")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")

    clips = parser.add_argument_group("a page for each VIDEO")
    text = "files beside the page of each video (default all; none after --formats alone)"
    clips.add_argument("--formats", nargs="*", choices=["png", "mp4", "gif"], help=text)
    where = clips.add_mutually_exclusive_group()
    text = "squares along the longer side (default 1, the centre)"
    where.add_argument("--num-crops", type=int, metavar="N", help=text)
    text = "the whole picture, pressed into a square"
    where.add_argument("--whole-frame", action="store_true", default=None, help=text)
    text = "clips side by side from the first frame to the last, not only the one in the middle"
    clips.add_argument("--whole-video", action="store_true", default=None, help=text)
    text = "most clips of a whole video (default 64)"
    clips.add_argument("--max-windows", type=int, metavar="N", help=text)

    training = parser.add_argument_group("one page through training; CHECKPOINT is a run folder")
    text = "the videos over the checkpoints of the run, with a slider"
    training.add_argument("--through-training", action="store_true", help=text)
    text = "ask at most so many, evenly picked (default 12)"
    training.add_argument("--num-checkpoints", type=int, metavar="N", help=text)

    lists = parser.add_argument_group("one page over a data set; no VIDEO is named")
    text = "list(s) of videos: hardest and easiest clips, classes, places"
    lists.add_argument("--manifest", nargs="+", metavar="LIST", help=text)
    lists.add_argument("--root", help="where relative paths of the lists start")
    text = "clips shown at either end (default 12)"
    lists.add_argument("--num-shown", type=int, metavar="N", help=text)
    text = "clips at a time (default 8)"
    lists.add_argument("--batch-size", type=int, metavar="N", help=text)
    text = "decoding processes per process; 0: it decodes itself (default 8)"
    lists.add_argument("--num-workers", type=int, metavar="N", help=text)


def run(arguments: argparse.Namespace) -> int:
    if arguments.manifest is not None:
        if arguments.videos or arguments.through_training:
            what = "--through-training" if arguments.through_training else "VIDEO"
            raise ValueError(f"--manifest ({arguments.manifest[0]}) must come without {what}")
        _refuse(arguments, _OF_CLIPS + _OF_TRAINING, "without --manifest")
        return _over_data_set(arguments)
    _refuse(arguments, _OF_LISTS, "with --manifest")
    if not arguments.videos:
        raise ValueError("VIDEO (none) must name at least one file, unless --manifest names a list")
    if arguments.through_training:
        _refuse(arguments, _OF_CLIPS, "without --through-training")
        return _through_training(arguments)
    _refuse(arguments, _OF_TRAINING, "with --through-training")
    return _of_clips(arguments)


def _of_clips(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize import View, visualize

    given = _given(arguments, ("formats", "num_masks"))
    page, results = visualize(
        arguments.checkpoint,
        arguments.videos,
        arguments.output_dir,
        view=View(**_given(arguments, _OF_CLIPS[:-1])),
        seed=arguments.seed,
        device=arguments.device,
        **given,
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
        seed=arguments.seed,
        device=arguments.device,
        **_given(arguments, (*_OF_TRAINING, "num_masks")),
    )
    for name, reason in history.skipped:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    for name, reason in history.bad:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if history.is_short:
        print(f"note: so few checkpoints ({history.num_asked}) show no training: see the page")
    print(page)
    return 1 if history.bad or history.skipped else 0


def _over_data_set(arguments: argparse.Namespace) -> int:
    from hpm_video.visualize.dataset import visualize_list

    page, found = visualize_list(
        arguments.checkpoint,
        arguments.manifest,
        arguments.output_dir,
        seed=arguments.seed,
        device=arguments.device,
        **_given(arguments, (*_OF_LISTS, "num_masks")),
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


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """The options of these names that were given."""
    return {
        name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None
    }


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], rule: str) -> None:
    """No option is given in vain."""
    for name, value in _given(arguments, names).items():
        shown = " ".join(value) if isinstance(value, list) else value
        raise ValueError(f"--{name.replace('_', '-')} ({shown}) must come {rule}")
