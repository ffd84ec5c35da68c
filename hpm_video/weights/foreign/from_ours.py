"""From a checkpoint of ours to the names and shapes of another format: the rules, backwards."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hpm_video.config import EncoderConfig, FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_from_dict
from hpm_video.models.build import token_grid
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import position_table
from hpm_video.weights.foreign.account import shown
from hpm_video.weights.foreign.formats import Layout
from hpm_video.weights.foreign.rules import Shape

# What a format may have no place for
_PREDICTOR = ("predictor.",)
_NOT_OF_IMAGES = (*_PREDICTOR, "decoder_input.", "reconstructor.")


@dataclass(frozen=True)
class Exported:
    """Tensors by the names of a layout, and what of ours has no place there."""

    tensors: dict[str, Tensor]
    left_out: tuple[str, ...]

    @property
    def words(self) -> list[str]:
        """What to say about what was left out."""
        if not self.left_out:
            return []
        counts = Counter(name.split(".")[0] for name in self.left_out)
        named = ", ".join(f"{name} ({number} tensors)" for name, number in counts.items())
        return [f"left out, as the format has no place for it: {named}"]


def config_of(state: Mapping[str, Any]) -> PretrainConfig | FinetuneConfig:
    """The settings of a checkpoint; raises ValueError where it is of a baseline."""
    if state["kind"] == "pretrain":
        return config_from_dict(PretrainConfig, state["config"])
    config = config_from_dict(FinetuneConfig, state["config"])
    if config.model.name != "videomae":
        raise ValueError(
            f"model.name ({config.model.name}) must be videomae: other formats have no such model"
        )
    return config


def shape_of(config: PretrainConfig | FinetuneConfig) -> Shape:
    """The tokens and the grid of the settings."""
    model: EncoderConfig = config.model
    grid = token_grid(model, num_frames=config.data.num_frames, crop_size=config.data.crop_size)
    return Shape(grid, model.tubelet_size, model.patch_size)


def trained_grid_of(state: Mapping[str, Any], shape: Shape) -> TokenGrid:
    """The grid whose position table the weights were trained with."""
    trained = state.get("trained_grid")
    return TokenGrid(*trained) if trained else shape.grid


def export_tensors(state: Mapping[str, Any], layout: Layout) -> Exported:
    """A checkpoint's weights in a layout.

    Only a predictor of losses may be left out, and of images a decoder. Raises ValueError where
    anything else would be, or where the format would place tokens otherwise than in training.
    """
    config = config_of(state)
    shape = shape_of(config)
    weights: dict[str, Tensor] = dict(state["model"])
    trained = trained_grid_of(state, shape)
    if layout.is_image:
        weights.setdefault(
            "encoder.positions",
            position_table(shape.grid, len(weights["encoder.embed.bias"]), trained_grid=trained),
        )
    elif trained != shape.grid:
        raise ValueError(
            f"positions of {trained}, interpolated to {shape.grid}, have no place in "
            f"{layout.name}, which computes those of the grid alone"
        )
    tensors: dict[str, Tensor] = {}
    used: set[str] = set()
    blocks = filter(None, (re.search(r"\.blocks\.(\d+)\.", name) for name in weights))
    depth = 1 + max(int(block[1]) for block in blocks)
    for template in layout.rules:
        rules = map(template.of_block, range(depth)) if template.is_of_blocks else [template]
        for rule in rules:
            if not set(rule.ours) <= weights.keys():
                continue
            values = [weights[name].float() for name in rule.ours]
            used |= set(rule.ours)
            theirs = rule.change.to_theirs(values, shape)
            tensors |= {
                name: value.contiguous().clone()
                for name, value in zip(rule.theirs, theirs, strict=True)
            }
    left_out = tuple(name for name in weights if name not in used)
    may_be = _NOT_OF_IMAGES if layout.is_image else _PREDICTOR
    if lost := [name for name in left_out if not name.startswith(may_be)]:
        raise ValueError(f"weights have no place in {layout.name}: {shown(lost)}")
    return Exported(tensors, left_out)
