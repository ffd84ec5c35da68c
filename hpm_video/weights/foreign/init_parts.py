"""``model.init`` of pre-training: loads the parts that the file has, and reports on each.

A part that is not in the file or in ``model.init_parts`` starts fresh; the teacher then starts as a
copy of the student.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from hpm_video.config import EncoderConfig, FinetuneConfig, ModelConfig, PretrainConfig
from hpm_video.method.teacher import Teacher
from hpm_video.models.build import HPM, token_grid
from hpm_video.models.grid import TokenShape
from hpm_video.models.resample import Tokens, describe_fit, fit_tokens, resample_head
from hpm_video.models.sizes import SIZES
from hpm_video.weights.checkpoint import load_weights, settings_of, tokens_of, trained_grid
from hpm_video.weights.foreign.account import Imported, assumed
from hpm_video.weights.misfits import is_finite, refuse

# Module -> part, as users see it; "norm" and "head" belong to a classifier
_PARTS = {"decoder_input": "decoder", "reconstructor": "decoder", "norm": "head"}
ENCODER = ("width", "depth", "heads", "mlp_ratio", "positions")
_DECODER = ("decoder_width", "decoder_depth", "decoder_heads", "decoder_mlp_ratio")
_HEAD = ("reconstructor.head.weight", "reconstructor.head.bias")
_NOT_ASKED = "not in model.init_parts"

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class _Row:
    """A part: its origin, numbers of loaded and of all tensors, and what became of the rest."""

    part: str
    origin: str
    loaded: int
    total: int
    rest: str = "-"


class InitParts:
    """The initial weights of pre-training, checked against its settings.

    before: the tokens with which they were trained. taken: loaded tensors, name in the file's model
    -> name in the run's. fresh: names of tensors that were allowed to be missing.

    Raises ValueError if sizes differ, naming the settings to change.
    """

    def __init__(self, found: Imported, config: PretrainConfig) -> None:
        self.found, self._config = found, config
        self._init = config.model.init or ""
        self._theirs = settings_of(found.state)
        self._file = {_as_of_two(name, self._theirs): name for name in found.state["model"]}
        if not any(name.startswith("encoder.") for name in self._file):
            name = getattr(self._theirs.model, "name", None)
            raise ValueError(
                f"model.init ({self._init}) must hold a VideoMAE encoder"
                + (", but has none" if name is None else f", not {name}")
            )
        model, data = config.model, config.data
        grid = token_grid(model, num_frames=data.num_frames, crop_size=data.crop_size)
        self._tokens = Tokens(grid, TokenShape(model.tubelet_size, model.patch_size))
        tokens = tokens_of(found.state)
        self.before = replace(tokens, grid=trained_grid(found.state) or tokens.grid)
        self._why_fresh = self._reasons()
        self._check_settings()
        self.taken: dict[str, str] = {}
        self.fresh: list[str] = []
        self._rows: list[_Row] = []

    def load_student(self, student: HPM) -> None:
        """Load the available parts; raises ValueError naming tensors that do not fit."""
        weights = {n: self.found.state["model"][there] for n, there in self._file.items()}
        chosen, own = self._chosen(weights, student)
        may_lack = [*self._config.model.allow_missing]
        may_lack += [own[n] for n in own if _part(n) in self._why_fresh]
        if has_no_norm := not any(name.startswith("encoder.norm.") for name in chosen):
            may_lack.append("encoder.norm.*")  # a classifier's norm comes after the mean
        lacking = load_weights(student, chosen, source=self._init, allow_missing=may_lack)
        self.taken = {self._file[n]: own[n] for n in self._file if own.get(n) in chosen}
        parts = {part: [own[n] for n in own if _part(n) == part] for part in map(_part, own)}
        for part, names in parts.items():
            if (why := self._why_fresh.get(part)) is not None:
                self._rows.append(_Row(part, "-", 0, len(names), f"fresh: {why}"))
                continue
            fresh = [name for name in names if name in lacking]
            rest = self._fit(part)
            if fresh:
                why = "a classifier has none" if has_no_norm else "allowed to be missing"
                rest.append(f"fresh, {why}: {', '.join(fresh)}")
            self.fresh += fresh
            loaded = len(names) - len(fresh)
            of_file = _origin(part, self._theirs)
            self._rows.append(_Row(part, of_file, loaded, len(names), "; ".join(rest) or "-"))
        others = [part for part in map(_part, self._file) if part not in parts]
        for part in dict.fromkeys(others):
            self._drop(part, others.count(part))

    def load_teacher(self, teacher: Teacher | None) -> None:
        """Load the available parts into a copy of the student; raises ValueError for misfits."""
        stored = self.found.state.get("teacher") or {}
        if teacher is None:
            if stored:
                self._drop("teacher", len(stored))
            return
        is_asked = "teacher" in self._config.model.parts_of_init
        weights = {_as_of_two(name, self._theirs): value for name, value in stored.items()}
        chosen, own = self._chosen(weights if is_asked else {}, teacher)
        source = f"teacher of {self._init}"
        infinite = [name for name, value in chosen.items() if not is_finite(value)]
        refuse([f"{n} has values that are not finite" for n in infinite], f"weights ({source})")
        there = set(map(_module, chosen))
        copied = [name for name in own.values() if _module(name) not in there]
        load_weights(teacher, chosen, source=source, allow_missing=copied)
        rest = "-"
        if copied:
            lacks = "not in the file's teacher" if stored else "not in the file"
            why = self._why_fresh.get(_part(copied[0]), lacks) if is_asked else _NOT_ASKED
            modules = ", ".join(dict.fromkeys(map(_module, copied)))
            of = f"{modules} as in" if chosen else "a copy of"
            rest = f"{of} the student: {why}"
        origin = "the file's teacher" if chosen else "the student"
        self._rows.append(_Row("teacher", origin, len(chosen), len(own), rest))

    def lines(self) -> list[str]:
        """A table of the parts, then assumptions and warnings."""
        cells = [("part", "from", "tensors loaded", "the rest")]
        cells += [(r.part, r.origin, f"{r.loaded} of {r.total}", r.rest) for r in self._rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in cells]
        return [*table, *assumed(self.found), *self._warnings()]

    def _drop(self, part: str, number: int) -> None:
        row = _Row(
            part, _origin(part, self._theirs), 0, number, "dropped: this run has no such part"
        )
        self._rows.append(row)

    def _reasons(self) -> dict[str, str]:
        """Part -> reason, for parts of which no tensor is loaded."""
        asked, there = self._config.model.parts_of_init, set(map(_part, self._file))
        reasons = {}
        for part in ("decoder", "predictor", "pixel_predictor"):
            if part.removeprefix("pixel_") not in asked:
                reasons[part] = _NOT_ASKED
            elif part not in there:
                reasons[part] = "not in the file"
        if "decoder" in reasons:
            reasons.setdefault("predictor", "it reads the input of the decoder, which starts fresh")
        return reasons

    def _chosen(
        self, weights: Mapping[str, Tensor], model: HPM | Teacher
    ) -> tuple[Weights, dict[str, str]]:
        """The weights that ``model`` takes, with its names and fitted to its tokens.

        ``weights`` have the names of a model with two predictors. Also returns all names of
        ``model``: name with two predictors -> own name.
        """
        own = {_as_of_two(name, self._config): name for name in model.state_dict()}
        modules = {_module(name) for name in own if _part(name) not in self._why_fresh}
        chosen = {name: value for name, value in weights.items() if _module(name) in modules}
        for prefix in ("encoder.", "pixel_predictor.encoder."):
            chosen = fit_tokens(chosen, prefix, tokens_of(self.found.state), self._tokens)
        if self._config.loss.has_pixels:
            shapes = self.before.shape, self._tokens.shape
            chosen |= {n: resample_head(chosen[n], *shapes) for n in _HEAD if n in chosen}
        return {own.get(name, name): value for name, value in chosen.items()}, own

    def _fit(self, part: str) -> list[str]:
        """Descriptions of how a part's weights are fitted to other tokens."""
        if part == "predictor":  # it reads the decoder's tokens
            return []
        if part != "decoder":
            return describe_fit(self.before, self._tokens)
        is_resampled = self._config.loss.has_pixels
        after = self._tokens if is_resampled else replace(self.before, grid=self._tokens.grid)
        return describe_fit(self.before, after, resampled="head")

    def _check_settings(self) -> None:
        """Raise ValueError if parts to load have other sizes or another target."""
        mine, theirs = self._config, self._theirs
        is_there = {
            part: mine.loss.prediction != "none"
            and mine.model.predictor_input in (kind, "both")
            and part not in self._why_fresh
            for part, kind in (("predictor", "encoded"), ("pixel_predictor", "pixels"))
        }
        of_predictors = ["predictor_depth"] if any(is_there.values()) else []
        if is_there["pixel_predictor"]:
            of_predictors += ["decoder_width", "decoder_heads"]
        has_decoder = "decoder" not in self._why_fresh
        of_decoder = _DECODER if has_decoder else ()
        names = [*ENCODER, *of_decoder, *of_predictors]
        unlike = unlike_sizes(mine.model, theirs.model, names)
        if has_decoder and isinstance(theirs, PretrainConfig):
            of_loss = ["target", "target_layers"]
            if mine.loss.target_width != theirs.loss.target_width:
                of_loss.append("target_model")  # which determines the width
            for name in of_loss:
                values = getattr(mine.loss, name), getattr(theirs.loss, name)
                if values[0] != values[1]:
                    unlike[f"loss.{name}"] = values
        if not unlike:
            return
        others = ""
        if not unlike.keys() & {f"model.{name}" for name in ("size", *ENCODER)}:
            kept = {"encoder"}
            if unlike.keys() == {"model.predictor_depth"}:
                kept |= {"decoder", "teacher"}
            parts = [part for part in mine.model.parts_of_init if part in kept]
            others = f", or model.init_parts=[{','.join(parts)}] to start the other parts fresh"
        raise ValueError(unlike_weights(unlike, self._init, others=others))

    def _warnings(self) -> list[str]:
        mine, theirs = self._config.loss, self._theirs
        if "decoder" in self._why_fresh or not isinstance(theirs, PretrainConfig):
            return []
        return [
            f"warning: loss.{name} ({_said(getattr(mine, name))}) was {_said(there)} when "
            f"these weights were trained; the decoder learnt another target, which "
            f"loss.{name}={_said(there)} keeps"
            for name in ("normalize_targets", "target_model")
            if (there := getattr(theirs.loss, name)) != getattr(mine, name)
        ]


