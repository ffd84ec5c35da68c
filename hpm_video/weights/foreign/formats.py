"""The formats of others, as rules. Facts of their released files, written down once.

Official VideoMAE and VideoMAE V2 have the same names. Image MAE, image HPM and timm's vision
transformers share theirs, but for what MAE and HPM reconstruct images with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from hpm_video.weights.foreign.rules import (
    Convolution,
    ImageConvolution,
    ImagePositions,
    Part,
    Rule,
    ThreeBiases,
    ThreeMatrices,
    both,
    placed,
    renamed,
)

_LAYERS = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_QKV = "attn.qkv.weight"
_BIASES = ("attn.q_bias", "attn.v_bias")

_BLOCK = renamed([(name, name) for name in _LAYERS])
_BLOCK.append(Rule("encoder", (_QKV,), (_QKV,)))
_OFFICIAL_BLOCK = [*_BLOCK, *(Rule("encoder", (name,), (name,)) for name in _BIASES)]
_TIMM_BLOCK = [*_BLOCK, Rule("encoder", _BIASES, ("attn.qkv.bias",), ThreeBiases())]
_HUGGING_FACE_BLOCK = [
    *renamed(
        [
            ("norm1", "layernorm_before"),
            ("attn.proj", "attention.output.dense"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]
    ),
    Rule(
        "encoder",
        (_QKV,),
        tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value")),
        ThreeMatrices(),
    ),
    *(
        Rule("encoder", (mine,), (f"attention.attention.{mine.removeprefix('attn.')}",))
        for mine in _BIASES
    ),
]


def _embedding(theirs: str, change: Convolution | ImageConvolution) -> list[Rule]:
    return [
        Rule("encoder", ("encoder.embed.weight",), (f"{theirs}.weight",), change),
        Rule("encoder", ("encoder.embed.bias",), (f"{theirs}.bias",)),
    ]


def _official(prefix: str) -> list[Rule]:
    return [
        *_embedding(f"{prefix}patch_embed.proj", Convolution()),
        *placed(_OFFICIAL_BLOCK, ours="encoder.blocks.{}.", theirs=f"{prefix}blocks.{{}}."),
        *renamed([("encoder.norm", f"{prefix}norm")], part="norm"),
    ]


def _hugging_face(prefix: str) -> list[Rule]:
    return [
        *_embedding(f"{prefix}embeddings.patch_embeddings.projection", Convolution()),
        *placed(
            _HUGGING_FACE_BLOCK, ours="encoder.blocks.{}.", theirs=f"{prefix}encoder.layer.{{}}."
        ),
        *renamed([("encoder.norm", f"{prefix}layernorm")], part="norm"),
    ]


_BRIDGE = [
    Rule("decoder", ("decoder_input.project.weight",), ("encoder_to_decoder.weight",)),
    Rule("decoder", ("decoder_input.mask_token",), ("mask_token",)),
    *renamed([("norm", "norm"), ("head", "head")], ours="reconstructor.", theirs="decoder.",
             part="decoder"),
]  # fmt: skip

_NOT_OURS = "of a decoder of images"


@dataclass(frozen=True, eq=False)
class Layout:
    """A format.

    name: for ``--to`` and in words. unused: patterns of names whose tensors have no place in our
    models, and why that is so. is_image: whether it is of images.
    """

    name: str
    words: str
    rules: tuple[Rule, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    is_image: bool = False

    def knows(self, name: str) -> bool:
        """Whether a name of theirs has a meaning here."""
        return bool(self._names.fullmatch(name)) or self.why_unused(name) is not None

    def part_of(self, name: str) -> Part | None:
        """The part of a model that a name of theirs belongs to, if it has a meaning here."""
        for rule in self.rules:
            for one in rule.theirs:
                if re.fullmatch(re.escape(one).replace(r"\{\}", r"\d+"), name):
                    return rule.part
        return None

    def why_unused(self, name: str) -> str | None:
        """Why a tensor of theirs has no place in our models, if that is known."""
        return next((why for key, why in self.unused.items() if re.fullmatch(key, name)), None)

    @cached_property
    def _names(self) -> re.Pattern[str]:
        names = (re.escape(name) for rule in self.rules for name in rule.theirs)
        return re.compile("|".join(names).replace(r"\{\}", r"\d+"))


OFFICIAL_PRETRAINED = Layout(
    "official",
    "official VideoMAE or VideoMAE V2, pre-trained",
    (
        *_official("encoder."),
        *_BRIDGE,
        *placed(
            _OFFICIAL_BLOCK,
            ours="reconstructor.blocks.{}.",
            theirs="decoder.blocks.{}.",
            part="decoder",
        ),
    ),
)
OFFICIAL_FINETUNED = Layout(
    "official",
    "official VideoMAE or VideoMAE V2, fine-tuned or encoder alone",
    (
        *_official(""),
        *renamed([("norm", "fc_norm")], part="head"),
        *both("head", part="head"),
    ),
)
HUGGING_FACE = Layout(
    "huggingface",
    "Hugging Face VideoMAE",
    (
        *_hugging_face("videomae."),
        *_BRIDGE,
        *placed(
            _HUGGING_FACE_BLOCK,
            ours="reconstructor.blocks.{}.",
            theirs="decoder.decoder_layers.{}.",
            part="decoder",
        ),
        *renamed([("norm", "fc_norm"), ("head", "classifier")], part="head"),
    ),
)
HUGGING_FACE_ENCODER = Layout(
    "huggingface", "Hugging Face VideoMAEModel, encoder alone", tuple(_hugging_face(""))
)
IMAGE = Layout(
    "timm",
    "an image transformer: timm, MAE or image HPM",
    (
        *_embedding("patch_embed.proj", ImageConvolution()),
        Rule("encoder", ("encoder.positions",), ("pos_embed",), ImagePositions()),
        *placed(_TIMM_BLOCK, ours="encoder.blocks.{}.", theirs="blocks.{}."),
        *renamed([("encoder.norm", "norm")], part="norm"),
        *renamed([("norm", "fc_norm")], part="head"),
        *both("head", part="head"),
    ),
    unused={
        "cls_token": "the encoder has no class token, so that outputs are not quite the image's",
        "mask_token|vis_mask_token|decoder_.*": _NOT_OURS,
    },
    is_image=True,
)

LAYOUTS = (OFFICIAL_PRETRAINED, OFFICIAL_FINETUNED, HUGGING_FACE, HUGGING_FACE_ENCODER, IMAGE)
