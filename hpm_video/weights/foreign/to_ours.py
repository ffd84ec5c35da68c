"""Imports weights of any origin as a checkpoint of ours, with an account of every tensor."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.models.build import build
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.weights.checkpoint import settings_of
from hpm_video.weights.foreign.account import Imported, Row, Status
from hpm_video.weights.foreign.architecture import Architecture, Assumptions, architecture_of
from hpm_video.weights.foreign.formats import Layout, Recognised, recognise
from hpm_video.weights.foreign.weight_files import Source, read_weights
from hpm_video.weights.misfits import is_allowed, is_finite, misfits, refusal, refuse

_ENCODER = "encoder."


def import_weights(
    path: str | Path | Source,
    *,
    assumptions: Assumptions | None = None,
    allow_missing: Sequence[str] = (),
    container: str | None = None,
    fill: bool = True,
    encoder_only: bool = False,
) -> Imported:
    """Import weights of any origin; ``path`` may also be a `Source` that has been read.

    ``allow_missing``: patterns of names, ours or theirs, that may be missing, unknown or of another
    shape. ``fill``: initialise missing tensors with a fixed seed; otherwise leave them out.
    ``encoder_only``: import the encoder only, whatever else there is.

    Raises FileNotFoundError, or ValueError, one line, for unreadable or unknown formats, and for
    tensors that are missing, unknown or of another shape.
    """
    source = path if isinstance(path, Source) else read_weights(path, container=container)
    architecture: Architecture | None = None
    make: Callable[[], nn.Module]
    if source.state is not None:
        rows = account_of(
            source.state, source=source.path, allow_missing=allow_missing, encoder_only=encoder_only
        )
        loaded = [row.ours for row in rows if row.status == "loaded"]
        weights = {name: source.state["model"][name] for name in loaded}
        state, make = source.state, partial(_build_own, source.state)
        words = f"hpm_video, {state['kind']}, step {state['step']}"
    else:
        found = recognise(source)
        architecture = architecture_of(
            found, assumptions or Assumptions(), encoder_only=encoder_only
        )
        weights, rows = _convert(found, architecture, allow_missing)
        weights = _folded(weights, architecture)
        state, make = _state(architecture, source), architecture.build
        words = found.layout.words
    if fill:
        weights |= _first_values(rows, make)
    return Imported({**state, "model": weights}, tuple(rows), words, source, architecture)


def account_of(
    state: Mapping[str, Any],
    *,
    source: str | Path,
    allow_missing: Sequence[str] = (),
    encoder_only: bool = False,
) -> list[Row]:
    """Check one of our checkpoints, a whole model or an encoder, tensor by tensor.

    ``allow_missing``: patterns of names that may be missing, unknown or of another shape.
    ``encoder_only``: ignore all tensors outside the encoder.

    Raises ValueError, one line, if anything else does not fit the settings or is not finite.
    """
    weights, expected = state["model"], _expected(state, source=source)
    if encoder_only or all(name.startswith(_ENCODER) for name in weights):
        expected = {name: t for name, t in expected.items() if name.startswith(_ENCODER)}
    others = {name for name in weights if encoder_only and not name.startswith(_ENCODER)}
    wrong = misfits({name: t for name, t in weights.items() if name not in others}, expected)
    refused = [f"{n} {why}" for n, why in wrong.items() if not is_allowed(allow_missing, n)]
    rows: list[Row] = []
    for name, tensor in weights.items():
        if name in others or name in wrong:
            note = "not in the encoder" if name in others else f"{wrong[name]}; allowed"
            rows.append(Row(name, "", "unused", tuple(tensor.shape), note))
            continue
        rows.append(Row(name, name, "loaded", tuple(tensor.shape)))
        if not is_finite(tensor):
            refused.append(f"{name} has values that are not finite")
    rows += [
        Row("", name, "initialised", tuple(like.shape), "is missing")
        for name, like in expected.items()
        if name in wrong
    ]
    refuse(refused, f"weights ({source}) do not fit the model that their own settings describe")
    return rows


def _expected(state: Mapping[str, Any], *, source: str | Path) -> dict[str, Tensor]:
    """The state dict of the model that the settings describe, on the meta device."""
    try:
        with torch.device("meta"):
            return dict(_build_own(state).state_dict())
    except (ValueError, TypeError, KeyError, AttributeError) as error:  # invalid settings
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        wanted = "a checkpoint of hpm-video"
        raise refusal(source, f"invalid settings ({reason})", wanted) from error


def _build_own(state: Mapping[str, Any]) -> nn.Module:
    config, classes = settings_of(state), state.get("classes")
    num_classes = state["num_classes"] if isinstance(config, FinetuneConfig) else 0
    if classes is not None and len(classes) != num_classes:
        raise ValueError(f"{len(classes)} names for {num_classes} classes")
    return build(config, num_classes=num_classes or 1)  # an encoder exported alone has 0


def _convert(
    found: Recognised, architecture: Architecture, allow_missing: Sequence[str]
) -> tuple[dict[str, Tensor], list[Row]]:
    """Our tensors, and the account of theirs."""
    layout, tensors, names = found.layout, found.tensors, found.names
    with torch.device("meta"):
        expected = architecture.build().state_dict()
    weights: dict[str, Tensor] = {}
    rows: list[Row] = []
    refused: list[str] = []
    for rule in architecture.rules:
        there = {name: tensors[name] for name in rule.theirs if name in tensors}
        like = rule.change.to_theirs([expected[name] for name in rule.ours], architecture.shape)
        if wrong := misfits(there, dict(zip(rule.theirs, like, strict=True))):
            refused += [
                f"{names.get(name, name)} {why}"
                for name, why in wrong.items()
                if not is_allowed(allow_missing, name, names.get(name, ""), *rule.ours)
            ]
            why = "; ".join(f"{name} {word}" for name, word in wrong.items())
            rows += [Row("", o, "initialised", tuple(expected[o].shape), why) for o in rule.ours]
            for name, tensor in there.items():
                note = "allowed" if name in wrong else f"unusable without {', '.join(wrong)}"
                rows.append(Row(names[name], "", "unused", tuple(tensor.shape), note))
            continue
        theirs = [tensor.float() for tensor in there.values()]
        ours = rule.change.to_ours(theirs, architecture.shape)
        weights |= {n: v.contiguous().clone() for n, v in zip(rule.ours, ours, strict=True)}
        called = ", ".join(names[name] for name in rule.theirs)
        if not all(map(is_finite, theirs)):
            refused.append(f"{called} has values that are not finite")
        dtype = str(tensors[rule.theirs[0]].dtype).removeprefix("torch.")
        notes = [rule.change.note, f"was {dtype}" if dtype != "float32" else ""]
        for name in rule.ours:
            status: Status = "loaded" if name == called else "renamed"
            note = "; ".join(filter(None, notes))
            rows.append(Row(called, name, status, tuple(weights[name].shape), note))
    used = {name for rule in architecture.rules for name in rule.theirs}
    for name in [name for name in tensors if name not in used]:
        reason = _why_unused(layout, name, architecture)
        if reason is None and not is_allowed(allow_missing, name, names[name]):
            refused.append(f"{names[name]} is unknown")
        shape = tuple(tensors[name].shape)
        rows.append(Row(names[name], "", "unused", shape, reason or "unknown, allowed"))
    refuse(refused, f"weights ({found.source.path}) do not fit {layout.words}")
    order = {name: place for place, name in enumerate(names.values())}
    rows.sort(key=lambda row: order.get(row.theirs.split(", ")[0], len(order)))
    return weights, rows


def _first_values(rows: Sequence[Row], make: Callable[[], nn.Module]) -> dict[str, Tensor]:
    """Initial values, with a fixed seed, for the rows that are marked as initialised."""
    names = [row.ours for row in rows if row.status == "initialised"]
    if not names:
        return {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        fresh = make().state_dict()
    return {name: fresh[name] for name in names}


def _why_unused(layout: Layout, name: str, architecture: Architecture) -> str | None:
    part = layout.part_of(name)
    if part is None or part in architecture.parts:
        return layout.why_unused(name)
    if part == "head" and "norm" in architecture.parts:
        return "of a classifier that reads one token: ours reads the mean of all tokens"
    return f"of the {part}"


def _folded(weights: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """Fold another normalisation of pixels into the patch embedding, so that ours gives the same.

    w (x - m') / s' + b = w s / s' (x - m) / s + b + w (m - m') / s'
    """
    both = ((IMAGENET_MEAN, IMAGENET_STD), (architecture.mean, architecture.std))
    if both[0] == both[1]:
        return weights
    ours, theirs = torch.tensor(both, dtype=torch.float64).unbind()
    if missing := {"encoder.embed.weight", "encoder.embed.bias"} - weights.keys():
        raise ValueError(
            f"weights must have {' and '.join(sorted(missing))} for a mean and std other than "
            "ImageNet's"
        )
    weight = weights["encoder.embed.weight"].double().unflatten(1, (-1, 3))
    bias = weights["encoder.embed.bias"].double()
    bias = bias + (weight * (ours[0] - theirs[0]) / theirs[1]).sum(dim=(1, 2))
    weight = (weight * ours[1] / theirs[1]).flatten(1)
    return weights | {"encoder.embed.weight": weight.float(), "encoder.embed.bias": bias.float()}


def _state(architecture: Architecture, source: Source) -> dict[str, Any]:
    """A checkpoint of ours, still without weights."""
    config, grid = architecture.config, architecture.shape.grid
    kind = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
    state = {"kind": kind, "config": config_to_dict(config), "step": 0, "model": {}}
    if kind == "finetune":
        state |= {
            "num_classes": architecture.num_classes,
            "classes": _classes(source.config, architecture.num_classes, path=source.path),
            "trained_grid": [grid.time, grid.height, grid.width],
        }
    return state


def _classes(config: Mapping[str, Any], num_classes: int, *, path: Path) -> list[str] | None:
    """Class names in the settings of a Hugging Face folder; None if there are only defaults."""
    names = config.get("id2label") if num_classes else None
    names = names or {}
    if not isinstance(names, Mapping):
        raise refusal(path, f"id2label of type {type(names).__name__}", "{number: name}")
    classes = [str(name) for name in names.values()]
    if all(name.startswith("LABEL_") for name in classes):  # default names of transformers
        return None
    if names.keys() != set(map(str, range(num_classes))):
        wanted = f"names for the classes 0 to {num_classes - 1}"
        raise refusal(path, f"{len(names)} names in id2label", wanted)
    return [str(names[str(number)]) for number in range(num_classes)]
