"""Infers the model that weights of other projects belong to, from shapes, settings, assumptions."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf
from typing import Any

from torch import nn

from hpm_video.config import (
    ClassifierConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    LabelsConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
)
from hpm_video.config.settings import config_from_dict
from hpm_video.config.values import Inflation, Sampling
from hpm_video.models.build import build
from hpm_video.models.grid import TokenShape
from hpm_video.models.sizes import SIZES
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.weights.foreign.formats import Recognised
from hpm_video.weights.foreign.rules import Part, Rule, Shape
from hpm_video.weights.misfits import refusal

Colour = tuple[float, float, float]

# Values of Hugging Face settings that our models support; others are refused
_ONLY = {
    "hidden_act": "gelu", "num_channels": 3, "qv_bias": True, "qkv_bias": True,
    "do_normalize": True, "do_rescale": True,
}  # fmt: skip
# Our names for Hugging Face settings that provide facts missing from the tensors
_SAID = {
    "num_frames": "num_frames", "image_size": "image_size",
    "depth": "num_hidden_layers", "heads": "num_attention_heads",
    "decoder_depth": "decoder_num_hidden_layers", "decoder_heads": "decoder_num_attention_heads",
    "mean": "image_mean", "std": "image_std",
}  # fmt: skip
_WHOLE_NUMBERS = [key for name, key in _SAID.items() if name not in ("mean", "std")]
# Sampling and frame stride with which VideoMAE and VideoMAE V2 fine-tune, by number of classes;
# their code supports these data sets only
_FRAMES: dict[int, tuple[Sampling, int]] = {
    **dict.fromkeys((400, 600, 700, 710), ("videomae_kinetics", 4)),  # Kinetics
    101: ("videomae_kinetics", 4),  # UCF101
    51: ("videomae_kinetics", 2),  # HMDB51
    174: ("videomae_ssv2", 2),  # Something-Something V2, which ignores the stride
}
# Key, and its settings, with which our Hugging Face exports say how frames are sampled
OURS = "hpm_video"
FRAMES = ("sampling", "frame_stride", "fps", "antialias")
_LARGEST_EPS = 1e-5  # of norms; ours is 1e-6, and up to this value outputs do not change
# Name pattern -> dimension that equals the width of the blocks, or the hidden width of their MLPs
_NORMS = {r".*blocks\.\d+\.norm[12]\.bias|.*layernorm_(before|after)\.bias": 0}
_HIDDEN = {
    r".*(mlp\.fc1|intermediate\.dense)\.(weight|bias)": 0,
    r".*(mlp\.fc2|(?<!attention\.)output\.dense)\.weight": 1,
}


@dataclass(frozen=True)
class Assumptions:
    """Facts that files do not contain; those that are None are inferred or take a default.

    depth, decoder_depth: numbers of blocks, to detect missing ones.
    image_frames: frames per clip for weights of image models, unless num_frames is given.
    sampling, frame_stride: how the frames of a clip are chosen.
    mean, std: normalisation of the pixels in training.
    """

    num_frames: int | None = None
    image_frames: int | None = None
    image_size: int | None = None
    sampling: Sampling | None = None
    frame_stride: int | None = None
    tubelet_size: int | None = None
    depth: int | None = None
    heads: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None
    inflation: Inflation = "mean"
    mean: Colour | None = None
    std: Colour | None = None


@dataclass(frozen=True)
class Architecture:
    """One of our models that fits the weights of another project.

    parts: the parts of it that the weights contain. rules: conversion rules of these parts, block
    by block. num_classes: 0 unless it is a classifier. assumed: descriptions of facts that the file
    lacks. knows_frames: whether the sampling of frames is known, not assumed.
    """

    config: PretrainConfig | FinetuneConfig
    parts: frozenset[Part]
    rules: tuple[Rule, ...]
    num_classes: int
    shape: Shape
    mean: Colour
    std: Colour
    assumed: tuple[str, ...]
    knows_frames: bool

    def build(self) -> nn.Module:
        """The model with its initial weights."""
        return build(self.config, num_classes=self.num_classes or 1)


def architecture_of(
    found: Recognised, assumptions: Assumptions, *, encoder_only: bool = False
) -> Architecture:
    """Infer the model.

    ``encoder_only``: only the encoder and its final norm.

    Raises ValueError if sizes are missing, contradict each other, or match none of our models.
    """
    layout, path, config = found.layout, found.source.path, found.source.config
    told = _known(found, assumptions)
    parts = _parts(found)
    if encoder_only:
        parts -= {"decoder", "head"}
    embed = found.tensor("encoder.embed.weight")
    if embed.ndim != (4 if layout.is_image else 5) or embed.shape[1] != 3:
        wanted = "(D, 3, y, x)" if layout.is_image else "(D, 3, t, y, x)"
        raise refusal(path, f"a patch embedding {tuple(embed.shape)}", wanted)
    tubelet_size = embed.shape[2] if not layout.is_image else told.tubelet_size or 2
    patch_size = embed.shape[-1]
    num_frames, image_size = told.num_frames, told.image_size
    if layout.is_image:
        image_size = _image_rows(found) * patch_size
        num_frames = num_frames or told.image_frames
    assumed = []
    if num_frames is None:
        num_frames = 16
        assumed.append("16 frames")
    if image_size is None:
        image_size = 224
        assumed.append("224 pixels")
    clip: dict[str, Any] = {"num_frames": num_frames, "crop_size": image_size}
    width = _usual(found, _NORMS, embed.shape[0])
    num_blocks = _num_blocks(found, "encoder")
    size = _size(found, width, num_blocks, told)
    depths: dict[Part, int] = {
        "encoder": told.depth or num_blocks,
        "decoder": told.decoder_depth or max(_num_blocks(found, "decoder"), 1),
    }
    encoder: dict[str, Any] = {"patch_size": patch_size, "tubelet_size": tubelet_size}
    for name, value in {"hidden_size": width, **encoder}.items():
        if config.get(name, value) != value:
            raise refusal(path, f"{name} {config[name]}", f"{value} as in the tensors")
    token = TokenShape(tubelet_size, patch_size)
    encoder |= {**size, "positions": "stored" if layout.is_image else "sinusoid"}
    num_classes = len(found.tensor("head.weight")) if "head" in parts else 0
    own = _own_frames(found)
    frames, words = _frames(told, own, num_classes, is_image=layout.is_image)
    whole: PretrainConfig | FinetuneConfig
    if "norm" not in parts:
        assumed += words
        labels = LabelsConfig()
        if config.get("problem_type") == "multi_label_classification":
            labels = LabelsConfig(separator=";")  # a placeholder; lists may use another
        whole = FinetuneConfig(
            data=FinetuneDataConfig(
                **{**clip, "antialias": layout.is_image, "labels": labels, **frames}
            ),
            model=ClassifierConfig(**encoder),
        )
    else:
        if "decoder" in parts:
            encoder |= _decoder(found, str(size["size"]), told)
            encoder["decoder_depth"] = depths["decoder"]
        normalize = bool(config.get("norm_pix_loss", True))
        whole = PretrainConfig(
            data=DataConfig(**clip, **frames),
            model=ModelConfig(**encoder),
            loss=LossConfig(prediction="none", normalize_targets=normalize),
            masking=MaskingConfig(hard_ratio_end=0),
        )
    return Architecture(
        whole,
        parts,
        tuple(
            rule
            for each in layout.rules
            if each.part in parts
            for rule in each.of_blocks(depths.get(each.part, 0))
        ),
        num_classes,
        Shape(token.grid(**clip), token, told.inflation),
        told.mean or IMAGENET_MEAN,
        told.std or IMAGENET_STD,
        tuple(assumed),
        bool(own) or num_classes in _FRAMES,
    )


def _known(found: Recognised, given: Assumptions) -> Assumptions:
    """The given assumptions, completed by the settings of a Hugging Face or timm folder.

    Raises ValueError if the two differ, or for settings that our models do not support.
    """
    config, path = found.source.config, found.source.path
    for name in _WHOLE_NUMBERS:
        value = config.get(name)
        if value is not None and (not isinstance(value, int) or value < 1):
            raise refusal(path, f"{name} {value}", "a whole number of at least 1")
    for name, usual in _ONLY.items():
        if config.get(name, usual) != usual:
            raise refusal(path, f"{name} {config[name]}", str(usual))
    eps = config.get("layer_norm_eps", 0.0)
    if not isinstance(eps, int | float) or not 0 <= eps <= _LARGEST_EPS:
        raise refusal(path, f"layer_norm_eps {eps}", f"at most {_LARGEST_EPS}")
    said: dict[str, Any] = {}
    if found.layout.name == "huggingface":
        said = {name: config.get(key) for name, key in _SAID.items()}
    elif isinstance(of_timm := config.get("pretrained_cfg"), Mapping):
        said = {name: of_timm.get(name) for name in ("mean", "std")}
    said = {n: tuple(v) if isinstance(v, list) else v for n, v in said.items() if v is not None}
    for name, value in said.items():
        if (mine := getattr(given, name)) not in (None, value):
            raise refusal(path, f"{name} {value}", f"{mine}, as given")
    result = replace(given, **said)
    for name, least, words in (
        ("mean", -inf, "three numbers"),
        ("std", 0, "three numbers above 0"),
    ):
        colour = getattr(result, name)
        is_colour = isinstance(colour, tuple) and len(colour) == 3
        if colour is not None and not (
            is_colour and all(isinstance(c, int | float) and least < c < inf for c in colour)
        ):
            raise refusal(path, f"{name} {colour}", words)
    return result


def _own_frames(found: Recognised) -> dict[str, Any]:
    """The frame sampling settings in a Hugging Face folder that we exported; empty in others.

    Raises ValueError if they are invalid.
    """
    values = found.source.config.get(OURS)
    if values is None:
        return {}
    if not isinstance(values, Mapping) or values.keys() - set(FRAMES):
        raise refusal(found.source.path, f"{OURS} {values}", f"only {', '.join(FRAMES)}")
    try:
        config_from_dict(DataConfig, values)
    except ValueError as error:
        raise refusal(found.source.path, f"{OURS}: {error}", "valid settings") from error
    return dict(values)


def _frames(
    told: Assumptions, own: Mapping[str, Any], num_classes: int, *, is_image: bool
) -> tuple[dict[str, Any], list[str]]:
    """The frame sampling settings, and descriptions of those that are assumed.

    ``own``: result of `_own_frames`.
    """
    known, usual = not is_image and num_classes in _FRAMES, DataConfig()
    values = _FRAMES[num_classes] if known else (usual.sampling, usual.frame_stride)
    likely = dict(zip(("sampling", "frame_stride"), values, strict=True))
    given = {name: value for name in likely if (value := getattr(told, name)) is not None}
    given = {**own, **given}
    words = [f"{name} {value}" for name, value in likely.items() if name not in given]
    if words:
        of = "no classifier" if num_classes == 0 else f"{num_classes} classes"
        words[-1] += f" ({of}{'' if known else ', unknown data set'})"
    return {**likely, **given}, words


def _parts(found: Recognised) -> frozenset[Part]:
    """The parts of a model that the weights contain.

    A head counts only with the norm after the mean over tokens. An encoder without a final norm
    (Hugging Face's use_mean_pooling) stands alone, as our decoder needs that norm.
    """
    there = [rule for rule in found.layout.rules if found.tensors.keys() & set(rule.theirs)]
    if any(rule.part == "head" and rule.ours[0].startswith("norm.") for rule in there):
        return frozenset({"encoder", "head"})
    has_norm = any(rule.part == "norm" for rule in there)
    if not has_norm and found.source.config.get("use_mean_pooling") is True:
        return frozenset({"encoder"})
    has_decoder = any(rule.part == "decoder" for rule in there)
    return frozenset({"encoder", "norm", "decoder"} if has_decoder else {"encoder", "norm"})


def _num_blocks(found: Recognised, part: Part) -> int:
    """Number of blocks: one more than the largest block index."""
    names = [rule.theirs[0] for rule in found.layout.rules if rule.part == part]
    stacks = {re.escape(name.split("{}")[0]) for name in names if "{}" in name}
    numbers = [re.match(rf"{stack}(\d+)\.", name) for stack in stacks for name in found.tensors]
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def _usual(
    found: Recognised, sides: Mapping[str, int], otherwise: int, *, of_decoder: bool = False
) -> int:
    """The most common length among tensors, so that a single deviating one counts as wrong.

    ``sides``: name pattern -> dimension. ``otherwise``: result if no tensor matches.
    """
    lengths = Counter(
        tensor.shape[side]
        for name, tensor in found.tensors.items()
        for pattern, side in sides.items()
        if re.fullmatch(pattern, name)
        and ("decoder" in name) == of_decoder
        and tensor.ndim == (1 if name.endswith("bias") else 2)
    )
    return lengths.most_common(1)[0][0] if lengths else otherwise


def _size(found: Recognised, width: int, num_blocks: int, told: Assumptions) -> dict[str, Any]:
    """Our size that fits, and settings that differ from it. ``num_blocks``: of the encoder."""
    path = found.source.path
    hidden = _usual(found, _HIDDEN, 4 * width)
    fitting = [n for n, size in SIZES.items() if round(width * size.mlp_ratio) == hidden]
    if not fitting:
        ratios = " or ".join(f"{ratio:.4g}" for ratio in {s.mlp_ratio for s in SIZES.values()})
        raise refusal(path, f"MLPs of width {hidden}", f"{ratios} times the width {width}")
    same = [name for name in fitting if SIZES[name].width == width]
    name = (same or [name for name in ("base", "giant") if name in fitting])[0]
    size = SIZES[name]
    if same and told.depth is None and num_blocks != size.depth:
        raise refusal(
            path,
            f"{num_blocks} encoder blocks of width {width}",
            f"{size.depth}, as in size {name}; if {num_blocks} is right, set --depth {num_blocks} "
            f"(weights import) or model.depth={num_blocks} (model.init)",
        )
    heads = _told(found, "heads", told.heads or (size.heads if same else None), width)
    values = {"width": width, "depth": told.depth or num_blocks, "heads": heads}
    unlike = {key: value for key, value in values.items() if value != getattr(size, key)}
    return {"size": name, **unlike}


def _decoder(found: Recognised, size: str, told: Assumptions) -> dict[str, Any]:
    """The settings of the decoder, and the size to which it belongs among those of equal width."""
    width = found.tensor("decoder_input.mask_token").shape[-1]
    width = _usual(found, _NORMS, width, of_decoder=True)
    ratio = SIZES[size].mlp_ratio
    hidden = _usual(found, _HIDDEN, round(width * ratio), of_decoder=True)
    usual = {each.decoder_width: each.decoder_heads for each in SIZES.values()}
    heads = _told(found, "decoder_heads", told.decoder_heads or usual.get(width), width)
    same = [name for name, each in SIZES.items() if each.width == SIZES[size].width]
    return {
        "size": next((name for name in same if SIZES[name].decoder_width == width), size),
        "decoder_width": width,
        "decoder_heads": heads,
        "decoder_mlp_ratio": None if round(width * ratio) == hidden else hidden / width,
    }


def _told(found: Recognised, name: str, heads: int | None, width: int) -> int:
    """The number of heads; raises ValueError if it is unknown or does not divide ``width``."""
    if heads is None or width % heads:
        raise refusal(
            found.source.path,
            f"a decoder of width {width}" if name == "decoder_heads" else f"width {width}",
            f"{name} ({heads or 'unknown'}) that divide it; files do not store {name}, so set "
            f"--{name.replace('_', '-')} (weights import) or model.{name} (model.init)",
        )
    return heads


def _image_rows(found: Recognised) -> int:
    """Number of rows (= columns) of the position table of a square image, without class token."""
    table = found.tensor("encoder.positions")
    rows = round(table.shape[1] ** 0.5) if table.ndim == 3 else 0
    if table.ndim != 3 or rows * rows != table.shape[1]:
        raise refusal(
            found.source.path,
            f"pos_embed {tuple(table.shape)}",
            "(1, rows * columns, D) of a square image, after at most one class token",
        )
    return rows