def _module(name: str) -> str:
    return name.partition(".")[0]


def _part(name: str) -> str:
    module = _module(name)
    return _PARTS.get(module, module)


def _said(value: object) -> str:
    """A setting's value as typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


def _as_of_two(name: str, config: PretrainConfig | FinetuneConfig) -> str:
    """The name that a tensor has in a model with two predictors: a lone predictor from pixels is
    called pixel_predictor there."""
    is_of_pixels = isinstance(config, PretrainConfig) and config.model.predictor_input == "pixels"
    return f"pixel_{name}" if is_of_pixels and name.startswith("predictor.") else name


def _origin(part: str, theirs: PretrainConfig | FinetuneConfig) -> str:
    if part == "pixel_predictor" and _as_of_two("predictor.", theirs).startswith(part):
        part = "predictor"
    return f"the file's {part}"


def _sizes(model: EncoderConfig) -> dict[str, Any]:
    """The effective size settings; mlp_ratio, and those left at None, come from model.size."""
    size = SIZES[model.size]
    found = {"mlp_ratio": size.mlp_ratio, **vars(model)}
    usual = {name: getattr(size, name) for name in ("width", "depth", "heads")}
    if isinstance(model, ModelConfig):
        usual |= {n: getattr(size, n) for n in ("decoder_width", "decoder_heads")}
        usual["decoder_mlp_ratio"] = size.mlp_ratio
    return found | {name: value for name, value in usual.items() if found[name] is None}


def unlike_weights(unlike: Mapping[str, tuple[Any, Any]], init: str, *, others: str) -> str:
    """A refusal of settings that differ from those of weights: setting -> (mine, theirs).

    ``others``: further ways on.
    """
    said = {key: (_said(mine), _said(theirs)) for key, (mine, theirs) in unlike.items()}
    differ = ", ".join(f"{key} ({mine}) must be {theirs}" for key, (mine, theirs) in said.items())
    advice = " ".join(f"{key}={theirs}" for key, (_, theirs) in said.items())
    return f"{differ}, as in the weights of model.init ({init}): add {advice}{others}"


def unlike_sizes(
    mine: EncoderConfig, theirs: EncoderConfig, names: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    """Setting -> (mine, theirs), for the settings to change so that sizes ``names`` agree.

    If another model.size brings them closer, that is among them.
    """
    return {f"model.{name}": both for name, both in _to_set(mine, theirs, names).items()}


def _to_set(
    mine: EncoderConfig, theirs: EncoderConfig, names: Sequence[str]
) -> dict[str, tuple[Any, Any]]:
    def unlike(of: EncoderConfig) -> dict[str, tuple[Any, Any]]:
        ours, others = _sizes(of), _sizes(theirs)
        return {n: (ours[n], others[n]) for n in names if not _are_same(ours[n], others[n])}

    found = unlike(mine)
    if found and mine.size != theirs.size:
        with_size = unlike(replace(mine, size=theirs.size))
        if "mlp_ratio" in found or len(with_size) < len(found):
            return {"size": (mine.size, theirs.size), **with_size}
    return found


def _are_same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-3)  # ratios inferred from rounded MLP widths
    return bool(one == other)
