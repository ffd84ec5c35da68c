"""Bookkeeping shared by the loops of pre-training and fine-tuning: errors, logs, saving, stopping.
The computation itself stays in the loops."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from hpm_video.config import AugmentConfig, FinetuneConfig, PretrainConfig, PretrainRunConfig
from hpm_video.config.settings import config_to_dict
from hpm_video.data.lists.manifest import Manifest
from hpm_video.data.loading.bad_videos import BadVideos, UnreadableDataError
from hpm_video.data.loading.loader import ClipBatch, clip_batches
from hpm_video.data.samples.scores import Tubelet
from hpm_video.data.video.part import file_of
from hpm_video.data.video.readers.frame_folder import is_pictures
from hpm_video.runtime.distributed import World, barrier, gather_objects
from hpm_video.runtime.signals import note_stop, stop_on_signal
from hpm_video.train.optim import Steps
from hpm_video.train.run.logs import Record, RunLog
from hpm_video.train.run.loss_scale import LossScale
from hpm_video.train.run.profiling import StepProfile
from hpm_video.train.run.rank_requests import RankRequests
from hpm_video.train.run.saving import Saver
from hpm_video.train.run.steps import BAD, OVERFLOW, BadSteps, Period, own_rows
from hpm_video.train.run.vector_count import VectorCount
from hpm_video.weights.checkpoint import remove_history

_FIRST_STEPS = 3  # after which the first figures are printed
# Median data_wait_fraction above which the run gives advice
_MUCH_WAITING = 0.2
_FEWEST_RECORDS = 3  # that it takes to advise
_WAITING = (
    "{waited:.0%} of the time is spent waiting for videos (data_wait_fraction); to speed up this "
    "run, raise data.num_workers or data.repeats, or re-encode the videos for training "
    "(hpm-video data transcode)"
)


class OutOfGpuMemory(RuntimeError):  # noqa: N818 - named like PyTorch's
    """A step needs more memory than the GPU has; the message says what to set."""


def can_look_at_once(device: torch.device) -> bool:
    """Whether reading a value from the device right after a step is free."""
    return device.type == "cpu"


class Run:
    """One training run in its folder, from its first or a later step to its last.

    for step in run.steps():
        batch = run.next(batches)
        ...
        run.scaled(loss).backward()
        run.unscale(model)
        skip = run.add({"loss": loss, "grad_norm": norm})
        step_unless(skip, optimizer)
        if run.is_log_step:
            run.record({...}, prefix="pretrain")
        run.end_step(checkpoint)

    Figures of steps stay on the device until a record is due, with one synchronisation per period.
    Those of an unfinished period are stored in checkpoints for all ranks, so a resumed run records
    the same means.

    A step with a figure that is not finite is skipped; see `BadSteps`. The host learns of it at the
    next record, on a CPU after the step.
    """

    def __init__(
        self,
        config: PretrainConfig | FinetuneConfig,
        folder: Path,
        world: World,
        *,
        manifest: Manifest,
        steps: Steps,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.world = config.run, folder, world
        self._settings = config_to_dict(config)
        self.manifest, self._data, self._plan = manifest, config.data, steps
        self._divides_total = config.optim.total_batch is not None
        self._bad_videos = BadVideos(folder, manifest, max_fraction=config.data.max_bad_fraction)
        self.total_steps = steps.total
        self.steps_done: int = state["step"] if state else 0
        self._start_step = self.steps_done
        rows = own_rows(state["window"], world) if state else []
        self._period = Period(self.steps_done, rows)
        # Why videos were read with another decoder than the chosen, (index, note): each note once
        self._notes: list[tuple[int, str]] = []
        self._noted: set[str] = set()
        self._vectors: VectorCount | None = None  # of a run whose masks need them
        self._bad = BadSteps(world.device, max_in_a_row=self.config.max_bad_steps)
        self._loss_scale = LossScale(
            self.config.precision, world.device, state.get("loss_scale") if state else None
        )
        self._requests = RankRequests(world, self._own_requests)
        self._ends_early = False
        self._stopped_by: str | None = None  # the signal, once all processes know of it
        self._last_loss: float | None = None
        self._has_recorded = self._has_warned = False
        self._waits: list[float] = []  # data_wait_fraction of each record after the first
        self._saver = Saver(folder / "checkpoints", self.config, world)
        self._history: frozenset[int] = frozenset()
        if isinstance(self.config, PretrainRunConfig):
            self._history = self.config.history_steps(steps.total)
        if world.is_main:
            remove_history(folder / "checkpoints", after=self.steps_done)
        self._exit = ExitStack()

    def __enter__(self) -> Run:
        self._exit.callback(self._saver.close)
        is_main, start, total = self.world.is_main, self.steps_done, self.total_steps
        log = RunLog(
            self.folder, is_main=is_main, start_step=start, total_steps=total,
            loggers=self.config.loggers, settings=self._settings,
        )  # fmt: skip
        self.log = self._exit.enter_context(log)
        self._signal = self._exit.enter_context(
            stop_on_signal(is_alone=self.world.size == 1, says_so=is_main)
        )
        self._profile = StepProfile(
            self.folder / "profile",
            num_steps=self.config.profile_steps if is_main else 0,
            steps_done=start,
            device=self.world.device,
            say=self.log.line,
        )
        self._exit.callback(self._profile.close)
        for note in self.manifest.notes:
            self.log.line(f"warning: {note}")
        if again := self.manifest.num_repeated:
            self.log.line(f"warning: {again} rows of data.manifest name a video of an earlier row")
        return self

    def __exit__(self, *error: Any) -> None:
        self._exit.__exit__(*error)
        if isinstance(cause := error[1], torch.OutOfMemoryError):
            raise OutOfGpuMemory(self._what_to_set(cause)) from cause

    def _what_to_set(self, error: torch.OutOfMemoryError) -> str:
        """Advice if steps need too much GPU memory."""
        size, divides = self._data.videos_at_once, self._divides_total
        step = "the step stays the same" if divides else "with more optim.accumulation"
        advice = f"set data.batch_size below {size} ({step})" if size > 1 else "use a smaller model"
        said = str(error).strip().splitlines()[0].split(". ")[0]
        return (
            f"out of GPU memory after step {self.steps_done} ({said}): {advice}, or set "
            "run.activation_checkpointing=true, and run the command again: it continues from the "
            "last checkpoint"
        )

    def steps(self) -> Iterator[int]:
        """Yield the number of steps done before each step; ends early on a stop request."""
        self._saved_s, self._saved_step = time.monotonic(), self.steps_done
        self._period.start_clock()
        self._profile.start()
        while not self.is_complete and self._stopped_by is None:
            yield self.steps_done
        self.log.is_complete = self.is_complete
        if not self.is_complete:
            note_stop(self._stopped_by)
            self.log.line(
                f"{self._stopped_by}: stopped and saved after step "
                f"{self._saved_step} of {self.total_steps}; run the same command to continue"
            )
        if self._vectors is not None and (said := self._vectors.describe()):
            self.log.line(said)
        barrier(self.world)

    @property
    def is_complete(self) -> bool:
        return self.steps_done == self.total_steps or self._ends_early

    def end_early(self) -> None:
        """Make the current step, or the one before, the last. All ranks call."""
        self._ends_early = True

    @property
    def is_log_step(self) -> bool:
        """Whether the current step ends with a record."""
        return self._is_log_step(self.steps_done + 1)

    def batches(
        self, augment: AugmentConfig | None = None, tubelet: Tubelet | None = None
    ) -> Iterator[ClipBatch]:
        """This rank's micro-batches of all remaining steps; see `clip_batches`."""
        if tubelet is not None:
            self._vectors = VectorCount()
        return clip_batches(
            self.manifest,
            self._data,
            accumulation=self._plan.accumulation,
            world=self.world,
            seed=self.config.seed,
            start_step=self.steps_done,
            num_steps=self.total_steps,
            given_up=self._bad_videos.given_up,
            augment=augment,
            tubelet=tubelet,
        )

    def next(self, batches: Iterator[ClipBatch]) -> ClipBatch:
        """The next of `batches`; records waiting time and bad videos."""
        start = time.monotonic()
        try:
            with record_function("wait for videos"):
                batch = next(batches)
        except UnreadableDataError as error:  # report now, as no step will end any more
            self._bad_videos.note(error.bad)
            new = self._bad_videos.keep(self._bad_videos.take_fresh(), write=self.world.is_main)
            if self.world.is_main:
                raise
            # Each rank writes its own list: the others may be gone
            raise UnreadableDataError(
                f"{error}; not in bad_videos.csv: {', '.join(new)}"
            ) from error
        waited_s = time.monotonic() - start
        num_clips = self._plan.clips // self._plan.accumulation
        self._period.note_batch(batch.indices.tolist(), num_clips=num_clips, waited_s=waited_s)
        self._bad_videos.note(batch.bad)
        if self._vectors is not None:
            self._vectors.note(batch, repeats=self._data.repeats)
        self._notes += [(index, note) for index, note in batch.notes if note not in self._noted]
        return batch

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call backward() on, scaled in float16 runs."""
        return self._loss_scale.scaled(loss)

    def unscale(self, model: nn.Module) -> None:
        """Undo the loss scale in a model's gradients, after the last micro-batch."""
        self._loss_scale.unscale(model)

    def add(self, numbers: Mapping[str, Tensor]) -> Tensor:
        """Add a step's scalars, keyed by their names in the log -> scalar ``skip``.

        ``skip`` is 1 if any of them is not finite on any rank, else 0; pass it to `step_unless`.
        ``grad_norm`` must be among them; its maximum over a period is logged as well.
        """
        values = {name: value.detach().float() for name, value in numbers.items()}
        losses = [value for name, value in values.items() if name != "grad_norm"]
        both = torch.stack([torch.stack(losses).sum(), values["grad_norm"]])
        both = self._requests.exchange(both)  # now over all ranks
        overflow = self._loss_scale.can_mend(*both)
        verdict = self._bad.judge(both.sum(), overflow)
        skip = verdict
        if overflow is not None:
            skip = verdict.clamp(max=1)
            self._loss_scale.follow(overflow=verdict == OVERFLOW, skip=skip)
        self._period.end_step(values, verdict)
        if can_look_at_once(self.world.device):
            self._look()
        return skip

    def record(
        self, values: Record, *, prefix: str, figures: Mapping[str, Tensor | None] | None = None
    ) -> Record:
        """Log and return a record of the period: step, values, figures, means and rates.

        ``values`` are plain numbers. ``figures`` are scalar tensors of the current step, or None;
        they are averaged over ranks and become null if NaN or if the step was skipped. Means are
        over steps that were not skipped.
        """
        self._look()
        means = self._period.means(figures or {}, self.world)
        self._last_loss = means["loss"]
        counts: dict[str, float] = {"skipped_steps": sum(self._period.skipped)}
        if self._loss_scale.is_on:
            counts["loss_scale"] = self._loss_scale.value.item()
        rates = self._period.rates()
        # Rates come last; everything before them is identical in a repeated or resumed run
        record = {"step": self.steps_done + 1, **values, **means, **counts, **rates}
        self._period = Period(self.steps_done + 1)
        self.log.record(record, prefix=prefix)
        # Skip the first period, in which readers and caches start. One slow period is no reason
        if self._has_recorded:
            self._waits.append(rates["data_wait_fraction"])
        is_due = len(self._waits) >= _FEWEST_RECORDS and not self._has_warned
        if is_due and (waited := median(self._waits)) > _MUCH_WAITING:
            self.log.line(_WAITING.format(waited=waited))
            self._has_warned = True
        self._has_recorded = True
        return record

    def end_step(self, checkpoint: Callable[[], dict[str, Any]]) -> None:
        """Count the step; save when due, at the end, and before stopping.

        Raises FloatingPointError after too many consecutive bad steps, with a checkpoint from
        before the first of them.
        """
        self.steps_done += 1
        self._profile.end_step()
        self._saver.check()
        self.log.progress(self._last_loss)
        self._say_first_figures()
        stop, is_due = self._requests.heard()
        is_log_step = self._is_log_step(self.steps_done)
        # Ranks exchange details only if one of them has something to report
        is_reason = is_log_step or stop or is_due or self._bad.is_over or self._ends_early
        is_reason |= self.steps_done in self._history
        if self.world.size > 1 and not is_reason:
            return
        self._tell_each_other()
        if is_due or self.is_complete or self._stopped_by or self._bad.is_over:
            self._save(checkpoint)
        if self.steps_done in self._history and not self._bad.is_over:
            self._saver.save_to_look_at({**checkpoint(), "step": self.steps_done})
        if self._bad.is_over:
            barrier(self.world)  # an error here ends all ranks: let them finish saving first
            raise FloatingPointError(
                f"stopped after {self.config.max_bad_steps} steps in a row whose loss or gradient "
                f"was not finite; the newest checkpoint (step {self._bad.before[0]}) is from "
                "before them; try a lower optim.base_lr, a lower optim.clip_grad (such as 1) or "
                "run.precision=float32"
            )

    def _say_first_figures(self) -> None:
        """Print figures of the first steps if there is no record yet. The speed excludes the first
        step, in which readers start and kernels are compiled."""
        steps = self.steps_done - self._start_step
        if self._has_recorded or not self.world.is_main or steps not in (1, _FIRST_STEPS):
            return
        loss, now_s = self._period.own_loss(), time.monotonic()
        if steps == 1:
            self._first_s = now_s
        elif loss is not None:
            step_s, left = (now_s - self._first_s) / (steps - 1), self.total_steps - self.steps_done
            self.log.first_figures(loss, step=self.steps_done, step_s=step_s, steps_left=left)

    def _save(self, checkpoint: Callable[[], dict[str, Any]]) -> None:
        """Save the run; during bad steps, which change nothing, as of before the first."""
        self._look()
        step, rows = self.steps_done, self._period.rows
        if self._bad.in_a_row and (self._bad.is_over or not self.is_complete):
            if not (self._bad.is_over or self._stopped_by):
                return  # it is saved as soon as the bad steps are over
            step, rows = self._bad.before
        window = gather_objects([row.cpu() for row in rows], self.world)
        scale = {"loss_scale": self._loss_scale.state()} if self._loss_scale.is_on else {}
        self._saver.save({**checkpoint(), **scale, "step": step, "window": window})
        if self.is_complete or self._stopped_by or self._bad.is_over:
            self._saver.wait()
        self._requests.forget()
        self._saved_s, self._saved_step = time.monotonic(), step

    def _look(self) -> None:
        """Find and report the steps that the device skipped; synchronises."""
        period = self._period
        num_seen = len(period.skipped)
        if num_seen == len(period.rows):
            return
        flags = torch.stack(period.rows[num_seen:])[:, -1].tolist()
        for place, flag in enumerate(flags, start=num_seen):
            period.skipped.append(bool(flag))
            done = period.first_step + place
            if flag == OVERFLOW:
                self.log.line(
                    f"step {done + 1} skipped: its gradient overflows float16; the loss scale is "
                    f"now {self._loss_scale.value.item():g}"
                )
            if self._bad.note(skipped=flag == BAD, steps_done=done, rows=period.rows[:place]):
                parts = gather_objects(period.videos[place], self.world)
                videos = dict.fromkeys(index for part in parts for index in part)
                self.log.line(
                    f"step {done + 1} skipped: its loss or gradient is not finite "
                    f"({len(videos)} videos, named in log.txt)",
                    details=": " + ", ".join(self.manifest.name(index) for index in videos),
                )

    def _tell_each_other(self) -> None:
        """Share with all ranks which videos were bad or read with another decoder, and which signal
        requested a stop."""
        vectors = None if self._vectors is None else self._vectors.take()
        mine = (self._signal.name, self._notes, self._bad_videos.take_fresh(), vectors)
        self._notes = []
        told = gather_objects(mine, self.world)
        for name, notes, bad, _ in told:
            # Keep what arrived meanwhile: the others do not know of it yet
            self._stopped_by = self._stopped_by or name
            for line in self._bad_videos.report(bad, write=self.world.is_main):
                self.log.line(line)
            for index, note in notes:
                if note not in self._noted:
                    self._noted.add(note)
                    path = self.manifest.path(index)
                    decoder = "Pillow" if is_pictures(file_of(path)) else "PyAV"
                    self.log.line(f"decoded with {decoder}, like similar files: {path}: {note}")
        if self._vectors is not None:
            self._vectors.add([of for *_, of in told])

    def _own_requests(self) -> tuple[bool, bool]:
        """Whether this rank requests a stop, and (rank 0's clock) a checkpoint."""
        age_s = time.monotonic() - self._saved_s
        is_due = self.world.is_main and age_s >= self.config.checkpoint_every_minutes * 60
        return bool(self._signal), is_due

    def _is_log_step(self, steps_done: int) -> bool:
        return steps_done % self.config.log_every == 0 or steps_done == self.total_steps
