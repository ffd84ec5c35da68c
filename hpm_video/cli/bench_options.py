"""Options that several benches share. Imports nothing slow, so that --help answers at once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hpm_video.cli.options import is_setting

DECODERS = ("decord", "torchcodec", "pyav")
SIZES = ("tiny", "small", "base", "large", "huge", "giant")
ALL = "(default: all)"


def split_settings(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """A config, if a word names one, and settings, in any order; ValueError for two configs."""
    configs = [word for word in words if not is_setting(word)]
    if len(configs) > 1:
        raise ValueError(f"config ({' '.join(configs)}) must be one file")
    return (configs[0] if configs else None), [word for word in words if is_setting(word)]


def add_number(parser: argparse.ArgumentParser, name: str, default: int, what: str) -> None:
    parser.add_argument(name, type=int, default=default, help=f"{what} (default {default})")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")


def add_timing(parser: argparse.ArgumentParser, *, batch_size: int, rounds: int = 5) -> None:
    """Of benches that time models: rounds, device, threads, batch size."""
    add_number(parser, "--rounds", rounds, "median of so many")
    add_device(parser)
    parser.add_argument("--threads", type=int, help="of PyTorch (default: its own choice)")
    add_number(parser, "--batch-size", batch_size, "clips")


def add_clip(parser: argparse.ArgumentParser) -> None:
    add_number(parser, "--frames", 16, "per clip")
    add_number(parser, "--crop-size", 224, "pixels")


def add_variants(
    parser: argparse.ArgumentParser,
    *,
    token_ratios: Sequence[float],
    predictor_inputs: Sequence[str],
    predictor_depths: Sequence[int],
) -> None:
    """Which forms of hard patches mining to compare; all combinations are."""
    parser.add_argument(
        "--token-ratio",
        type=float,
        nargs="+",
        metavar="R",
        default=token_ratios,
        help="share(s) of the tokens the teacher sees (default %(default)s)",
    )
    parser.add_argument(
        "--predictor-input",
        choices=["pixels", "encoded"],
        nargs="+",
        default=predictor_inputs,
        help="what the predictor looks at, one or both to compare (default %(default)s)",
    )
    parser.add_argument(
        "--predictor-depth",
        type=int,
        nargs="+",
        metavar="L",
        default=predictor_depths,
        help="blocks of the predictor, one or several to compare (default %(default)s)",
    )


def add_sizes(parser: argparse.ArgumentParser, default: Sequence[str]) -> None:
    parser.add_argument(
        "--size", choices=SIZES, nargs="+", default=list(default), help="one or more"
    )


def add_videos(parser: argparse.ArgumentParser) -> None:
    """Of benches that read videos."""
    parser.add_argument("--source", metavar="FOLDER", help="videos to make it of (default: toys)")
    add_number(parser, "--videos", 6, "of each kind")
    add_number(parser, "--rounds", 5, "median of so many")
    add_number(parser, "--crop-size", 224, "pixels")
