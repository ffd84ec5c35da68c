"""Weights in the formats of others: names and shapes written down from their public code and files,
and slow models of our own that compute with them.

Small: 4 frames of 32 x 32 pixels in tokens of 2 x 8 x 8, width 32, 2 blocks of 4 heads; a decoder
of width 24, 1 block of 3 heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH, DEPTH, HEADS = 32, 2, 4
DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS = 24, 1, 3
NUM_FRAMES, SIDE, TUBELET, PATCH = 4, 32, 2, 8
NUM_TOKENS = (NUM_FRAMES // TUBELET) * (SIDE // PATCH) ** 2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Weights = dict[str, Tensor]


def drawn(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> Weights:
    """Weights far from any initialisation: every one of them matters."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        small = len(shape) == 1 or "token" in name or "pos" in name
        value = (0.3 if small else 0.12) * torch.randn(shape, generator=generator)
        is_scale = "norm" in name and name.endswith("weight")
        weights[name] = value + 1 if is_scale else value
    return weights


def _block(
    prefix: str, width: int, *, biases: dict[str, int], hidden: int = 0
) -> dict[str, tuple[int, ...]]:
    hidden = hidden or 4 * width
    return {
        f"{prefix}norm1.weight": (width,),
        f"{prefix}norm1.bias": (width,),
        **{f"{prefix}attn.{name}": (times * width,) for name, times in biases.items()},
        f"{prefix}attn.qkv.weight": (3 * width, width),
        f"{prefix}attn.proj.weight": (width, width),
        f"{prefix}attn.proj.bias": (width,),
        f"{prefix}norm2.weight": (width,),
        f"{prefix}norm2.bias": (width,),
        f"{prefix}mlp.fc1.weight": (hidden, width),
        f"{prefix}mlp.fc1.bias": (hidden,),
        f"{prefix}mlp.fc2.weight": (width, hidden),
        f"{prefix}mlp.fc2.bias": (width,),
    }


_VIDEOMAE = {"q_bias": 1, "v_bias": 1}
_IMAGE = {"qkv.bias": 3}


def _layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


@dataclass(frozen=True)
class Official:
    """Sizes of an official model. hidden: width of an MLP between its two layers."""

    width: int
    depth: int
    heads: int
    hidden: int
    decoder_width: int
    decoder_depth: int
    decoder_heads: int
    decoder_hidden: int
    patch: int = 16
    tubelet: int = 2


SMALL = Official(
    WIDTH, DEPTH, HEADS, 4 * WIDTH,
    DECODER_WIDTH, DECODER_DEPTH, DECODER_HEADS, 4 * DECODER_WIDTH, PATCH, TUBELET,
)  # fmt: skip
# Of the released code, with the decoder depth of its scripts: those of Kinetics-400 for small to
# huge of VideoMAE. 6144 and 2234 are 48/11 of 1408 and of 512, rounded down.
RELEASED = {
    "small": Official(384, 12, 6, 1536, 192, 4, 3, 768),
    "base": Official(768, 12, 12, 3072, 384, 4, 6, 1536),
    "large": Official(1024, 24, 16, 4096, 512, 12, 8, 2048),
    "huge": Official(1280, 32, 16, 5120, 640, 12, 8, 2560),
    "large, V2": Official(1024, 24, 16, 4096, 512, 4, 8, 2048),
    "huge, V2": Official(1280, 32, 16, 5120, 512, 4, 8, 2048),
    "giant, V2": Official(1408, 40, 16, 6144, 512, 4, 8, 2234, patch=14),
}


