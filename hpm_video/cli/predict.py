"""``hpm-video predict``."""

import argparse
import sys
from functools import partial
from pathlib import Path

from hpm_video.cli.options import CLASSIFIER, add_checkpoint, add_manifest, add_settings
from hpm_video.config import EvaluateConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_checkpoint(parser, CLASSIFIER)
    text = "videos, images, folders of frames, or folders of these; instead of --manifest"
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help=text)
    add_manifest(parser, "list(s) of videos; labels are not read")
    text = (
        "file to write, .csv or .json, or a folder for both; a folder with --windows (default: "
        "only print the table)"
    )
    parser.add_argument("-o", "--output", "--output-dir", metavar="PLACE", help=text)
    text = "number of likeliest classes to name, with their scores (default 1)"
    parser.add_argument("--top", type=int, default=1, metavar="K", help=text)
    text = "also write the score of every class"
    parser.add_argument("--all-scores", action="store_true", help=text)
    text = (
        "seconds between windows in which to predict classes along each video; writes tables, "
        "events, and a page that plays the video with its scores"
    )
    parser.add_argument("--windows", type=float, metavar="SECONDS", help=text)
    add_settings(parser, EvaluateConfig)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(EvaluateConfig, None, arguments.settings)
    # These import NumPy, which --help need not wait for
    from hpm_video.cli.named_videos import check_named, example_of, way_from_folder
    from hpm_video.weights.run_folders import check_kind_of_run

    model = arguments.checkpoint
    check_kind_of_run(Path(model), "finetune", f"checkpoint ({model})")
    to = [] if arguments.output is None else ["-o", arguments.output]
    example = partial(example_of, "predict", model, *to)
    check_named(arguments.videos, example=example)
    from hpm_video.evaluate.predict import Shown, csv_lines, predict, videos_of
    from hpm_video.runtime.rendezvous import find_place

    shown = Shown(arguments.top, arguments.all_scores)
    output = None if arguments.output is None else Path(arguments.output)
    if arguments.windows is not None and output is None:
        raise ValueError("--output (none) must name a folder with --windows: add -o DIR")
    videos = videos_of(
        arguments.videos,
        arguments.manifest,
        root=config.root,
        way=partial(way_from_folder, example=example),
    )
    notes = videos.notes
    if arguments.windows is not None:
        from hpm_video.visualize.along_videos import predict_along

        assert output is not None
        seconds = arguments.windows
        found = predict_along(
            arguments.checkpoint, videos, output, config, stride_s=seconds, shown=shown
        )
        bad, notes, lines = found.bad, found.notes, [str(found.table)]
    else:
        result = predict(arguments.checkpoint, videos, config, output=output, shown=shown)
        bad = tuple((result.paths[index], reason) for index, reason in result.bad)
        notes = (*notes, *filter(None, [result.about.get("warning")]))
        lines = [str(output)] if output is not None else list(csv_lines(result, shown))
    if find_place().rank != 0:
        return 0  # only rank 0 prints
    for note in notes:
        print(printable(f"warning: {note}"), file=sys.stderr)
    for line in lines:
        print(printable(line.removesuffix("\n")))
    for path, reason in bad:
        print(printable(f"unreadable: {path}: {reason}"), file=sys.stderr)
    return 1 if bad else 0
