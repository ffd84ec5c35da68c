"""Weight formats of other projects as conversion rules, and their detection from tensor names.

Official VideoMAE and VideoMAE V2 use the same names. Image MAE, image HPM and timm's vision
transformers share the names of the encoder.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import Tensor

from hpm_video.weights.foreign.rules import (
    CONVOLUTION,
    IMAGE_CONVOLUTION,
    IMAGE_POSITIONS,
    THREE_BIASES,
    THREE_MATRICES,
    Change,
    Part,
    Rule,
    placed,
    renamed,
)
from hpm_video.weights.foreign.weight_files import Source
from hpm_video.weights.misfits import refusal

_LAYERS = ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
_QKV = "attn.qkv.weight"
_BIASES = ("attn.q_bias", "attn.v_bias")

_BLOCK = [*renamed([(name, name) for name in _LAYERS]), Rule("encoder", (_QKV,), (_QKV,))]
_OFFICIAL_BLOCK = [*_BLOCK, *(Rule("encoder", (name,), (name,)) for name in _BIASES)]
_TIMM_BLOCK = [*_BLOCK, Rule("encoder", _BIASES, ("attn.qkv.bias",), THREE_BIASES)]
_HUGGING_FACE_LAYERS = (
    "layernorm_before", "attention.output.dense", "layernorm_after", "intermediate.dense",
    "output.dense",
)  # fmt: skip
_MATRICES = tuple(f"attention.attention.{part}.weight" for part in ("query", "key", "value"))
_HUGGING_FACE_BLOCK = [
    *renamed(zip(_LAYERS, _HUGGING_FACE_LAYERS, strict=True)),
    Rule("encoder", (_QKV,), _MATRICES, THREE_MATRICES),
    Rule("encoder", ("attn.q_bias",), ("attention.attention.q_bias",)),
    Rule("encoder", ("attn.v_bias",), ("attention.attention.v_bias",)),
]


def _encoder(
    prefix: str, embedding: Iterable[Rule], block: list[Rule], stack: str, norm: str
) -> list[Rule]:
    return [
        *placed(embedding, ours="encoder.", theirs=prefix),
        *placed(block, ours="encoder.blocks.{}.", theirs=prefix + stack),
        *renamed([("encoder.norm", prefix + norm)], part="norm"),
    ]


def _embedding(theirs: str, change: Change = CONVOLUTION) -> list[Rule]:
    weight, bias = renamed([("embed", theirs)])
    return [replace(weight, change=change), bias]


def _official(prefix: str) -> list[Rule]:
    return _encoder(prefix, _embedding("patch_embed.proj"), _OFFICIAL_BLOCK, "blocks.{}.", "norm")


def _hugging_face(prefix: str) -> list[Rule]:
    embedding = _embedding("embeddings.patch_embeddings.projection")
    return _encoder(prefix, embedding, _HUGGING_FACE_BLOCK, "encoder.layer.{}.", "layernorm")


def _decoder(block: list[Rule], stack: str) -> list[Rule]:
    outer = renamed([("norm", "norm"), ("head", "head")])
    return [
        Rule("decoder", ("decoder_input.project.weight",), ("encoder_to_decoder.weight",)),
        Rule("decoder", ("decoder_input.mask_token",), ("mask_token",)),
        *placed(outer, ours="reconstructor.", theirs="decoder.", part="decoder"),
        *placed(block, ours="reconstructor.blocks.{}.", theirs=stack, part="decoder"),
    ]


@dataclass(frozen=True, eq=False)
class Layout:
    """A weight format.

    name: value of ``--to``. words: description for messages. unused: patterns of names that have no
    place in our models -> reason. is_image: whether it is for image models.
    """

    name: str
    words: str
    rules: tuple[Rule, ...]
    unused: Mapping[str, str] = field(default_factory=dict)
    is_image: bool = False

    def part_of(self, name: str) -> Part | None:
        """The part of a model to which a tensor name of the format belongs; None if unknown."""
        return self._parts.get(re.sub(r"\.\d+\.", ".{}.", name, count=1))

    def why_unused(self, name: str) -> str | None:
        """Why a tensor of the format has no place in our models; None if unknown."""
        return next((why for key, why in self.unused.items() if re.fullmatch(key, name)), None)

    @cached_property
    def _parts(self) -> dict[str, Part]:
        return {name: rule.part for rule in self.rules for name in rule.theirs}


OFFICIAL_PRETRAINED = Layout(
    "official",
    "official VideoMAE or VideoMAE V2, pre-trained",
    (*_official("encoder."), *_decoder(_OFFICIAL_BLOCK, "decoder.blocks.{}.")),
)
OFFICIAL_FINETUNED = Layout(
    "official",
    "official VideoMAE or VideoMAE V2, fine-tuned or encoder alone",
    (*_official(""), *renamed([("norm", "fc_norm"), ("head", "head")], part="head")),
)
HUGGING_FACE = Layout(
    "huggingface",
    "Hugging Face VideoMAE",
    (
        *_hugging_face("videomae."),
        *_decoder(_HUGGING_FACE_BLOCK, "decoder.decoder_layers.{}."),
        *renamed([("norm", "fc_norm"), ("head", "classifier")], part="head"),
    ),
)
HUGGING_FACE_ENCODER = Layout(
    "huggingface", "Hugging Face VideoMAEModel, encoder alone", tuple(_hugging_face(""))
)
_IMAGE_EMBEDDING = (
    *_embedding("patch_embed.proj", IMAGE_CONVOLUTION),
    Rule("encoder", ("positions",), ("pos_embed",), IMAGE_POSITIONS),
)
IMAGE = Layout(
    "timm",
    "an image transformer: timm, MAE or image HPM",
    (
        *_encoder("", _IMAGE_EMBEDDING, _TIMM_BLOCK, "blocks.{}.", "norm"),
        *renamed([("norm", "fc_norm"), ("head", "head")], part="head"),
    ),
    unused={
        "cls_token": "ours has no class token, so outputs differ slightly from the image model's",
        "mask_token|vis_mask_token|decoder_.*": "of an image decoder",
    },
    is_image=True,
)

LAYOUTS = (OFFICIAL_PRETRAINED, OFFICIAL_FINETUNED, HUGGING_FACE, HUGGING_FACE_ENCODER, IMAGE)

# Prefixes that wrappers add to all names
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_BACKBONE = "backbone."
# Names of q_bias and v_bias in memory (not in files) in recent versions of transformers
_ALIAS = re.compile(r"(?<=attention\.attention\.)(query|value)\.bias\Z")
_LEAST_SHARE = 0.5  # share of the names that must be known for a format to be recognised


@dataclass(frozen=True)
class Recognised:
    """Weights of a known format.

    tensors: with the format's names; positions without the class token's. names: the format's name
    -> name in the file. source: the file's content.
    """

    layout: Layout
    tensors: dict[str, Tensor]
    names: dict[str, str]
    source: Source

    def tensor(self, ours: str) -> Tensor:
        """The tensor that corresponds to one of ours; raises ValueError if it is missing."""
        name = next(rule.theirs[0] for rule in self.layout.rules if rule.ours == (ours,))
        if name not in self.tensors:
            raise ValueError(f"weights ({self.source.path}) do not fit: {name} is missing")
        return self.tensors[name]


def recognise(source: Source) -> Recognised:
    """Find the format that knows most of the tensor names.

    Raises ValueError if none knows enough of them.
    """
    names = {_ALIAS.sub(lambda found: f"{found[1][0]}_bias", n): n for n in source.tensors}
    while prefix := next((p for p in _WRAPPERS if all(n.startswith(p) for n in names)), None):
        names = {name.removeprefix(prefix): there for name, there in names.items()}
    names = {name.removeprefix(_BACKBONE): there for name, there in names.items()}
    if len(names) < len(source.tensors):
        twice = next(n for n in source.tensors if n not in names.values())
        raise refusal(source.path, f"{twice} under two names", "each tensor once")
    _refuse_of_others(names, source)
    known = {
        layout: sum(bool(layout.part_of(name) or layout.why_unused(name)) for name in names)
        for layout in LAYOUTS
    }
    layout = max(known, key=known.__getitem__)
    if not names or known[layout] < _LEAST_SHARE * len(names):
        raise refusal(
            source.path,
            f"{len(names)} tensors such as {', '.join(sorted(names)[:4])}",
            "a checkpoint of hpm-video, or tensor names of VideoMAE (official or Hugging Face), "
            "MAE, HPM or timm",
        )
    tensors = {name: source.tensors[there].detach() for name, there in names.items()}
    table = tensors.get("pos_embed")
    if layout.is_image and "cls_token" in tensors and table is not None and table.ndim == 3:
        places = table.shape[1] - 1
        if round(places**0.5) ** 2 == places:  # those of a square image, after the class token's
            tensors["pos_embed"] = table[:, 1:]
    return Recognised(layout, tensors, names, source)


def _refuse_of_others(names: Mapping[str, str], source: Source) -> None:
    """Raise ValueError for known formats that fit none of our models."""
    kind = source.config.get("model_type", "videomae")
    if kind != "videomae":
        raise ValueError(
            f"weights ({source.path}) are of a Hugging Face model of type {kind}, which cannot be "
            f"imported; if {kind} is supported, hpm-video probe, hpm-video features and "
            "loss.target_model take the folder as it is"
        )
    embedding = source.tensors.get(names.get("patch_embed.proj.weight", ""))
    # V-JEPA has tokens of several frames like VideoMAE, but a bias of k like image models
    if embedding is None or embedding.ndim != 5 or "blocks.0.attn.qkv.bias" not in names:
        return
    if "pos_embed" in names:
        raise ValueError(
            f"weights ({source.path}) are of the first V-JEPA, which neither hpm-video nor "
            "transformers supports; use V-JEPA 2"
        )
    raise ValueError(
        f"weights ({source.path}) are of V-JEPA 2, which cannot be imported; give a Hugging Face "
        "folder, such as hf://facebook/vjepa2-vitl-fpc64-256, to hpm-video probe, hpm-video "
        "features or loss.target_model. convert_vjepa2_to_hf.py from the transformers repository "
        "converts this file to such a folder"
    )
