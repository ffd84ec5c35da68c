"""What files of weights do not say themselves, and what the settings beside them say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpm_video.weights.layouts import Layout
from hpm_video.weights.rules import Inflation

Colour = tuple[float, float, float]

# What our models have, of the settings of a Hugging Face folder
_ONLY = {"hidden_act": "gelu", "num_channels": 3, "qv_bias": True, "qkv_bias": True}
_WHOLE_NUMBERS = (
    "num_frames", "image_size", "num_attention_heads", "decoder_num_attention_heads",
)  # fmt: skip


@dataclass(frozen=True)
class Assumptions:
    """What files do not say themselves; what is None follows from them, or is the usual.

    image_frames: of clips where the weights are of images, unless num_frames is given.
    mean, std: with which the pixels that the weights were trained on were normalised.
    """

    num_frames: int | None = None
    image_frames: int | None = None
    image_size: int | None = None
    tubelet_size: int | None = None
    heads: int | None = None
    decoder_heads: int | None = None
    inflation: Inflation = "mean"
    mean: Colour | None = None
    std: Colour | None = None


def known(
    layout: Layout, config: Mapping[str, Any], given: Assumptions, *, path: str | Path
) -> Assumptions:
    """What is given, else what the settings of a Hugging Face folder say.

    Raises ValueError where both say otherwise.
    """
    if layout.name != "huggingface":
        return given
    said = {
        "num_frames": config.get("num_frames"),
        "image_size": config.get("image_size"),
        "heads": config.get("num_attention_heads"),
        "decoder_heads": config.get("decoder_num_attention_heads"),
        "mean": config.get("image_mean"),
        "std": config.get("image_std"),
    }
    heads = (given.heads, said["heads"])
    if None not in heads and heads[0] != heads[1]:
        raise ValueError(f"weights ({path}): found {heads[1]} heads, expected {heads[0]}")
    fill: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in said.items()
        if getattr(given, name) is None and value is not None
    }
    return replace(given, **fill)


def check_config(config: Mapping[str, Any], *, path: str | Path) -> None:
    """Refuse what our models do not have, and what is no setting at all."""
    for name in _WHOLE_NUMBERS:
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"weights ({path}): found {name} {value}, expected a whole number")
    for name in ("image_mean", "image_std"):
        value = config.get(name)
        if value is not None and not (
            isinstance(value, list)
            and len(value) == 3
            and all(isinstance(number, int | float) for number in value)
        ):
            raise ValueError(f"weights ({path}): found {name} {value}, expected three numbers")
    for name, usual in (
        ("hidden_act", "gelu"),
        ("num_channels", 3),
        ("qv_bias", True),
        ("qkv_bias", True),
    ):
        if config.get(name, usual) != usual:
            raise ValueError(f"weights ({path}): found {name} {config[name]}, expected {usual}")
