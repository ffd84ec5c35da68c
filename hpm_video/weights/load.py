"""Models out of checkpoints: the encoder, or the whole classifier, on other clips if asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpm_video.config import ClipConfig, DataConfig, FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_from_dict
from hpm_video.models.build import Baseline, Classifier, build_classifier, build_model, token_grid
from hpm_video.models.resample import fit_tokens
from hpm_video.models.vit import Encoder, position_table
from hpm_video.weights.checkpoint import (
    load_checkpoint,
    load_encoder,
    load_weights,
    tokens_of,
    trained_grid,
)


def load_classifier(
    checkpoint: str | Path, clip: ClipConfig | None = None
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    """The model of a fine-tuning checkpoint, its settings, and its class names if known.

    ``clip``: clips and tokens if not as in training; the settings then have them too.
    """
    return classifier_of(load_checkpoint(checkpoint, kind="finetune"), source=checkpoint, clip=clip)


def classifier_of(
    state: Mapping[str, Any], *, source: str | Path, clip: ClipConfig | None = None
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    """As `load_classifier`, of a checkpoint that has been read."""
    config = config_from_dict(FinetuneConfig, state["config"])
    if clip is not None:
        data, model_config = clip.of(config.data, config.model)
        config = replace(config, data=data, model=model_config)
    model = build_classifier(
        config.model,
        num_frames=config.data.num_frames,
        crop_size=config.data.crop_size,
        num_classes=state["num_classes"],
        trained_grid=trained_grid(state),
    )
    weights = state["model"]
    if isinstance(model, Classifier):
        weights = fit_tokens(weights, "encoder.", tokens_of(state), model.encoder.tokens)
    load_weights(model, weights, source=source)
    return model, config, state["classes"]


def encoder_of(
    state: Mapping[str, Any], *, source: str | Path, clip: ClipConfig | None = None
) -> tuple[Encoder, DataConfig]:
    """The encoder of a checkpoint that holds at least that, and how its clips are sampled.

    ``clip`` as in `load_backbone`. Raises ValueError when the weights do not fit, or are of a
    baseline.
    """
    clip, trained = clip or ClipConfig(), trained_grid(state)
    data: DataConfig
    if state["kind"] == "pretrain":
        pretrain = config_from_dict(PretrainConfig, state["config"])
        data, model = clip.of(pretrain.data, pretrain.model)
        grid = token_grid(model, num_frames=data.num_frames, crop_size=data.crop_size)
        encoder = build_model(model, grid, predict_loss=False).encoder
        encoder.positions = position_table(grid, encoder.width, trained_grid=trained)
    else:
        finetune = config_from_dict(FinetuneConfig, state["config"])
        data, classifier_config = clip.of(finetune.data, finetune.model)
        classifier = build_classifier(
            classifier_config,
            num_frames=data.num_frames,
            crop_size=data.crop_size,
            num_classes=1,  # the head is not asked
            trained_grid=trained,
        )
        if not isinstance(classifier, Classifier):
            raise ValueError(
                f"checkpoint ({source}) is of the baseline {finetune.model.name}: features, probes "
                "and exports of an encoder need one of VideoMAE's kind"
            )
        encoder = classifier.encoder
    load_encoder(encoder, state, source=source)
    return encoder, data