def pretrained_shapes(of: Official) -> dict[str, tuple[int, ...]]:
    """What `run_mae_pretraining` saves, of VideoMAE and of VideoMAE V2: names and shapes."""
    shapes: dict[str, tuple[int, ...]] = {"mask_token": (1, 1, of.decoder_width)}
    shapes |= _layer("encoder.patch_embed.proj", of.width, 3, of.tubelet, of.patch, of.patch)
    for number in range(of.depth):
        prefix = f"encoder.blocks.{number}."
        shapes |= _block(prefix, of.width, biases=_VIDEOMAE, hidden=of.hidden)
    shapes |= _layer("encoder.norm", of.width)
    for number in range(of.decoder_depth):
        prefix = f"decoder.blocks.{number}."
        shapes |= _block(prefix, of.decoder_width, biases=_VIDEOMAE, hidden=of.decoder_hidden)
    shapes |= _layer("decoder.norm", of.decoder_width)
    shapes |= _layer("decoder.head", 3 * of.tubelet * of.patch * of.patch, of.decoder_width)
    shapes["encoder_to_decoder.weight"] = (of.decoder_width, of.width)
    return shapes


def finetuned_shapes(of: Official, num_classes: int) -> dict[str, tuple[int, ...]]:
    """What `run_class_finetuning` saves, with the mean over tokens: names and shapes."""
    shapes = _layer("patch_embed.proj", of.width, 3, of.tubelet, of.patch, of.patch)
    for number in range(of.depth):
        shapes |= _block(f"blocks.{number}.", of.width, biases=_VIDEOMAE, hidden=of.hidden)
    return shapes | _layer("fc_norm", of.width) | _layer("head", num_classes, of.width)


def official_pretrained() -> Weights:
    return drawn(pretrained_shapes(SMALL))


def official_finetuned(num_classes: int = 5) -> Weights:
    return drawn(finetuned_shapes(SMALL, num_classes), seed=1)


