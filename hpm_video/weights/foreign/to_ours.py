"""From weights of any origin to a checkpoint of ours, with an account of every tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hpm_video.config import FinetuneConfig, PretrainConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.models.build import build_classifier, build_model, token_grid
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.weights.foreign.account import Row, Status, is_allowed, is_finite, misfit, shown
from hpm_video.weights.foreign.architecture import Architecture, architecture_of, rules_of
from hpm_video.weights.foreign.assumptions import Assumptions
from hpm_video.weights.foreign.formats import Layout
from hpm_video.weights.foreign.our_tensors import account_of, completed
from hpm_video.weights.foreign.recognise import Recognised, recognise
from hpm_video.weights.foreign.rules import Rule
from hpm_video.weights.foreign.sources import Source, read_weights


@dataclass(frozen=True)
class Imported:
    """A checkpoint of ours, as `hpm_video.weights.checkpoint` describes it, and where it is from.

    words: what the file is. source: what is in it. architecture: None where it is one of ours.
    """

    state: dict[str, Any]
    rows: tuple[Row, ...]
    words: str
    source: Source
    architecture: Architecture | None


def import_weights(
    path: str | Path,
    *,
    assumptions: Assumptions | None = None,
    allow_missing: Sequence[str] = (),
    container: str | None = None,
    fill: bool = True,
    encoder_only: bool = False,
) -> Imported:
    """Read weights of any origin.

    ``allow_missing``: patterns of names, ours or theirs, that may be missing, of another shape, or
    unknown. ``fill``: give what is missing its first values, at a fixed seed; else leave it out.
    ``encoder_only``: of others' weights the encoder alone, whatever else there is.

    Raises FileNotFoundError, or ValueError in one line: what is unreadable or of no known format,
    and every tensor that is missing, unknown or of another shape.
    """
    source = read_weights(path, container=container)
    if source.state is not None:
        rows = account_of(
            source.state, source=path, allow_missing=allow_missing, encoder_only=encoder_only
        )
        words = f"hpm_video, {source.state['kind']}, step {source.state['step']}"
        state = completed(source.state, rows, fill=fill)
        return Imported(state, tuple(rows), words, source, None)
    found = _without_class_token(recognise(source))
    given = assumptions or Assumptions()
    architecture = architecture_of(
        found, source.config, given, path=source.path, encoder_only=encoder_only
    )
    weights, rows = _convert(found, architecture, allow_missing, path=source.path)
    weights = _folded(weights, architecture)
    if fill and any(row.status == "initialised" for row in rows):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = _build(architecture).state_dict()
        weights |= {r.ours: fresh[r.ours] for r in rows if r.status == "initialised"}
    state = _state(architecture, weights, source)
    return Imported(state, tuple(rows), found.layout.words, source, architecture)


def _convert(
    found: Recognised, architecture: Architecture, allow_missing: Sequence[str], *, path: Path
) -> tuple[dict[str, Tensor], list[Row]]:
    layout, tensors = found.layout, found.tensors
    with torch.device("meta"):
        expected = _build(architecture).state_dict()
    weights: dict[str, Tensor] = {}
    rows: list[Row] = []
    misfits: list[str] = []
    used: set[str] = set()
    for rule in rules_of(layout, architecture):
        used |= set(rule.theirs)
        wrong = _misfits(rule, found, expected, architecture)
        if wrong:
            for name, why in wrong.items():
                if not is_allowed(allow_missing, name, found.names.get(name, ""), *rule.ours):
                    misfits.append(f"{found.names.get(name, name)} {why}")
            why = "; ".join(f"{name} {word}" for name, word in wrong.items())
            rows += [Row("", o, "initialised", tuple(expected[o].shape), why) for o in rule.ours]
            rows += [
                Row(
                    found.names[n], "", "unused", tuple(tensors[n].shape),
                    "allowed" if n in wrong else f"of no use without {', '.join(wrong)}",
                )
                for n in rule.theirs
                if n in tensors
            ]  # fmt: skip
            continue
        theirs = [tensors[name].float() for name in rule.theirs]
        for name, value in zip(
            rule.ours, rule.change.to_ours(theirs, architecture.shape), strict=True
        ):
            weights[name] = value.contiguous().clone()
        names = ", ".join(found.names[name] for name in rule.theirs)
        if not all(map(is_finite, theirs)):
            misfits.append(f"{names} holds numbers that are not finite")
        rows += [_row(found, rule, name, names, weights[name]) for name in rule.ours]
    for name, tensor in tensors.items():
        if name in used:
            continue
        reason = _why_unused(layout, name, architecture)
        if reason is None:
            if not is_allowed(allow_missing, name, found.names[name]):
                misfits.append(f"{found.names[name]} is unknown")
            reason = "unknown, allowed"
        rows.append(Row(found.names[name], "", "unused", tuple(tensor.shape), reason))
    if misfits:
        raise ValueError(f"weights ({path}) do not fit {layout.words}: {shown(misfits)}")
    order = {name: place for place, name in enumerate(found.names.values())}
    rows.sort(key=lambda row: order.get(row.theirs.split(", ")[0], len(order)))
    return weights, rows


def _row(found: Recognised, rule: Rule, ours: str, theirs: str, value: Tensor) -> Row:
    dtype = found.tensors[rule.theirs[0]].dtype
    notes = [rule.change.note] if rule.change.note else []
    if dtype != torch.float32:
        notes.append(f"was {str(dtype).removeprefix('torch.')}")
    status: Status = "loaded" if ours == theirs else "renamed"
    return Row(theirs, ours, status, tuple(value.shape), "; ".join(notes))


def _misfits(
    rule: Rule,
    found: Recognised,
    expected: Mapping[str, Tensor],
    architecture: Architecture,
) -> dict[str, str]:
    """Names of a rule's tensors that do not fit, and why."""
    like = rule.change.to_theirs([expected[name] for name in rule.ours], architecture.shape)
    whys = {
        name: misfit(found.tensors.get(name), wanted)
        for name, wanted in zip(rule.theirs, like, strict=True)
    }
    return {name: why for name, why in whys.items() if why}


