"""Which model weights of a foreign format belong to: its size, from shapes and settings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hpm_video.config import (
    ClassifierConfig,
    DataConfig,
    FinetuneConfig,
    FinetuneDataConfig,
    LossConfig,
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
)
from hpm_video.models.build import SIZES
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.weights.foreign.assumptions import Assumptions, Colour, check_config, known
from hpm_video.weights.foreign.formats import Layout
from hpm_video.weights.foreign.recognise import Recognised
from hpm_video.weights.foreign.rules import Part, Rule, Shape

_NORMS = r".*blocks\.\d+\.norm[12]\.bias|.*layernorm_(before|after)\.bias"


@dataclass(frozen=True)
class Architecture:
    """A model of ours that weights of others fit.

    parts: which of its parts the weights hold. num_classes: 0 unless it is a classifier. assumed:
    what was not in the file, in words.
    """

    config: PretrainConfig | FinetuneConfig
    parts: frozenset[Part]
    depths: Mapping[Part, int]
    num_classes: int
    shape: Shape
    mean: Colour
    std: Colour
    assumed: tuple[str, ...]


def architecture_of(
    found: Recognised,
    config: Mapping[str, Any],
    assumptions: Assumptions,
    *,
    path: str | Path,
    encoder_only: bool = False,
) -> Architecture:
    """Work out the model; ``config`` is that of a Hugging Face folder, or empty.

    ``encoder_only``: of its encoder, and what that ends with, alone.

    Raises ValueError where sizes are missing, contradict each other, or are none of our models'.
    """
    check_config(config, path=path)
    layout, tensors = found.layout, found.tensors
    told = known(layout, config, assumptions, path=path)
    parts = parts_of(layout, tensors)
    if encoder_only:
        parts -= {"decoder", "head"}
    embed = _tensor(layout, tensors, "encoder.embed.weight", path=path)
    if embed.ndim != (4 if layout.is_image else 5) or embed.shape[1] != 3:
        raise ValueError(
            f"weights ({path}): found a patch embedding {tuple(embed.shape)}, expected "
            + ("(D, 3, y, x)" if layout.is_image else "(D, 3, t, y, x)")
        )
    assumed = []
    tubelet_size = embed.shape[2] if not layout.is_image else told.tubelet_size or 2
    patch_size = embed.shape[-1]
    num_frames, image_size = told.num_frames, told.image_size
    if layout.is_image:
        rows = _image_rows(layout, tensors, path=path)
        image_size = rows * patch_size
        num_frames = num_frames or told.image_frames
    if num_frames is None:
        num_frames = 16
        assumed.append("16 frames")
    if image_size is None:
        image_size = 224
        assumed.append(f"{image_size} pixels")
    width = _usual(tensors, _NORMS, embed.shape[0])
    stacks: tuple[Part, ...] = ("encoder", "decoder")
    depths = {part: _num_blocks(layout, tensors, part) for part in stacks}
    size = _size(width, depths["encoder"], tensors, told, path=path)
    depths["encoder"] = told.depth or depths["encoder"]
    depths["decoder"] = told.decoder_depth or max(depths["decoder"], 1)
    _check_sizes(
        config, hidden_size=width, patch_size=patch_size, tubelet_size=tubelet_size, path=path
    )
    shape = Shape(
        TokenGrid.of_clip(
            num_frames=num_frames,
            crop_size=image_size,
            tubelet_size=tubelet_size,
            patch_size=patch_size,
        ),
        tubelet_size,
        patch_size,
        told.inflation,
    )
    encoder: dict[str, Any] = {
        **size, "patch_size": patch_size, "tubelet_size": tubelet_size,
        "positions": "stored" if layout.is_image else "sinusoid",
    }  # fmt: skip
    num_classes = 0
    if "head" in parts:
        num_classes = len(_tensor(layout, tensors, "head.weight", path=path))
        whole: PretrainConfig | FinetuneConfig = FinetuneConfig(
            data=FinetuneDataConfig(num_frames=num_frames, crop_size=image_size),
            model=ClassifierConfig(**encoder),
        )
    else:
        model = ModelConfig(**encoder)
        if "decoder" in parts:
            mask_token = _tensor(layout, tensors, "decoder_input.mask_token", path=path)
            decoder_width = _usual(tensors, _NORMS, mask_token.shape[-1], of_decoder=True)
            model = replace(
                model,
                decoder_width=decoder_width,
                decoder_heads=_decoder_heads(decoder_width, told.decoder_heads, path=path),
                decoder_depth=depths["decoder"],
            )
        whole = PretrainConfig(
            data=DataConfig(num_frames=num_frames, crop_size=image_size),
            model=model,
            loss=LossConfig(
                prediction="none", normalize_targets=bool(config.get("norm_pix_loss", True))
            ),
            masking=MaskingConfig(hard_ratio_end=0),
        )
    return Architecture(
        whole,
        parts,
        depths,
        num_classes,
        shape,
        told.mean or IMAGENET_MEAN,
        told.std or IMAGENET_STD,
        tuple(assumed),
    )


def parts_of(layout: Layout, names: Iterable[str]) -> frozenset[Part]:
    """Which parts of a model there are; a head counts only with the norm of a mean over tokens."""
    names = set(names)

    def has(part: Part, ours: str = "") -> bool:
        return any(
            name in names
            for rule in layout.rules
            if rule.part == part and rule.ours[0].startswith(ours) and not rule.is_of_blocks
            for name in rule.theirs
        )

    parts: set[Part] = {"encoder"}
    if has("head", "norm."):
        parts.add("head")
    else:
        parts.add("norm")
        if has("decoder"):
            parts.add("decoder")
    return frozenset(parts)


def _tensor(
    layout: Layout, tensors: Mapping[str, Tensor], ours: str, *, path: str | Path
) -> Tensor:
    name = next(rule.theirs[0] for rule in layout.rules if rule.ours == (ours,))
    if name not in tensors:
        raise ValueError(f"weights ({path}) do not fit: {name} is missing")
    return tensors[name]


def _num_blocks(layout: Layout, tensors: Mapping[str, Tensor], part: Part) -> int:
    """One more than the largest number of a block."""
    rules = [rule for rule in layout.rules if rule.is_of_blocks and rule.part == part]
    if not rules:
        return 0
    before = re.escape(rules[0].theirs[0].split("{}")[0])
    found = [re.match(rf"{before}(\d+)\.", name) for name in tensors]
    return max((int(match[1]) + 1 for match in found if match), default=0)


def _usual(
    tensors: Mapping[str, Tensor], pattern: str, otherwise: int, *, of_decoder: bool = False
) -> int:
    """The length that most tensors of such names, of the encoder or of the decoder, have.

    The most, so that one that is unlike all others is found out to be the wrong one.
    """
    lengths = Counter(
        tensor.shape[0]
        for name, tensor in tensors.items()
        if re.fullmatch(pattern, name) and ("decoder" in name) == of_decoder and tensor.ndim == 1
    )
    return lengths.most_common(1)[0][0] if lengths else otherwise


def _size(
    width: int, found: int, tensors: Mapping[str, Tensor], told: Assumptions, *, path: str | Path
) -> dict[str, Any]:
    """The size of ours, and what is unlike it; ``found`` blocks are in the file."""
    hidden = _usual(tensors, r".*mlp\.fc1\.bias|.*intermediate\.dense\.bias", 4 * width)
    fitting = [n for n, size in SIZES.items() if round(width * size.mlp_ratio) == hidden]
    if not fitting:
        ratios = " or ".join(f"{ratio:.4g}" for ratio in {s.mlp_ratio for s in SIZES.values()})
        raise ValueError(
            f"weights ({path}): found MLPs {hidden} wide at width {width}, expected {ratios} "
            "times that"
        )
    same = [name for name in fitting if SIZES[name].width == width]
    name = (same or [name for name in ("base", "giant") if name in fitting])[0]
    size = SIZES[name]
    if same and told.depth is None and found != size.depth:
        raise ValueError(
            f"weights ({path}): found {found} blocks of the encoder at width {width}, expected "
            f"{size.depth} as {name} has, or to be told depth {found}"
        )
    depth = told.depth or found
    heads = told.heads or (size.heads if same else None)
    if heads is None or width % heads:
        raise ValueError(
            f"weights ({path}): found width {width}, expected to be told heads that divide it "
            f"({heads}): files do not say how many there are"
        )
    result: dict[str, Any] = {"size": name}
    for key, value, usual in (
        ("width", width, size.width), ("depth", depth, size.depth), ("heads", heads, size.heads),
    ):  # fmt: skip
        if value != usual:
            result[key] = value
    return result


def _check_sizes(config: Mapping[str, Any], *, path: str | Path, **found: int) -> None:
    """Refuse settings of a folder that are not those of the tensors beside them."""
    for name, value in found.items():
        if config.get(name, value) != value:
            raise ValueError(
                f"weights ({path}): found {name} {config[name]}, expected {value} as in the tensors"
            )


def _decoder_heads(width: int, heads: int | None, *, path: str | Path) -> int:
    usual = {size.decoder_width: size.decoder_heads for size in SIZES.values()}
    heads = heads or usual.get(width)
    if heads is None or width % heads:
        raise ValueError(
            f"weights ({path}): found a decoder of width {width}, expected to be told "
            f"decoder_heads that divide it ({heads}): files do not say how many there are"
        )
    return heads


def _image_rows(layout: Layout, tensors: Mapping[str, Tensor], *, path: str | Path) -> int:
    """Rows, and columns, of the positions of a square image, the class token's left out."""
    table = _tensor(layout, tensors, "encoder.positions", path=path)
    rows = round(table.shape[1] ** 0.5) if table.ndim == 3 else 0
    if table.ndim != 3 or rows * rows != table.shape[1]:
        raise ValueError(
            f"weights ({path}): found pos_embed {tuple(table.shape)}, expected (1, rows * columns, "
            "D) of a square image, with at most a class token before"
        )
    return rows


def rules_of(layout: Layout, architecture: Architecture) -> list[Rule]:
    """The rules of all parts that are there, block by block."""
    rules = []
    for rule in layout.rules:
        if rule.part not in architecture.parts:
            continue
        if rule.is_of_blocks:
            rules += [rule.of_block(n) for n in range(architecture.depths.get(rule.part, 0))]
        else:
            rules.append(rule)
    return rules
