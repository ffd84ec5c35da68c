"""``hpm-video features``."""

from __future__ import annotations

import argparse
from pathlib import Path

from hpm_video.config import FeaturesConfig
from hpm_video.config.settings import load_config
from hpm_video.config.words import SETTINGS, settings_help, without_settings
from hpm_video.runtime.files import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--manifest", nargs="+", metavar="LIST", help="list(s) of videos")
    which.add_argument("--video", metavar="FILE", help="one video, by sliding windows")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="PLACE",
        help="a file, .npz or .safetensors, or a folder for it; of a list by windows a folder",
    )
    windows = parser.add_argument_group("sliding windows (of a list: if one of these is given)")
    text = "frames of a window (default: of a clip in training)"
    windows.add_argument("--window", type=int, metavar="N", help=text)
    text = "frames from one frame of a window to the next (default: as in training)"
    windows.add_argument("--frame-stride", type=int, metavar="N", help=text)
    text = "frames from window to window (default: windows side by side)"
    windows.add_argument("--stride", type=int, metavar="N", help=text)
    text = "also a feature of each step in time of each window"
    windows.add_argument("--per-step", action="store_true", help=text)
    parser.add_argument("settings", nargs="*", metavar=SETTINGS)
    parser.epilog = settings_help(FeaturesConfig)


def run(arguments: argparse.Namespace) -> int:
    manifests, settings = without_settings(arguments.manifest or [], name="--manifest")
    config = load_config(FeaturesConfig, None, settings + arguments.settings)
    from hpm_video.data.loading.bad_videos import UnreadableDataError
    from hpm_video.data.video.frames import VideoReadError
    from hpm_video.evaluate.features import (
        Sliding,
        list_features,
        sliding_list_features,
        video_features,
    )
    from hpm_video.runtime.rendezvous import find_place

    sliding = Sliding(
        arguments.window, arguments.frame_stride, arguments.stride, arguments.per_step
    )
    checkpoint, output = arguments.checkpoint, Path(arguments.output)
    if arguments.video is not None:
        try:
            result = video_features(
                checkpoint, arguments.video, output, sliding=sliding, config=config
            )
        except VideoReadError as error:
            raise UnreadableDataError(f"unreadable: {error}") from error
    elif sliding == Sliding():
        result = list_features(checkpoint, manifests, output, config)
    else:
        result = sliding_list_features(
            checkpoint, manifests, output, sliding=sliding, config=config
        )
    if find_place().rank != 0:
        return 0  # of several processes, one speaks
    for path, reason in result.bad:
        print(printable(f"unreadable, no features: {path}: {reason}"))
    print(printable(f"{result.output}  videos {result.num_videos}  unreadable {len(result.bad)}"))
    return 0
