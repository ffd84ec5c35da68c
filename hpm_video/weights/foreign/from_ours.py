"""Converts our checkpoints to the names and shapes of another format, by inverting its rules."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.models.vit import position_table
from hpm_video.weights.checkpoint import settings_of, tokens_of, trained_grid
from hpm_video.weights.foreign.formats import Layout
from hpm_video.weights.misfits import refuse


def without_features(state: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """A checkpoint without a decoder of features, and a line on what was left out.

    Other formats only have decoders of pixels, which are kept.
    """
    config = settings_of(state)
    if not isinstance(config, PretrainConfig) or config.loss.has_pixels:
        return state, []
    of_decoder = ("decoder_input.", "reconstructor.", "predictor.", "pixel_predictor.")
    kept = {n: value for n, value in state["model"].items() if not n.startswith(of_decoder)}
    if len(kept) == len(state["model"]):
        return state, []
    words = f"left out: the decoder, as it reconstructs features (loss.target {config.loss.target})"
    return {**state, "model": kept}, [words]


def export_tensors(state: Mapping[str, Any], layout: Layout) -> tuple[dict[str, Tensor], list[str]]:
    """A checkpoint's weights with the names of a layout, and lines on what was left out.

    Only loss predictors may be left out, and decoders in image formats. Raises ValueError if
    anything else has no place, if the format would compute other positions than those of training,
    or for a baseline.
    """
    config = settings_of(state)
    if isinstance(config, FinetuneConfig) and config.model.name != "videomae":
        raise ValueError(
            f"model.name ({config.model.name}) must be videomae for format {layout.name}; use "
            "--to checkpoint or --to safetensors"
        )
    pooling = config.model.pooling if isinstance(config, FinetuneConfig) else "mean_norm"
    if pooling != "mean_norm" and "head.weight" in state["model"]:
        raise ValueError(
            f"model.pooling ({pooling}) must be mean_norm for a classifier in format "
            f"{layout.name}; use --to checkpoint, safetensors, onnx or torch-export, or add "
            "--encoder"
        )
    tokens = tokens_of(state)
    weights: dict[str, Tensor] = dict(state["model"])
    trained = trained_grid(state) or tokens.grid
    if layout.is_image:
        weights.setdefault(
            "encoder.positions",
            position_table(tokens.grid, len(weights["encoder.embed.bias"]), trained_grid=trained),
        )
    elif trained != tokens.grid:
        raise ValueError(
            f"positions of {trained}, interpolated to {tokens.grid}, cannot be stored in format "
            f"{layout.name}, which computes positions from the grid alone; use --to checkpoint or "
            "--to safetensors"
        )
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    blocks = filter(None, (re.search(r"\.blocks\.(\d+)\.", name) for name in weights))
    depth = 1 + max(int(block[1]) for block in blocks)
    for rule in (rule for each in layout.rules for rule in each.of_blocks(depth)):
        if set(rule.ours) <= weights.keys():
            used |= set(rule.ours)
            theirs = rule.change.to_theirs([weights[name].float() for name in rule.ours], tokens)
            tensors |= {n: v.contiguous().clone() for n, v in zip(rule.theirs, theirs, strict=True)}
    left_out = [name for name in weights if name not in used]
    of_ours = ("predictor.", "pixel_predictor.")
    may_be = (*of_ours, *(("decoder_input.", "reconstructor.") if layout.is_image else ()))
    lost = [name for name in left_out if not name.startswith(may_be)]
    refuse(lost, f"format {layout.name} cannot store these weights")
    counts = Counter(name.split(".")[0] for name in left_out)
    named = ", ".join(f"{name} ({number} tensors)" for name, number in counts.items())
    return tensors, [f"left out, as the format cannot store it: {named}"] if left_out else []