def _why_unused(layout: Layout, name: str, architecture: Architecture) -> str | None:
    if (why := layout.why_unused(name)) is not None:
        return why
    part = layout.part_of(name)
    if part is None or part in architecture.parts:
        return None
    if part == "head" and "norm" in architecture.parts:
        return "of a classifier that looks at one token: ours looks at the mean of all"
    return f"of the {part}"


def _without_class_token(found: Recognised) -> Recognised:
    """Positions of an image without that of the class token, which comes first."""
    table, token = found.tensors.get("pos_embed"), found.tensors.get("cls_token")
    if not found.layout.is_image or table is None or token is None or table.ndim != 3:
        return found
    rows = round((table.shape[1] - 1) ** 0.5)
    if rows * rows != table.shape[1] - 1:
        return found
    return replace(found, tensors={**found.tensors, "pos_embed": table[:, 1:]})


def _build(architecture: Architecture) -> nn.Module:
    """The model of ours, or the parts of it that the weights hold."""
    config = architecture.config
    data = config.data
    if isinstance(config, FinetuneConfig):
        return build_classifier(
            config.model,
            num_frames=data.num_frames,
            crop_size=data.crop_size,
            num_classes=architecture.num_classes,
        )
    grid = token_grid(config.model, num_frames=data.num_frames, crop_size=data.crop_size)
    return build_model(config.model, grid, predict_loss=False)


def _folded(weights: dict[str, Tensor], architecture: Architecture) -> dict[str, Tensor]:
    """The weights for pixels normalised as ours, made of those for pixels normalised otherwise.

    w (x - m') / s' + b is w s / s' (x - m) / s + b + w (m - m') / s': the same outputs.
    """
    if (architecture.mean, architecture.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return weights
    ours, theirs = (
        [torch.tensor(values, dtype=torch.float64) for values in pair]
        for pair in (
            (IMAGENET_MEAN, IMAGENET_STD),
            (architecture.mean, architecture.std),
        )
    )
    if missing := {"encoder.embed.weight", "encoder.embed.bias"} - weights.keys():
        raise ValueError(f"mean and std other than ImageNet's need {', '.join(sorted(missing))}")
    weight = weights["encoder.embed.weight"].double().unflatten(1, (-1, 3))
    bias = weights["encoder.embed.bias"].double()
    bias = bias + (weight * (ours[0] - theirs[0]) / theirs[1]).sum(dim=(1, 2))
    weight = (weight * ours[1] / theirs[1]).flatten(1)
    return {
        **weights,
        "encoder.embed.weight": weight.float(),
        "encoder.embed.bias": bias.float(),
    }


def _state(
    architecture: Architecture, weights: dict[str, Tensor], source: Source
) -> dict[str, Any]:
    config = architecture.config
    kind = "pretrain" if isinstance(config, PretrainConfig) else "finetune"
    state = {"kind": kind, "config": config_to_dict(config), "step": 0, "model": weights}
    if kind == "finetune":
        grid = architecture.shape.grid
        state |= {
            "num_classes": architecture.num_classes,
            "classes": _classes(source.config, architecture.num_classes, path=source.path),
            "trained_grid": [grid.time, grid.height, grid.width],
        }
    return state


def _classes(config: Mapping[str, Any], num_classes: int, *, path: Path) -> list[str] | None:
    """Class names, of the settings of a Hugging Face folder, where it has any of its own."""
    names = config.get("id2label") or {}
    if not isinstance(names, Mapping):
        raise ValueError(f"weights ({path}): found no names in id2label, expected {{number: name}}")
    classes = [str(name) for name in names.values()]
    if all(name.startswith("LABEL_") for name in classes):  # what transformers calls those unnamed
        return None
    if names.keys() != set(map(str, range(num_classes))):
        raise ValueError(
            f"weights ({path}): found {len(names)} names in id2label, expected those of the "
            f"classes 0 to {num_classes - 1}"
        )
    return [str(names[str(number)]) for number in range(num_classes)]
