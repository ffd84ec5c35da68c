"""Build an encoder or a classifier from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hpm_video.config import (
    ClipConfig,
    DataConfig,
    FinetuneConfig,
    LabelsConfig,
    PretrainConfig,
)
from hpm_video.models.build import Baseline, Classifier, build, build_model, token_grid
from hpm_video.models.resample import fit_tokens
from hpm_video.models.vit import Encoder, LayerNorm, position_table
from hpm_video.weights.checkpoint import (
    load_checkpoint,
    load_encoder,
    load_weights,
    settings_of,
    tokens_of,
    trained_grid,
    under,
)


def load_classifier(
    checkpoint: str | Path, clip: ClipConfig | None = None
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    """The model of a fine-tuning checkpoint, its settings, and its class names if known.

    ``clip``: clips and tokens that replace those of training, also in the returned settings.
    """
    return classifier_of(load_checkpoint(checkpoint, kind="finetune"), source=checkpoint, clip=clip)


def classifier_of(
    state: Mapping[str, Any], *, source: str | Path, clip: ClipConfig | None = None
) -> tuple[Classifier | Baseline, FinetuneConfig, list[str] | None]:
    """Like `load_classifier`, for a checkpoint that has been read."""
    config = _settings(state, clip)
    assert isinstance(config, FinetuneConfig)
    model = build(config, num_classes=state["num_classes"], trained_grid=trained_grid(state))
    weights = state["model"]
    if isinstance(model, Classifier):
        weights = fit_tokens(weights, "encoder.", tokens_of(state), model.encoder.tokens)
    load_weights(model, weights, source=source)
    return model, config, state["classes"]


@dataclass(frozen=True)
class StoredLists:
    """A run's labelled lists for training and validation, as given in its settings.

    root: folder to which relative paths refer. labels: how the lists give several labels per video.
    """

    train: list[str]
    val: list[str]
    root: str | None
    labels: LabelsConfig


def lists_of(checkpoint: str | Path) -> StoredLists:
    """Like `lists_in`, for a path."""
    return lists_in(load_checkpoint(checkpoint))


def lists_in(state: Mapping[str, Any]) -> StoredLists:
    """The labelled lists in a checkpoint's settings; empty if there are none.

    These are the run's own for fine-tuning, and those of its probes for pre-training.
    """
    config = settings_of(state)
    if isinstance(config, FinetuneConfig):
        data = config.data
        return StoredLists(data.manifest, data.val_manifest, data.root, data.labels)
    probe = config.probe
    return StoredLists(probe.train_manifest, probe.val_manifest, config.data.root, probe.labels)


def encoder_of(
    state: Mapping[str, Any], *, source: str | Path, clip: ClipConfig | None = None
) -> tuple[Encoder, DataConfig]:
    """The encoder of a checkpoint and its data settings, which say how clips are sampled.

    ``clip``: see `load_classifier`. Raises ValueError if the weights do not fit or are of a
    baseline.
    """
    config, trained = _settings(state, clip), trained_grid(state)
    if isinstance(config, PretrainConfig):
        data = config.data
        grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
        encoder = build_model(config.model, grid, predict_loss=False).encoder
        encoder.positions = position_table(grid, encoder.width, trained_grid=trained)
    else:
        classifier = build(config, num_classes=1, trained_grid=trained)  # the head is not used
        if not isinstance(classifier, Classifier):
            raise ValueError(
                f"checkpoint ({source}) must hold a VideoMAE model for features, probes and "
                f"encoder exports, not the baseline {config.model.name}"
            )
        encoder = classifier.encoder
    load_encoder(encoder, state, source=source)
    return encoder, config.data


def pooling_norm_of(state: Mapping[str, Any], width: int, *, source: str | Path) -> nn.Module:
    """The norm to apply after the mean over tokens of width D: that before a classifier's head.

    It is the identity if the encoder ends with its own norm (pre-training or
    model.pooling=norm_mean), and for encoders exported alone.
    """
    config = settings_of(state)
    has_own = isinstance(config, PretrainConfig) or config.model.pooling == "norm_mean"
    if has_own or all(name.startswith("encoder.") for name in state["model"]):
        return nn.Identity()
    norm = LayerNorm(width)
    load_weights(norm, under(state["model"], "norm."), source=source)
    return norm


def _settings(state: Mapping[str, Any], clip: ClipConfig | None) -> PretrainConfig | FinetuneConfig:
    """The settings of a checkpoint, changed for other clips if given."""
    config = settings_of(state)
    if clip is not None:
        data, model = clip.of(config.data, config.model)
        changed: dict[str, Any] = {"data": data, "model": model}
        config = replace(config, **changed)
    return config
