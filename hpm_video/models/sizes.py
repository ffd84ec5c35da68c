"""Model sizes, and which widths, heads and clips fit each other. Needs no PyTorch."""

from collections.abc import Sequence
from dataclasses import dataclass

from hpm_video.config import EncoderConfig, ModelConfig
from hpm_video.config.limits import multiple

SLOW = 4  # SlowFast's fast pathway has this many times the frames of the slow one
BASELINE_STRIDE = 32  # total spatial stride of baselines, and so their smallest crop


@dataclass(frozen=True)
class Size:
    """Size of an encoder and its decoder, which share the MLP ratio."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int
    mlp_ratio: float = 4.0


# small to huge: VideoMAE. huge_v2 (another decoder) and giant: VideoMAE V2, which shares small to
# large. tiny: ours.
SIZES = {
    "tiny": Size(192, 12, 3, 96, 3),
    "small": Size(384, 12, 6, 192, 3),
    "base": Size(768, 12, 12, 384, 6),
    "large": Size(1024, 24, 16, 512, 8),
    "huge": Size(1280, 32, 16, 640, 8),
    "huge_v2": Size(1280, 32, 16, 512, 8),
    "giant": Size(1408, 40, 16, 512, 8, mlp_ratio=48 / 11),
}


def encoder_size(config: EncoderConfig) -> tuple[int, int]:
    """Width and heads of the encoder; raises ValueError if these do not divide the width."""
    size = SIZES[config.size]
    width, heads = config.width or size.width, config.heads or size.heads
    multiple("model.width", width, "model.heads", heads)
    return width, heads


def decoder_size(config: ModelConfig) -> tuple[int, int]:
    """Width and heads of the decoders; raises ValueError if these do not divide the width."""
    size = SIZES[config.size]
    width = config.decoder_width or size.decoder_width
    heads = config.decoder_heads or size.decoder_heads
    multiple("model.decoder_width", width, "model.decoder_heads", heads)
    return width, heads


def check_layers(layers: Sequence[int], depth: int, *, setting: str = "loss.target_layers") -> None:
    """Raise ValueError if a setting names a block that the model does not have."""
    wrong = [layer for layer in layers if not -depth <= layer < depth]
    if wrong or len({layer % depth for layer in layers}) < len(layers):
        raise ValueError(
            f"{setting} ({list(layers)}) must name blocks from 0 to {depth - 1}, or from "
            f"-{depth} to -1, each once: the model has {depth} blocks"
        )


def heads_of(size: str, heads: int | None) -> int:
    """Attention heads of an encoder: the setting if given, else the size's."""
    return heads or SIZES[size].heads


def decoder_heads_of(size: str, heads: int | None) -> int:
    """Attention heads of a decoder: the setting if given, else the size's."""
    return heads or SIZES[size].decoder_heads


def check_baseline_clip(name: str, *, num_frames: int, crop_size: int) -> None:
    """Raise ValueError for clips that a baseline network cannot take."""
    frames = {"slowfast": SLOW, "mvit": 2}.get(name.split("_", maxsplit=1)[0], 1)
    wrong = ""
    if num_frames % frames:
        wrong = f"data.num_frames ({num_frames}) must be a multiple of {frames}"
    elif crop_size < BASELINE_STRIDE:
        wrong = f"data.crop_size ({crop_size}) must be at least {BASELINE_STRIDE}"
    elif name.startswith("mvit") and crop_size % 4:
        wrong = f"data.crop_size ({crop_size}) must be a multiple of 4"
    if wrong:
        raise ValueError(f"{wrong} with model.name={name}")
