"""Where a run starts from: its own last checkpoint, another one, weights, or nothing."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hpm_video.config import ClassifierConfig, LabelsConfig, PretrainConfig
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.lists.rows import shown
from hpm_video.data.loading.mixture import Mixture
from hpm_video.method.teacher import Teacher
from hpm_video.models.adapters import plain_name
from hpm_video.models.hpm import HPM
from hpm_video.models.resample import Tokens, describe_fit
from hpm_video.models.tokens import TokenGrid
from hpm_video.models.vit import Encoder
from hpm_video.train.run.optimizer_state import load_optimizer_state
from hpm_video.weights.checkpoint import (
    find_checkpoint,
    is_checkpoint,
    linked_checkpoint,
    load_checkpoint,
    load_encoder,
    load_weights,
    tokens_of,
    trained_grid,
)
from hpm_video.weights.foreign.account import Imported, in_a_line
from hpm_video.weights.foreign.init_parts import InitParts
from hpm_video.weights.foreign.init_weights import init_weights, write_init_table


@dataclass
class Start:
    """Where a run starts from.

    state: the checkpoint it continues, if any. init: what it takes its encoder from, if anything;
    parts: of a pre-training that, and the other parts.
    source: the file of either. line: all this in words. allow_missing: what init may lack. last:
    name of the checkpoint, if it is the run's own. initialised: names of what init did lack. table:
    what became of the parts, once they are loaded.
    """

    state: dict[str, Any] | None
    init: Imported | None
    source: str | Path | None
    line: str
    allow_missing: Sequence[str] = ()
    last: str | None = None
    initialised: Sequence[str] = ()
    parts: InitParts | None = None
    table: Sequence[str] = ()

    def load_into(self, model: nn.Module) -> None:
        """Load the weights into the model, whose encoder is ``model.encoder``; ValueError if they
        do not fit."""
        if self.state is not None:
            # Where an average of the weights is what a checkpoint's model is, training goes on
            # with the weights themselves.
            weights = self.state.get("trained_model") or self.state["model"]
            with self._told_what_to_do():
                load_weights(model, weights, source=self.source or "")
        elif self.parts is not None:
            assert isinstance(model, HPM)
            self.parts.load_student(model)
            self.initialised = self.parts.fresh
        elif self.init is not None:
            encoder = model.get_submodule("encoder")
            assert isinstance(encoder, Encoder)
            source = self.source or ""
            self.initialised = load_encoder(
                encoder, self.init.state, source=source, allow_missing=self.allow_missing
            )

    def load_teacher(self, teacher: Teacher | None) -> None:
        """Load the weights of the teacher, now a copy of the student, that there are; ValueError if
        they do not fit, or if a run that is continued had none."""
        if self.parts is not None:
            self.parts.load_teacher(teacher)
            self.table = self.parts.lines()
        elif self.state is not None and teacher is not None:
            with self._told_what_to_do():
                if self.state["teacher"] is None:
                    needs = "mines hard tubes" if teacher.predicts else "has loss.target=ema"
                    raise ValueError(f"checkpoint ({self.source}) has no teacher: this run {needs}")
                of_teacher = f"teacher of {self.source}"
                load_weights(teacher, self.state["teacher"], source=of_teacher)

    @contextmanager
    def _told_what_to_do(self) -> Iterator[None]:
        """Of another run's checkpoint that does not fit: how to begin with what does."""
        try:
            yield
        except ValueError as error:
            if self.last is not None:
                raise
            raise ValueError(
                f"{error}; model.init={self.source} in place of run.resume begins another run "
                "with its weights, and what it lacks starts fresh"
            ) from error

    def check_labels(self, labels: LabelsConfig) -> None:
        """Raise ValueError where the run that goes on learnt one label per video and this one would
        learn several, or the reverse."""
        if self.state is None:
            return
        then = LabelsConfig(**self.state["config"]["data"].get("labels", {})).are_several
        if then != labels.are_several:
            words = {False: "one label per video", True: "several labels per video"}
            raise ValueError(
                f"data.labels must stay as in the run that goes on ({self.source}), which learns "
                f"{words[then]}, not {words[not then]}; model.init={self.source} starts another "
                "from its weights"
            )

    def check_classes(self, names: Sequence[str] | None) -> None:
        """Raise ValueError where a class of the run that goes on has another number now."""
        before = (self.state.get("classes") if self.state is not None else None) or ()
        for number, name in enumerate(names or ()):
            if name in before and (then := list(before).index(name)) != number:
                raise ValueError(
                    f"class '{shown(name)}' must have the number {then}, as in the run that goes "
                    f"on ({self.source}), but has {number}: keep the order of classes.txt"
                )

    def check_what_learns(self, model: nn.Module, config: ClassifierConfig) -> None:
        """Raise ValueError where weights that do not learn are from nowhere, or where others learnt
        in the run that goes on."""
        if self.state is not None:
            stored, usual = self.state["config"]["model"], vars(ClassifierConfig())
            for name in ("freeze", "lora_rank", "lora_alpha", "lora_targets"):
                if (then := stored.get(name, usual[name])) != (now := getattr(config, name)):
                    raise ValueError(
                        f"model.{name} ({now}) must be {then}, as in the run that goes on "
                        f"({self.source}); model.init={self.source} starts another from its weights"
                    )
            return
        frozen = {plain_name(n) for n, p in model.named_parameters() if not p.requires_grad}
        if not frozen:
            return
        if self.init is None:
            raise ValueError(
                "model.init (null) must name weights to start from with model.freeze or "
                "model.lora_rank: what does not learn would stay random"
            )
        for name in sorted(frozen.intersection(self.initialised))[:1]:
            raise ValueError(
                f"model.init ({self.source}) must have {name}: it does not learn (model.freeze, "
                "model.lora_rank), and would stay random"
            )

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Load the state of the optimizer of ``model``, which may be spread over processes by now;
        ValueError if it does not fit."""
        if self.state is not None:
            load_optimizer_state(optimizer, model, self.state, source=self.source or "")

    def trained_grid(self) -> TokenGrid | None:
        """The grid whose position table the encoder's weights were trained with, if any."""
        if self.state is not None:
            return trained_grid(self.state)
        return None if self.init is None else trained_grid(self.init.state)

    def describe_fit(self, encoder: Encoder) -> list[str]:
        """How the encoder's weights are changed for other tokens than they were trained with."""
        return [] if self.init is None else describe_fit(self._tokens(encoder), encoder.tokens)

    def lines(self) -> list[str]:
        """Where the run starts from, in words for its log."""
        if self.table:
            return [self.line, *self.table]
        if not self.initialised:
            return [self.line]
        return [self.line, f"not in it, so as initialised: {', '.join(self.initialised)}"]

    def write_table(self, folder: Path, model: nn.Module) -> None:
        """Write to the run's folder what became of every tensor of ``init``, if there is one."""
        if self.init is None:
            return
        encoder = model.get_submodule("encoder")
        assert isinstance(encoder, Encoder)
        if self.parts is not None:
            taken: Mapping[str, str] = self.parts.taken
        else:
            names = {f"encoder.{plain_name(name)}" for name in encoder.state_dict()}
            taken = {name: name for name in names - set(self.initialised)}
        before = self._tokens(encoder)
        write_init_table(
            folder, self.init, model, taken=taken, before=before, initialised=self.initialised
        )

    def forget_weights(self) -> None:
        """Let go of what was loaded: of a state only what `Run` goes on from stays."""
        if self.state is not None:
            kept = {"step", "window", "loss_scale"} & self.state.keys()
            self.state = {name: self.state[name] for name in kept}
        self.init = self.parts = None

    def _tokens(self, encoder: Encoder) -> Tokens:
        """Those that the weights of ``init`` were trained with."""
        assert self.init is not None
        return replace(tokens_of(self.init.state), grid=self.trained_grid() or encoder.grid)


