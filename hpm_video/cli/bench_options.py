"""Options shared by several benchmarks. Imports nothing slow, so that --help appears at once.

Options (``dest``) are named like the keywords of the benchmark's function.
"""

from argparse import ArgumentParser as Parser
from collections.abc import Sequence
from typing import Any

from hpm_video.cli.options import add_device, is_setting
from hpm_video.config import PretrainConfig
from hpm_video.config.values import (
    LossTarget,
    MaskSource,
    Precision,
    PredictorInput,
    Size,
    values_of,
)


def config_from(words: Sequence[str]) -> PretrainConfig:
    """Config of a pre-training from a recipe or file, if any, and settings, in any order.

    Raises ValueError for two files, and for anything that `load_config` rejects.
    """
    from hpm_video.config.recipe import find_recipe
    from hpm_video.config.settings import load_config

    files = [word for word in words if not is_setting(word)]
    if len(files) > 1:
        raise ValueError(f"config ({' '.join(files)}) must be a single file")
    settings = [word for word in words if is_setting(word)]
    file = find_recipe("pretrain", files[0]) if files else None
    return load_config(PretrainConfig, file, settings)


def add_number(parser: Parser, name: str, default: int, what: str, dest: str | None = None) -> None:
    text = f"{what} (default {default})"
    parser.add_argument(name, type=int, default=default, help=text, dest=dest, metavar="N")


def add_several(
    parser: Parser, name: str, default: Sequence[Any], what: str, dest: str, **how: Any
) -> None:
    """Add an option with one or more values; ``how``: keywords of `argparse`."""
    text = f"{what} (default {' '.join(map(str, default))})"
    parser.add_argument(name, nargs="+", default=default, help=text, dest=dest, **how)


def add_threads(parser: Parser) -> None:
    text = "threads of PyTorch (default: its own choice)"
    parser.add_argument("--threads", type=int, help=text, metavar="N")


def add_timing(parser: Parser, *, batch_size: int) -> None:
    """Add options of benchmarks that time models: rounds, batch size, device."""
    add_number(parser, "--rounds", 5, "rounds whose median counts")
    add_number(parser, "--batch-size", batch_size, "clips per step")
    add_device(parser)


def add_clip(parser: Parser) -> None:
    add_number(parser, "--frames", 16, "frames per clip")
    add_number(parser, "--crop-size", 224, "height and width of a clip in pixels")


def add_decoder_mask(parser: Parser) -> None:
    text = "share of the masked tokens that are not reconstructed (default %(default)s)"
    parser.add_argument("--decoder-mask-ratio", type=float, default=0.0, help=text, metavar="R")


def add_mask_source(parser: Parser) -> None:
    # Codec scores come from videos, which a benchmark of a single step does not read
    choices = [source for source in values_of(MaskSource) if source not in ("none", "codec")]
    text = "source of masks, except in plain VideoMAE (default %(default)s)"
    parser.add_argument("--mask-source", choices=choices, default="predicted", help=text)


def add_target(parser: Parser) -> None:
    text = "reconstruction target, except in plain VideoMAE (default %(default)s)"
    choices = values_of(LossTarget)
    parser.add_argument("--target", choices=choices, default="pixels", help=text)
    parser.add_argument(
        "--target-model", metavar="PATH", help="loss.target_model, for --target frozen"
    )
    parser.add_argument(
        "--target-weights", metavar="FILE", help="file of weights for --target-model timm:NAME"
    )


def add_precision(parser: Parser, default: Precision = "auto") -> None:
    choices, text = values_of(Precision), "precision of the forward pass (default %(default)s)"
    parser.add_argument("--precision", choices=choices, default=default, help=text)


def add_size(parser: Parser, default: str) -> None:
    choices, text = values_of(Size), "size of the model (default %(default)s)"
    parser.add_argument("--size", choices=choices, default=default, help=text)


def add_sizes(parser: Parser) -> None:
    default, choices = ["small", "base", "large"], values_of(Size)
    add_several(parser, "--size", default, "sizes of the model", "sizes", choices=choices)


def add_token_ratios(parser: Parser, default: Sequence[float]) -> None:
    text = "share(s) of the tokens that the teacher sees"
    add_several(parser, "--token-ratio", default, text, "token_ratios", type=float, metavar="R")


def add_variants(
    parser: Parser, ratios: Sequence[float], inputs: Sequence[str], depths: Sequence[int]
) -> None:
    """Add options for the variants of hard patches mining to compare, in all combinations."""
    add_token_ratios(parser, ratios)
    text, choices = "input(s) of the loss predictor", values_of(PredictorInput)
    add_several(parser, "--predictor-input", inputs, text, "predictor_inputs", choices=choices)
    text, dest = "blocks of the loss predictor", "predictor_depths"
    add_several(parser, "--predictor-depth", depths, text, dest, type=int, metavar="L")
