"""``hpm-video visualize``."""

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from hpm_video.cli import options
from hpm_video.config.values import PictureFormat, values_of
from hpm_video.runtime.files import printable, shell_path

# Options for one kind of page. If not given, the function's own default applies.
_OF_ALL = ("num_masks", "seed", "device")
_OF_CLIPS = (
    "num_crops",
    "whole_frame",
    "whole_video",
    "max_windows",
    "formats",
    "classifier",
    "class_name",
)
_OF_TRAINING = ("num_checkpoints",)
_OF_LISTS = ("root", "no_labels", "num_shown", "batch_size", "num_workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = "a run folder, a checkpoint, or VideoMAE's file or folder"
    options.add_checkpoint(parser, f"pre-trained model with its decoder: {what}")
    text = "video files, folders of frames, or folders of these"
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help=text)
    options.add_output_dir(parser, "folder for pages and pictures", required=True)
    text = "random masks per measured loss (default 8; for a list 4, and 0 measures none)"
    options.add_numbers(parser, {"num_masks": text})
    options.add_numbers(parser, {"seed": "seed of the random masks"}, {"seed": 0})
    options.add_device(parser)

    clips = parser.add_argument_group("a page for each VIDEO")
    text = "files to write beside each page (default all; --formats alone: none)"
    clips.add_argument("--formats", nargs="*", choices=values_of(PictureFormat), help=text)
    where = clips.add_mutually_exclusive_group()
    text = "square crops along the longer side (default 1, the centre)"
    options.add_numbers(where, {"num_crops": text})
    text = "the whole frame, squeezed into a square"
    where.add_argument("--whole-frame", action="store_true", default=None, help=text)
    text = "consecutive clips from the first frame to the last, instead of the middle clip only"
    clips.add_argument("--whole-video", action="store_true", default=None, help=text)
    text = "fine-tuned run or checkpoint; the page also shows what it attends to"
    clips.add_argument("--classifier", metavar="CHECKPOINT", help=text)
    text = "name or number of the class to explain (default: the predicted class)"
    clips.add_argument("--class-name", metavar="CLASS", help=text)
    options.add_numbers(
        clips, {"max_windows": "largest number of clips of a whole video (default 64)"}
    )

    training = parser.add_argument_group("one page through training; CHECKPOINT is a run folder")
    text = "show the videos at each checkpoint of the run, with a slider"
    training.add_argument("--through-training", action="store_true", help=text)
    text = "largest number of checkpoints to show, evenly spaced (default 12)"
    options.add_numbers(training, {"num_checkpoints": text})

    lists = parser.add_argument_group("one page over a data set; no VIDEO is named")
    options.add_manifest(
        lists, "list(s) of videos; the page shows hardest and easiest clips, classes, places"
    )
    options.add_root(lists, "folder where relative paths start (default: the folder of each list)")
    text = "leave classes out: for lists with several labels per video"
    lists.add_argument("--no-labels", action="store_true", default=None, help=text)
    numbers = {
        "num_shown": "number of hardest, and of easiest, clips to show (default 12)",
        "batch_size": "clips to process at a time (default 8)",
        "num_workers": "decoding processes per rank; 0: the rank decodes itself (default 8)",
    }
    options.add_numbers(lists, numbers)


def run(arguments: argparse.Namespace) -> int:
    from hpm_video.cli.named_videos import check_named, example_of

    _refuse_classifier(arguments)
    example = partial(example_of, "visualize", arguments.checkpoint, "-o", arguments.output_dir)
    arguments.videos = [video for place in arguments.videos for video in _videos_at(place, example)]
    where = arguments.checkpoint, arguments.manifest or arguments.videos, arguments.output_dir
    if arguments.manifest:
        if arguments.videos or arguments.through_training:
            what = "--through-training" if arguments.through_training else "VIDEO"
            raise ValueError(f"--manifest ({arguments.manifest[0]}) must come without {what}")
        _refuse(arguments, _OF_CLIPS + _OF_TRAINING, "without --manifest")
        return _over_data_set(arguments, *where)
    _refuse(arguments, _OF_LISTS, "with --manifest")
    if not arguments.videos:
        rule = "must name at least one file, unless --manifest names a list"
        raise ValueError(f"VIDEO (none) {rule}; for example: {example()}")
    if is_through := arguments.through_training:
        _refuse(arguments, _OF_CLIPS, "without --through-training")
    else:
        _refuse(arguments, _OF_TRAINING, "with --through-training")
    check_named(arguments.videos, example=example)
    return (_through_training if is_through else _of_clips)(arguments, *where)