def image_mae(*, with_predictor: bool) -> Weights:
    """What image MAE saves; image HPM has a predictor of losses, a second decoder, beside."""
    rows = SIDE // PATCH
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, rows * rows + 1, WIDTH),
        "mask_token": (1, 1, DECODER_WIDTH),
        "decoder_pos_embed": (1, rows * rows + 1, DECODER_WIDTH),
    }
    shapes |= _layer("patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    for number in range(DEPTH):
        shapes |= _block(f"blocks.{number}.", WIDTH, biases=_IMAGE)
    shapes |= _layer("norm", WIDTH) | _layer("decoder_embed", DECODER_WIDTH, WIDTH)
    for end in ("", "_losspred") if with_predictor else ("",):
        shapes |= _block(f"decoder_blocks{end}.0.", DECODER_WIDTH, biases=_IMAGE)
        shapes |= _layer(f"decoder_norm{end}", DECODER_WIDTH)
        shapes |= _layer(f"decoder_pred{end}", 3 * PATCH * PATCH, DECODER_WIDTH)
    return drawn(shapes, seed=2)


def sinusoids(num: int, width: int) -> Tensor:
    """(num, width), number by number."""
    table = torch.zeros(num, width, dtype=torch.float64)
    for position in range(num):
        for column in range(width):
            angle = position / 10000 ** (2 * (column // 2) / width)
            table[position, column] = math.cos(angle) if column % 2 else math.sin(angle)
    return table


def normalised(clips: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) in [0, 1] as ImageNet's mean and deviation make them."""
    shape = (1, 3, 1, 1, 1)
    return (clips - clips.new_tensor(MEAN).view(shape)) / clips.new_tensor(STD).view(shape)


def _norm(x: Tensor, weights: Weights, name: str) -> Tensor:
    variance = x.var(dim=-1, unbiased=False, keepdim=True)
    x = (x - x.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()
    return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def run_block(x: Tensor, weights: Weights, prefix: str, heads: int) -> Tensor:
    """One block in float64, head by head, clip by clip."""
    y = _norm(x, weights, f"{prefix}norm1")
    if f"{prefix}attn.qkv.bias" in weights:
        bias = weights[f"{prefix}attn.qkv.bias"]
    else:
        q, v = weights[f"{prefix}attn.q_bias"], weights[f"{prefix}attn.v_bias"]
        bias = torch.cat([q, 0 * q, v])
    q, k, v = (y @ weights[f"{prefix}attn.qkv.weight"].T + bias).chunk(3, dim=-1)
    width = q.shape[-1] // heads
    result = torch.empty_like(q)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        for clip in range(len(x)):
            scores = q[clip, :, part] @ k[clip, :, part].T / math.sqrt(width)
            result[clip, :, part] = scores.softmax(dim=-1) @ v[clip, :, part]
    x = x + _linear(result, weights, f"{prefix}attn.proj")
    y = _norm(x, weights, f"{prefix}norm2")
    y = _linear(y, weights, f"{prefix}mlp.fc1")
    y = y * 0.5 * (1 + torch.erf(y / math.sqrt(2)))
    return x + _linear(y, weights, f"{prefix}mlp.fc2")


def _tokens(clips: Tensor, weights: Weights, prefix: str) -> Tensor:
    name = f"{prefix}patch_embed.proj"
    kernel = weights[f"{name}.weight"]
    stride = kernel.shape[2:]
    x = F.conv3d(normalised(clips), kernel, weights[f"{name}.bias"], stride=tuple(stride))
    x = x.flatten(2).transpose(1, 2)
    return x + sinusoids(x.shape[1], x.shape[2])


def run_official_finetuned(weights: Weights, clips: Tensor, of: Official = SMALL) -> Tensor:
    """Clips (B, 3, T, H, W) in [0, 1] -> logits."""
    weights = {name: value.double() for name, value in weights.items()}
    x = _tokens(clips.double(), weights, "")
    for number in range(of.depth):
        x = run_block(x, weights, f"blocks.{number}.", of.heads)
    return _linear(_norm(x.mean(dim=1), weights, "fc_norm"), weights, "head").float()


def run_official_pretrained(
    weights: Weights,
    clips: Tensor,
    mask: Tensor,
    decoded: Tensor | None = None,
    of: Official = SMALL,
) -> Tensor:
    """Clips and a mask (B, N) -> pixels of the masked tokens (B, M, P).

    ``decoded`` (B, N): where VideoMAE V2's decoder has mask tokens instead, whatever the encoder
    sees; the pixels are of these.
    """
    decoded = mask if decoded is None else decoded
    weights = {name: value.double() for name, value in weights.items()}
    batch = len(clips)
    x = _tokens(clips.double(), weights, "encoder.")[~mask].view(batch, -1, of.width)
    for number in range(of.depth):
        x = run_block(x, weights, f"encoder.blocks.{number}.", of.heads)
    x = _norm(x, weights, "encoder.norm") @ weights["encoder_to_decoder.weight"].T
    places = sinusoids(mask.shape[1], of.decoder_width).expand(batch, -1, -1)
    visible = x + places[~mask].view(batch, -1, of.decoder_width)
    masked = weights["mask_token"] + places[decoded].view(batch, -1, of.decoder_width)
    x = torch.cat([visible, masked], dim=1)
    for number in range(of.decoder_depth):
        x = run_block(x, weights, f"decoder.blocks.{number}.", of.decoder_heads)
    x = _norm(x[:, visible.shape[1] :], weights, "decoder.norm")
    return _linear(x, weights, "decoder.head").float()


def run_image(weights: Weights, images: Tensor, *, first_position: int = 1) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] -> tokens (B, N, D) of the encoder without its class token."""
    weights = {name: value.double() for name, value in weights.items()}
    pixels = normalised(images.double()[:, :, None])[:, :, 0]
    kernel, bias = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    x = F.conv2d(pixels, kernel, bias, stride=PATCH).flatten(2).transpose(1, 2)
    x = x + weights["pos_embed"][:, first_position:]
    for number in range(DEPTH):
        x = run_block(x, weights, f"blocks.{number}.", HEADS)
    return _norm(x, weights, "norm").float()
