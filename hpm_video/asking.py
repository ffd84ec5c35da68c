"""The commands that ask a frozen encoder: ``hpm-video probe`` and ``hpm-video features``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from hpm_video.config import PROBE_KINDS, FeaturesConfig, ProbeJobConfig
from hpm_video.data.files import printable
from hpm_video.settings import load_config

Say = Callable[[str], None]


def add_probe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    text = "list(s) of labelled videos to learn from"
    parser.add_argument("--train", nargs="+", required=True, metavar="LIST", help=text)
    text = "list(s) of labelled videos to judge on"
    parser.add_argument("--val", nargs="+", required=True, metavar="LIST", help=text)
    text = "one or several, which then share the encoder's work (default knn)"
    parser.add_argument(
        "--kind", nargs="+", default=["knn"], metavar="|".join(PROBE_KINDS), help=text
    )
    parser.add_argument("settings", nargs="*", metavar="key=value")


def run_probe(arguments: argparse.Namespace, say: Say) -> int:
    train, settings = _without_settings(arguments.train)
    val, more = _without_settings(arguments.val)
    kinds, others = _without_settings(arguments.kind)
    config = load_config(ProbeJobConfig, None, settings + more + others + arguments.settings)
    from hpm_video.probe import probe

    report = probe(arguments.checkpoint, train=train, val=val, kinds=kinds, config=config)
    if report is None:
        return 0  # under torchrun, one process speaks
    for path, reason, what in report.bad:
        say(printable(f"unreadable, {what}: {path}: {reason}"))
    for result in report.results:
        say(
            f"{result.kind:<9}  top1 {result.top1:.4f}  "
            f"balanced_accuracy {result.balanced_accuracy:.4f}  ({result.how})"
        )
    say(f"train {report.num_train}  val {report.num_val}  unreadable {len(report.bad)}")
    return 0


def add_features_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint, or a run folder")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--manifest", nargs="+", metavar="LIST", help="list(s) of videos")
    which.add_argument("--video", metavar="FILE", help="one video, by sliding windows")
    parser.add_argument(
        "-o",
        "--output",
        required=True,
        metavar="FILE",
        help=".npz or .safetensors; of a list by windows a folder",
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
    parser.add_argument("settings", nargs="*", metavar="key=value")


def run_features(arguments: argparse.Namespace, say: Say) -> int:
    manifests, settings = _without_settings(arguments.manifest or [])
    config = load_config(FeaturesConfig, None, settings + arguments.settings)
    from hpm_video.data.bad_videos import UnreadableDataError
    from hpm_video.data.video import VideoReadError
    from hpm_video.features import list_features
    from hpm_video.sliding import Sliding, sliding_list_features, video_features

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
    if os.environ.get("RANK", "0") != "0":
        return 0  # under torchrun, one process speaks
    for path, reason in result.bad:
        say(printable(f"unreadable, no features: {path}: {reason}"))
    say(printable(f"{result.output}  videos {result.num_videos}  unreadable {len(result.bad)}"))
    return 0


def _without_settings(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Lists, and the settings that argparse took for lists because they follow them."""
    return [w for w in words if not _is_setting(w)], [w for w in words if _is_setting(w)]


def _is_setting(word: str) -> bool:
    return "=" in word and not os.path.exists(word)