def _refuse_classifier(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a fine-tuned run in place of the pre-trained model."""
    from hpm_video.weights.run_folders import run_of, way_to_kind

    place = Path(arguments.checkpoint)
    if (run := run_of(place)) is None or run.kind == "pretrain":
        return
    said = f"checkpoint ({place}) must be of kind pretrain, not finetune; "
    said += way_to_kind(place, "pretrain")
    if not (arguments.classifier or arguments.manifest or arguments.through_training):
        said += f"; to see what this classifier attends to, add --classifier {shell_path(place)}"
    raise ValueError(said)


def _videos_at(place: str, example: Callable[[], str]) -> list[str]:
    """A video's own path, or the videos in and below a folder.

    Raises ValueError for a folder without any, before anything slow is imported.
    """
    if not os.path.isdir(place):
        return [place]
    from hpm_video.cli.named_videos import way_from_folder
    from hpm_video.data.prepare.tree import VideoTree

    found = VideoTree(place)
    videos = [*found.videos, *found.dangling]
    if not videos and not found.num_images:
        way = way_from_folder(found.texts, example=example)
        raise ValueError(f"VIDEO ({printable(place)}) must hold videos: has none{way}")
    return videos or [place]  # images that are no video: reading them says why


def _of_clips(arguments: argparse.Namespace, *where: Any) -> int:
    from hpm_video.visualize import View, visualize

    if arguments.class_name is not None and arguments.classifier is None:
        raise ValueError(f"--class-name ({arguments.class_name}) must come with --classifier")
    view = View(**_given(arguments, _OF_CLIPS[:-3]))
    rest = _given(arguments, (*_OF_CLIPS[-3:], *_OF_ALL))
    page, results = visualize(*where, view=view, **rest)
    bad = [result for result in results if result.error is not None]
    for result in bad:
        print(f"unreadable: {result.name}: {result.error}", file=sys.stderr)
    if page is None:
        print(
            "hpm-video visualize: no video could be read, so no page was written", file=sys.stderr
        )
        return 1
    print(page)
    return 1 if bad else 0


def _through_training(arguments: argparse.Namespace, *where: Any) -> int:
    from hpm_video.visualize.training import visualize_training

    page, history = visualize_training(*where, **_given(arguments, _OF_TRAINING + _OF_ALL))
    for name, reason in history.skipped:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    for name, reason in history.bad:
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if history.is_short:
        print(f"note: too few checkpoints ({history.num_asked}) to show training: see the page")
    print(page)
    return 1 if history.bad or history.skipped else 0


def _over_data_set(arguments: argparse.Namespace, *where: Any) -> int:
    from hpm_video.visualize.dataset import visualize_list

    page, found = visualize_list(*where, **_given(arguments, _OF_LISTS + _OF_ALL))
    if found is None:
        return 0  # only rank 0 prints
    for index, reason in found.bad:
        line = printable(f"unreadable, left out: {found.manifest.path(index)}: {reason}")
        print(line, file=sys.stderr)
    print(page)
    return 1 if found.bad else 0


def _given(arguments: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    """Those of the named options that were given."""
    return {name: value for name in names if (value := getattr(arguments, name)) is not None}


def _refuse(arguments: argparse.Namespace, names: tuple[str, ...], rule: str) -> None:
    """Reject options that would have no effect."""
    for name, value in _given(arguments, names).items():
        shown = " ".join(value) if isinstance(value, list) else value
        raise ValueError(f"--{name.replace('_', '-')} ({shown}) must come {rule}")