def find_start(
    config: Any,
    folder: Path,
    *,
    kind: str,
    total_steps: int,
    data: Mapping[str, Any] | None = None,
) -> Start:
    """In this order: the run folder's own last checkpoint, run.resume, model.init, scratch.

    ``data`` tells which videos make up which step, as `describe_data` does. What was done with
    other data is no part of this run: its own checkpoint is refused then, one to resume is not.

    Raises ValueError or FileNotFoundError when what is named is missing, damaged, of another kind,
    or further than this run goes.
    """
    own, last = folder / "checkpoints" / "last", linked_checkpoint(folder)
    if last is not None and not is_checkpoint(own):
        raise FileNotFoundError(f"{own} points to a checkpoint that is gone: {last}")
    source = own if last is not None else config.run.resume
    if source is not None:
        state = load_checkpoint(source, kind=kind, as_trained=True)
        if find_checkpoint(source).is_file() and "optimizer" not in state:
            raise ValueError(
                f"run.resume ({source}) has no state of the optimizer: must be a step_*.pt or last"
            )
        step = state["step"]
        more = step * config.optim.epochs // total_steps + 1  # epochs that leave steps to be done
        changes = _changes(state.get("data"), data)
        if changes and source == own:
            raise ValueError(
                f"run.output_dir ({folder}) cannot go on after step {step}, as {changes}: must be "
                f"as before, or go on with run.resume={source} in another folder"
            )
        # Its own last step may be left to be evaluated; of another run's nothing is left to be done
        if step > total_steps or (step == total_steps and source != own):
            raise ValueError(
                f"checkpoint ({source}) is of step {step}: this run has only {total_steps} steps; "
                f"set optim.epochs to {more} or more, or begin with its weights: model.init"
            )
        line = f"continues after step {step} of {source}" + (f", but {changes}" if changes else "")
        if step == total_steps:
            line += f", which is its end: to go on, set optim.epochs to {more} or more"
        return Start(state, None, source, line, last=last)
    source = config.model.init
    if source is not None:
        found = init_weights(config)
        is_whole = isinstance(config, PretrainConfig)
        parts = InitParts(found, config) if is_whole else None
        what = "weights" if is_whole else "the encoder"
        line = f"starts with {what} of {in_a_line(found)} of {source}"
        return Start(None, found, source, line, config.model.allow_missing, parts=parts)
    return Start(None, None, None, "starts from scratch")


def describe_data(manifest: Manifest, mixture: Mixture, *, videos_per_step: int) -> dict[str, Any]:
    """What decides which videos make up which step, as a part of checkpoints."""
    return {
        "videos": manifest.digest(),
        "num_videos": len(manifest),
        "videos_per_step": videos_per_step,
        "weights": list(mixture.weights),
        "videos_per_epoch": mixture.num_videos,
    }


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """What differs between two results of `describe_data`, in words; empty if nothing does."""
    if before is None or now is None:
        return ""
    words = {
        "videos": f"the list of videos has changed ({before['num_videos']} then, "
        f"{now['num_videos']} now)",
        "weights": f"data.weights were {before.get('weights') or 'none'} and are now "
        f"{now.get('weights') or 'none'}",
        "videos_per_step": f"a step had {before['videos_per_step']} videos and now has "
        f"{now['videos_per_step']} (data.batch_size x optim.accumulation x processes)",
    }
    return " and ".join(
        text for name, text in words.items() if before.get(name, []) != now.get(name, [])
    )
