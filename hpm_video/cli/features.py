"""``hpm-video features``."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpm_video.cli import options
from hpm_video.cli.probe import MODEL
from hpm_video.config import FeaturesConfig
from hpm_video.config.settings import load_config
from hpm_video.runtime.files import printable

_VAL = "data.val_manifest, or probe.val_manifest of pre-training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_checkpoint(parser, MODEL)
    which = parser.add_mutually_exclusive_group()
    options.add_manifest(
        which, "list(s) of videos (default: the lists that the run was evaluated on)"
    )
    which.add_argument("--video", metavar="FILE", help="one video, as sliding windows")
    text = "file to write, .npz or .safetensors, or a folder for it; a folder for windows of a list"
    options.add_output(parser, text, "--output-dir", metavar="PLACE")
    windows = parser.add_argument_group("sliding windows (for a list, if one of these is given)")
    numbers = {
        "window": "frames per window (default: as a clip in training)",
        "frame_stride": "step in frames between the frames of a window (default: as in training)",
        "stride": "frames from one window to the next (default: windows do not overlap)",
    }
    options.add_numbers(windows, numbers)
    text = "also write a feature for each time step of a window"
    windows.add_argument("--per-step", action="store_true", help=text)
    options.add_settings(parser, FeaturesConfig)


def run(arguments: argparse.Namespace) -> int:
    config = load_config(FeaturesConfig, None, arguments.settings)
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
    checkpoint, manifests, output = arguments.checkpoint, arguments.manifest, Path(arguments.output)
    if arguments.video is None and not manifests:
        from hpm_video.evaluate.frozen_encoder import stored_lists

        stored = stored_lists(checkpoint)
        config = replace(config, root=config.root or stored.root)
        names = {"option": "--manifest", "setting": _VAL, "checkpoint": checkpoint}
        manifests = options.lists_or_stored(manifests, stored.val, **names)
    how: dict[str, Any] = {"sliding": sliding, "config": config}
    if arguments.video is not None:
        try:
            result = video_features(checkpoint, arguments.video, output, **how)
        except VideoReadError as error:
            raise UnreadableDataError(f"unreadable: {error}") from error
    elif sliding == Sliding():
        result = list_features(checkpoint, manifests, output, config)
    else:
        result = sliding_list_features(checkpoint, manifests, output, **how)
    if find_place().rank != 0:
        return 0  # of several processes, one speaks
    for note in result.notes:
        print(printable(f"warning: {note}"))
    for path, reason in result.bad:
        print(printable(f"unreadable, no features: {path}: {reason}"))
    print(printable(f"{result.output}  videos {result.num_videos}  unreadable {len(result.bad)}"))
    return 0
