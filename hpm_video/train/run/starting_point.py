"""The starting point of a run: its own last checkpoint, another one, weights, or scratch."""

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
    """The starting point of a run.

    state: the checkpoint to continue, if any. init: the source of the encoder's weights, if any;
    parts: the same for a pre-training, with its other parts. source: the file of either. line: a
    log line on all this. allow_missing: weights that init may lack. last: name of the checkpoint,
    if it is the run's own. initialised: weights that init lacked. table: a report on the parts,
    once loaded.
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
        """Load weights into the model, whose encoder is ``model.encoder``.

        Raises ValueError if they do not fit.
        """
        if self.state is not None:
            # If the checkpoint's model is an EMA, training continues with the raw weights
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
        """Load the teacher's weights, if there are any; it starts as a copy of the student.

        Raises ValueError if they do not fit, or if the continued run had no teacher.
        """
        if self.parts is not None:
            self.parts.load_teacher(teacher)
            self.table = self.parts.lines()
        elif self.state is not None and teacher is not None:
            with self._told_what_to_do():
                if self.state["teacher"] is None:
                    needs = "mines hard tubes" if teacher.predicts else "has loss.target=ema"
                    raise ValueError(
                        f"checkpoint ({self.source}) has no teacher, but this run {needs}"
                    )
                of_teacher = f"teacher of {self.source}"
                load_weights(teacher, self.state["teacher"], source=of_teacher)

    @contextmanager
    def _told_what_to_do(self) -> Iterator[None]:
        """Add advice to errors about another run's checkpoint that does not fit."""
        try:
            yield
        except ValueError as error:
            if self.last is not None:
                raise
            raise ValueError(
                f"{error}; to start a new run from its weights, set model.init={self.source} "
                "instead of run.resume; parts that it lacks start fresh"
            ) from error

    def check_labels(self, labels: LabelsConfig) -> None:
        """Raise ValueError if the continued run has one label per video and this one several, or
        the other way round."""
        if self.state is None:
            return
        then = LabelsConfig(**self.state["config"]["data"].get("labels", {})).are_several
        if then != labels.are_several:
            words = {False: "one label per video", True: "several labels per video"}
            raise ValueError(
                f"data.labels must be as in the continued run ({self.source}), which learns "
                f"{words[then]}, not {words[not then]}; to start a new run from its weights, set "
                f"model.init={self.source}"
            )

    def check_classes(self, names: Sequence[str] | None) -> None:
        """Raise ValueError where a class of the run that goes on has another number now."""
        before = (self.state.get("classes") if self.state is not None else None) or ()
        for number, name in enumerate(names or ()):
            if name in before and (then := list(before).index(name)) != number:
                raise ValueError(
                    f"class '{shown(name)}' must have number {then}, as in the continued run "
                    f"({self.source}), but has {number}: keep the order of classes.txt"
                )

    def check_what_learns(self, model: nn.Module, config: ClassifierConfig) -> None:
        """Raise ValueError if frozen weights would be random, or if the continued run trained other
        weights."""
        if self.state is not None:
            stored, usual = self.state["config"]["model"], vars(ClassifierConfig())
            for name in ("freeze", "lora_rank", "lora_alpha", "lora_targets"):
                if (then := stored.get(name, usual[name])) != (now := getattr(config, name)):
                    raise ValueError(
                        f"model.{name} ({now}) must be {then}, as in the continued run "
                        f"({self.source}); to start a new run from its weights, set "
                        f"model.init={self.source}"
                    )
            return
        frozen = {plain_name(n) for n, p in model.named_parameters() if not p.requires_grad}
        if not frozen:
            return
        if self.init is None:
            raise ValueError(
                "model.init (null) must name weights to start from with model.freeze or "
                "model.lora_rank: frozen weights would stay random"
            )
        for name in sorted(frozen.intersection(self.initialised))[:1]:
            raise ValueError(
                f"model.init ({self.source}) must have {name}, which is frozen (model.freeze, "
                "model.lora_rank) and would stay random"
            )

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Load the optimizer state for ``model``, which may be sharded already.

        Raises ValueError if it does not fit.
        """
        if self.state is not None:
            load_optimizer_state(optimizer, model, self.state, source=self.source or "")

    def trained_grid(self) -> TokenGrid | None:
        """The grid that the encoder's weights were trained on; None without weights."""
        if self.state is not None:
            return trained_grid(self.state)
        return None if self.init is None else trained_grid(self.init.state)

    def describe_fit(self, encoder: Encoder) -> list[str]:
        """Log lines on how the encoder's weights are adapted to other tokens."""
        return [] if self.init is None else describe_fit(self._tokens(encoder), encoder.tokens)

    def lines(self) -> list[str]:
        """Log lines on the starting point."""
        if self.table:
            return [self.line, *self.table]
        if not self.initialised:
            return [self.line]
        return [
            self.line,
            f"not in these weights, so newly initialised: {', '.join(self.initialised)}",
        ]

    def write_table(self, folder: Path, model: nn.Module) -> None:
        """Write a table of all tensors of ``init`` and their fate to the run's folder."""
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
        """Free the loaded weights; of a checkpoint, keep only what `Run` still needs."""
        if self.state is not None:
            kept = {"step", "window", "loss_scale"} & self.state.keys()
            self.state = {name: self.state[name] for name in kept}
        self.init = self.parts = None

    def _tokens(self, encoder: Encoder) -> Tokens:
        """The tokens that the weights of ``init`` were trained on."""
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
    """Find the starting point: the run folder's last checkpoint, run.resume, model.init or scratch.

    ``data``: from `describe_data`. The run's own checkpoint is refused if it was trained on other
    data; one named by run.resume is not.

    Raises ValueError or FileNotFoundError if a named file is missing, damaged, of another kind, or
    beyond the end of this run.
    """
    own, last = folder / "checkpoints" / "last", linked_checkpoint(folder)
    if last is not None and not is_checkpoint(own):
        raise FileNotFoundError(f"{own} points to a checkpoint that no longer exists: {last}")
    source = own if last is not None else config.run.resume
    if source is not None:
        state = load_checkpoint(source, kind=kind, as_trained=True)
        if find_checkpoint(source).is_file() and "optimizer" not in state:
            raise ValueError(
                f"run.resume ({source}) has no optimizer state: must be a step_*.pt or last"
            )
        step = state["step"]
        more = step * config.optim.epochs // total_steps + 1  # enough epochs to continue
        changes = _changes(state.get("data"), data)
        if changes and source == own:
            raise ValueError(
                f"run.output_dir ({folder}) cannot continue after step {step}, as {changes}: undo "
                f"the change, or continue in another folder with run.resume={source}"
            )
        # A finished run may still have to evaluate its last step; another run's leaves no steps
        if step > total_steps or (step == total_steps and source != own):
            raise ValueError(
                f"checkpoint ({source}) is from step {step}, but this run has only {total_steps} "
                f"steps: set optim.epochs={more} or more, or start a new run from its weights with "
                f"model.init={source}"
            )
        line = f"continues after step {step} of {source}" + (f", but {changes}" if changes else "")
        if step == total_steps:
            line += f", which is its end: to train further, set optim.epochs={more} or more"
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
    """The data settings that decide which videos are in which step, stored in checkpoints."""
    return {
        "videos": manifest.digest(),
        "num_videos": len(manifest),
        "videos_per_step": videos_per_step,
        "weights": list(mixture.weights),
        "videos_per_epoch": mixture.num_videos,
    }


def _changes(before: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> str:
    """Differences between two results of `describe_data`, in words; empty if there are none."""
    if before is None or now is None:
        return ""
    words = {
        "videos": f"the list of videos has changed ({before['num_videos']} before, "
        f"{now['num_videos']} now)",
        "weights": f"data.weights were {before.get('weights') or 'none'} and are now "
        f"{now.get('weights') or 'none'}",
        "videos_per_step": f"a step had {before['videos_per_step']} videos and now has "
        f"{now['videos_per_step']} (data.batch_size x optim.accumulation x processes)",
    }
    return " and ".join(
        text for name, text in words.items() if before.get(name, []) != now.get(name, [])
    )
