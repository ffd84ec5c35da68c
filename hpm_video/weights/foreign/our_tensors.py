"""Checkpoints of ours: whether their tensors are those of the model of their settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_from_dict
from hpm_video.models.build import build_classifier, build_model, token_grid
from hpm_video.weights.foreign.account import Row, is_allowed, is_finite, misfit, shown

_ENCODER = "encoder."


def account_of(
    state: Mapping[str, Any],
    *,
    source: str | Path,
    allow_missing: Sequence[str] = (),
    encoder_only: bool = False,
) -> list[Row]:
    """What is in a checkpoint of ours, tensor by tensor: the whole model, or its encoder alone.

    What ``allow_missing`` names may be missing, unknown or of another shape. ``encoder_only``: all
    else than the encoder does not matter.

    Raises ValueError in one line where anything else does not fit the settings, or is not finite.
    """
    weights, expected = state["model"], _expected(state, source=source)
    if encoder_only or all(name.startswith(_ENCODER) for name in weights):
        expected = {name: t for name, t in expected.items() if name.startswith(_ENCODER)}
    rows: list[Row] = []
    misfits: list[str] = []
    for name, tensor in weights.items():
        shape = tuple(tensor.shape)
        if encoder_only and not name.startswith(_ENCODER):
            rows.append(Row(name, "", "unused", shape, "not of the encoder"))
            continue
        why = misfit(tensor, expected[name]) if name in expected else "is unknown"
        if not why:
            rows.append(Row(name, name, "loaded", shape))
            if not is_finite(tensor):
                misfits.append(f"{name} holds numbers that are not finite")
        elif is_allowed(allow_missing, name):
            rows.append(Row(name, "", "unused", shape, f"{why}; allowed"))
        else:
            misfits.append(f"{name} {why}")
    there = {row.ours for row in rows}
    for name, wanted in expected.items():
        if name in there:
            continue
        if is_allowed(allow_missing, name):
            rows.append(Row("", name, "initialised", tuple(wanted.shape), "is missing"))
        elif name not in weights:
            misfits.append(f"{name} is missing")
    if misfits:
        raise ValueError(
            f"weights ({source}) do not fit the model of their own settings: {shown(misfits)}"
        )
    return rows


def completed(state: dict[str, Any], rows: Sequence[Row], *, fill: bool) -> dict[str, Any]:
    """The checkpoint with what `account_of` let through: what is unused left out, and with ``fill``
    what is missing at its first values."""
    weights = {row.ours: state["model"][row.theirs] for row in rows if row.status == "loaded"}
    if fill:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = _build(state).state_dict()
        weights |= {row.ours: fresh[row.ours] for row in rows if row.status == "initialised"}
    return {**state, "model": weights}


def _expected(state: Mapping[str, Any], *, source: str | Path) -> dict[str, Tensor]:
    """The tensors of the model of its settings, without numbers."""
    try:
        with torch.device("meta"):
            return dict(_build(state).state_dict())
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # of settings that are none
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"weights ({source}): found settings of no model ({reason}), expected a checkpoint of "
            "hpm-video"
        ) from error


def _build(state: Mapping[str, Any]) -> nn.Module:
    if state["kind"] == "pretrain":
        config = config_from_dict(PretrainConfig, state["config"])
        data = config.data
        grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
        predict_loss = config.loss.prediction != "none"
        return build_model(config.model, grid, predict_loss=predict_loss)
    if state["kind"] != "finetune":
        raise ValueError(f"kind {state['kind']}")
    finetune = config_from_dict(FinetuneConfig, state["config"])
    classes = state.get("classes")
    if classes is not None and len(classes) != state["num_classes"]:
        raise ValueError(f"{len(classes)} names of {state['num_classes']} classes")
    return build_classifier(
        finetune.model,
        num_frames=finetune.data.num_frames,
        crop_size=finetune.data.crop_size,
        num_classes=state["num_classes"],
    )
