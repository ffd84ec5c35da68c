"""Model sizes, and building models from settings."""

from typing import overload

from torch import nn

from hpm_video.config import (
    ClassifierConfig,
    EncoderConfig,
    FinetuneConfig,
    ModelConfig,
    PretrainConfig,
)
from hpm_video.models.baselines import Baseline
from hpm_video.models.classifier import Classifier
from hpm_video.models.grid import TokenShape
from hpm_video.models.hpm import HPM, HPMOutput
from hpm_video.models.sizes import SIZES, check_layers, decoder_size, encoder_size
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import ViTSize, init_linear

__all__ = ["HPM", "Baseline", "Classifier", "HPMOutput", "build_classifier", "build_model"]

DROP_PATH = 0.1  # default of model.drop_path for transformer classifiers


@overload
def build(
    config: PretrainConfig, *, num_classes: int = ..., trained_grid: TokenGrid | None = ...
) -> HPM: ...
@overload
def build(
    config: FinetuneConfig, *, num_classes: int, trained_grid: TokenGrid | None = ...
) -> Classifier | Baseline: ...
def build(
    config: PretrainConfig | FinetuneConfig,
    *,
    num_classes: int = 0,
    trained_grid: TokenGrid | None = None,
) -> HPM | Classifier | Baseline:
    """Build the model that a run's settings describe.

    ``trained_grid``: grid of the weights that will be loaded, if it differs. ``num_classes``: for
    fine-tuning.
    """
    model, data = config.model, config.data
    if isinstance(config, PretrainConfig):
        grid = token_grid(model, num_frames=data.num_frames, crop_size=data.crop_size)
        return build_model(
            config.model,
            grid,
            predict_loss=config.loss.prediction != "none",
            outputs=_target_outputs(config),
            trained_grid=trained_grid,
        )
    classifier = build_classifier(
        config.model,
        num_frames=data.num_frames,
        crop_size=data.crop_size,
        num_classes=num_classes,
        trained_grid=trained_grid,
    )
    classifier.several_labels = config.data.labels.are_several
    return classifier


def build_model(
    config: ModelConfig,
    grid: TokenGrid,
    *,
    predict_loss: bool,
    outputs: int | None = None,
    trained_grid: TokenGrid | None = None,
) -> HPM:
    """Build a pre-training model; without ``predict_loss`` it is plain VideoMAE.

    ``outputs``: reconstructed values per token, if not pixels. ``trained_grid``: grid of the
    weights that will be loaded, if it differs.
    """
    size, encoder = SIZES[config.size], _encoder_size(config, config.drop_path)
    width, heads = decoder_size(config)
    model = HPM(
        grid,
        encoder,
        decoder_width=width,
        decoder_heads=heads,
        decoder_depth=config.decoder_depth,
        decoder_mlp_ratio=config.decoder_mlp_ratio or size.mlp_ratio,
        predictor_input=config.predictor_input if predict_loss else None,
        predictor_depth=config.predictor_depth,
        outputs=outputs,
        trained_grid=trained_grid,
    )
    if config.first_weights != "videomae":
        model.apply(init_linear)
        nn.init.trunc_normal_(model.decoder_input.mask_token, std=0.02)
    if config.first_weights == "xavier":
        model.start_heads_small()
    return model


def _target_outputs(config: PretrainConfig) -> int | None:
    """Reconstructed values per token for feature targets; None for pixels."""
    loss, size = config.loss, _encoder_size(config.model, 0.0)
    if loss.target == "pixels":
        return None
    width = loss.target_width
    if loss.target == "ema":
        check_layers(loss.target_layers, size.depth)
        width = size.width
    if width is None:
        raise ValueError(
            "loss.target_width (null) must be set to build a model with loss.target=frozen; set it "
            f"to the width of loss.target_model ({loss.target_model})"
        )
    return len(loss.target_layers) * width


def build_classifier(
    config: ClassifierConfig,
    *,
    num_frames: int,
    crop_size: int,
    num_classes: int,
    trained_grid: TokenGrid | None = None,
    kind: type[Classifier] = Classifier,
) -> Classifier | Baseline:
    """Build a fine-tuning model for clips of num_frames frames of crop_size x crop_size pixels.

    ``trained_grid``: grid of the weights that will be loaded, if it differs (VideoMAE only).
    ``kind``: class of the model, unless it is a baseline.
    """
    drop_path = DROP_PATH if config.drop_path is None else config.drop_path
    if config.name != "videomae":
        return Baseline(
            config.name,
            num_frames=num_frames,
            crop_size=crop_size,
            num_classes=num_classes,
            head_dropout=config.head_dropout,
            drop_path=drop_path,
        )
    return kind(
        token_grid(config, num_frames=num_frames, crop_size=crop_size),
        _encoder_size(config, drop_path),
        num_classes=num_classes,
        head_dropout=config.head_dropout,
        trained_grid=trained_grid,
        pooling=config.pooling,
        head_float32=config.head_float32,
    )


def _encoder_size(config: EncoderConfig, drop_path: float) -> ViTSize:
    size = SIZES[config.size]
    width, heads = encoder_size(config)
    return ViTSize(
        tubelet_size=config.tubelet_size,
        patch_size=config.patch_size,
        width=width,
        depth=config.depth or size.depth,
        heads=heads,
        mlp_ratio=size.mlp_ratio,
        drop_path=drop_path,
        stored_positions=config.positions == "stored",
    )


def size_of_blocks(config: EncoderConfig) -> tuple[int, int]:
    """Number of transformer blocks and, approximately, of their parameters.

    A block has (4 + 2 * MLP ratio) * width^2 parameters. Baselines return (0, 0).
    """
    size = SIZES[config.size]
    if isinstance(config, ClassifierConfig) and config.name != "videomae":
        return 0, 0
    parts = [(config.depth or size.depth, config.width or size.width, size.mlp_ratio)]
    if isinstance(config, ModelConfig):
        width = config.decoder_width or size.decoder_width
        predictors = 2 if config.predictor_input == "both" else 1
        ratio = config.decoder_mlp_ratio or size.mlp_ratio
        parts += [(config.decoder_depth, width, ratio)]
        parts += [(config.predictor_depth, width, ratio)] * predictors
    blocks = sum(depth for depth, _, _ in parts)
    return blocks, round(sum((4 + 2 * ratio) * depth * width**2 for depth, width, ratio in parts))


def size_of_target(config: PretrainConfig) -> int:
    """Number of weights of the head that reconstructs features; 0 for pixel targets."""
    model, loss = config.model, config.loss
    if loss.target == "pixels":
        return 0
    width = loss.target_width or model.width or SIZES[model.size].width
    decoder_width = model.decoder_width or SIZES[model.size].decoder_width
    return len(loss.target_layers) * width * decoder_width


def token_grid(config: EncoderConfig, *, num_frames: int, crop_size: int) -> TokenGrid:
    """Token grid of these settings; raises ValueError if clips do not divide evenly."""
    shape = TokenShape(config.tubelet_size, config.patch_size)
    return shape.grid(num_frames=num_frames, crop_size=crop_size)
