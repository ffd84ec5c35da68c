"""What files of weights do not say themselves, and what the settings beside them say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from hpm_video.weights.foreign.formats import Layout
from hpm_video.weights.foreign.rules import Inflation

Colour = tuple[float, float, float]

# What our models have, of the settings of a Hugging Face folder
_ONLY = {
    "hidden_act": "gelu", "num_channels": 3, "qv_bias": True, "qkv_bias": True,
    "do_normalize": True, "do_rescale": True,
}  # fmt: skip
# What of them tells what files do not
_SAID = {
    "num_frames": "num_frames", "image_size": "image_size",
    "depth": "num_hidden_layers", "heads": "num_attention_heads",
    "decoder_depth": "decoder_num_hidden_layers", "decoder_heads": "decoder_num_attention_heads",
    "mean": "image_mean", "std": "image_std",
}  # fmt: skip
_LARGEST_EPS = 1e-5  # of norms; ours is 1e-6, and up to here outputs do not tell
_WHOLE_NUMBERS = (
    "num_frames", "image_size", "num_attention_heads", "num_hidden_layers",
    "decoder_num_attention_heads", "decoder_num_hidden_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What files do not say themselves; what is None follows from them, or is the usual.

    depth, decoder_depth: numbers of blocks. Files say them, but not whether some are lacking.
    image_frames: of clips where the weights are of images, unless num_frames is given.
    mean, std: with which the pixels that the weights were trained on were normalised.
    """

    num_frames: int | None = None
    image_frames: int | None = None
    image_size: int | None = None
    tubelet_size: int | None = None
    depth: int | None = None
    heads: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    inflation: Inflation = "mean"
    mean: Colour | None = None
    std: Colour | None = None


def known(
    layout: Layout, config: Mapping[str, Any], given: Assumptions, *, path: str | Path
) -> Assumptions:
    """What is given, else what the settings of a folder of Hugging Face or timm say.

    Raises ValueError where both say otherwise, or where colours cannot be normalised so.
    """
    said: dict[str, Any] = {}
    if layout.name == "huggingface":
        said = {name: config.get(key) for name, key in _SAID.items()}
    elif isinstance(of_timm := config.get("pretrained_cfg"), Mapping):
        said = {name: of_timm.get(name) for name in ("mean", "std")}
    fill: dict[str, Any] = {}
    for name, value in said.items():
        if value is None:
            continue
        value = tuple(value) if isinstance(value, list) else value  # noqa: PLW2901
        mine = getattr(given, name)
        if mine not in (None, value):
            raise ValueError(f"weights ({path}): found {value} for {name}, expected {mine}")
        fill[name] = value
    result = replace(given, **fill)
    for name in ("mean", "std"):
        colour = getattr(result, name)
        if colour is not None and not (_is_colour(colour) and (name == "mean" or min(colour) > 0)):
            words = "three numbers" + ("" if name == "mean" else " above 0")
            raise ValueError(f"weights ({path}): found {name} {colour}, expected {words}")
    return result


def check_config(config: Mapping[str, Any], *, path: str | Path) -> None:
    """Refuse what our models do not have, and what is no setting at all."""
    for name in _WHOLE_NUMBERS:
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"weights ({path}): found {name} {value}, expected a whole number")
    for name, usual in _ONLY.items():
        if config.get(name, usual) != usual:
            raise ValueError(f"weights ({path}): found {name} {config[name]}, expected {usual}")
    eps = config.get("layer_norm_eps", 0.0)
    if not isinstance(eps, int | float) or not 0 <= eps <= _LARGEST_EPS:
        raise ValueError(
            f"weights ({path}): found layer_norm_eps {eps}, expected at most {_LARGEST_EPS}"
        )


def _is_colour(value: Any) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 3
        and all(isinstance(number, int | float) and isfinite(number) for number in value)
    )
