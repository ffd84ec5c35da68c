"""The bookkeeping that the loops of pre-training and fine-tuning share: metrics, rates, seeds,
and when to log, save and stop. What is computed stays in the loops themselves."""

from __future__ import annotations

import math
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpm_video.checkpoint import save_checkpoint
from hpm_video.config import RunConfig
from hpm_video.data.bad_videos import BadVideos, UnreadableDataError
from hpm_video.data.loader import ClipBatch
from hpm_video.distributed import World, barrier, gather_objects, mean_over_processes
from hpm_video.logs import Record, RunLog
from hpm_video.run_folder import release_run_folder


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which models run: bfloat16 where asked for, else float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def seed_of(*parts: int) -> int:
    """A 63-bit seed that depends on every part, e.g. (seed, step): nothing to save for a resume."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Run:
    """One training run in its folder, from its first or a later step to its last.

    for step in run.steps():
        batch = run.next(batches)
        ...
        run.add([loss, grad_norm])
        if run.is_log_step:
            run.record({...})
        run.end_step(checkpoint)

    Per-step numbers stay on the device until a record is due: one sync per period. Those of an
    unfinished period are part of a checkpoint, so that a resume records the same means.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        world: World,
        *,
        metrics: tuple[str, ...],
        bad_videos: BadVideos,
        total_steps: int,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.config, self.folder, self.world = config, folder, world
        self.metrics = metrics
        self.bad_videos = bad_videos
        self.total_steps = total_steps
        self.steps_done: int = state["step"] if state else 0
        self._window: list[Tensor] = (
            [row.to(world.device) for row in state["window"]] if state else []
        )
        self._stopping = False
        self._last_loss: float | None = None
        self._exit = ExitStack()

    def __enter__(self) -> Run:
        self._exit.callback(release_run_folder, self.folder)
        self.log = self._exit.enter_context(
            RunLog(
                self.folder,
                is_main=self.world.is_main,
                start_step=self.steps_done,
                total_steps=self.total_steps,
            )
        )
        self._signal = self._exit.enter_context(_stop_on_signal())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            _end_workers()
        self._exit.__exit__(kind, error, trace)

    def steps(self) -> Iterator[int]:
        """Number of steps done before each step of the run; ends early when asked to stop."""
        self._saved_s = self._recorded_s = time.monotonic()
        self._waited_s, self._clips = 0.0, 0
        while not self.is_complete and not self._stopping:
            yield self.steps_done
        if not self.is_complete:
            self.log.line(
                f"{self._signal.name or 'signal'}: stopped and saved after step "
                f"{self.steps_done} of {self.total_steps}; the same command continues"
            )
        barrier(self.world)

    @property
    def is_complete(self) -> bool:
        return self.steps_done == self.total_steps

    @property
    def is_log_step(self) -> bool:
        """Whether the step in progress ends with a record."""
        return self._is_log_step(self.steps_done + 1)

    def next(self, batches: Iterator[ClipBatch], num_clips: int) -> ClipBatch:
        """The next batch, of ``num_clips`` over all processes; notes the wait and bad videos."""
        start = time.monotonic()
        try:
            batch = next(batches)
        except UnreadableDataError as error:  # no step ends any more, where they are reported
            self.bad_videos.note(error.bad)
            self.bad_videos.keep(self.bad_videos.take_fresh(), write=self.world.is_main)
            raise
        self._waited_s += time.monotonic() - start
        self._clips += num_clips
        self.bad_videos.note(batch.bad)
        return batch

    def add(self, values: list[Tensor]) -> None:
        """One step's metrics, scalar tensors in the order of their names."""
        self._window.append(torch.stack([value.detach().float() for value in values]))

    def record(self, values: Record, *, prefix: str) -> None:
        """Append step, the metrics' means, ``values`` and the rates of the period to the logs."""
        means = mean_over_processes(torch.stack(self._window).mean(dim=0), self.world).tolist()
        self._window.clear()
        record = dict(zip(self.metrics, means, strict=True))
        self._check_finite(record, self.steps_done + 1)
        self._last_loss = record["loss"]
        elapsed_s = max(time.monotonic() - self._recorded_s, 1e-9)
        rates = {
            "clips_per_second": round(self._clips / elapsed_s, 2),
            "data_wait_fraction": round(self._waited_s / elapsed_s, 4),
        }
        self._recorded_s, self._waited_s, self._clips = time.monotonic(), 0.0, 0
        # Rates come last: everything before them is identical in a repeated or resumed run.
        self.log.record({"step": self.steps_done + 1, **values, **record, **rates}, prefix=prefix)

    def end_step(self, checkpoint: Callable[[], dict[str, Any]]) -> None:
        """Count the step; save when it is time, at the end, and before stopping."""
        self.steps_done += 1
        self.log.progress(self._last_loss)
        # Several processes agree, and save, only where a record has just emptied every window.
        if self.world.size > 1 and not self._is_log_step(self.steps_done):
            return
        self._agree()
        if not self.world.is_main:
            return
        is_due = time.monotonic() - self._saved_s >= self.config.checkpoint_every_minutes * 60
        if is_due or self.is_complete or self._stopping:
            window = [row.cpu() for row in self._window]
            if window:
                means = torch.stack(window).mean(dim=0).tolist()
                self._check_finite(dict(zip(self.metrics, means, strict=True)), self.steps_done)
            state = {**checkpoint(), "step": self.steps_done, "window": window}
            save_checkpoint(self.folder / "checkpoints", state, keep=self.config.keep_checkpoints)
            self._saved_s = time.monotonic()

    def _agree(self) -> None:
        """Tell all processes which videos were bad and whether one was asked to stop."""
        mine = (bool(self._signal), self.bad_videos.take_fresh())
        for asked_to_stop, bad in gather_objects(mine, self.world):
            self._stopping |= asked_to_stop
            for line in self.bad_videos.report(bad, write=self.world.is_main):
                self.log.line(line)

    def _is_log_step(self, steps_done: int) -> bool:
        return steps_done % self.config.log_every == 0 or steps_done == self.total_steps

    def _check_finite(self, metrics: Mapping[str, float], step: int) -> None:
        broken = [name for name, value in metrics.items() if not math.isfinite(value)]
        if broken:
            raise FloatingPointError(
                f"{', '.join(broken)} not finite up to step {step}: the newest "
                "checkpoint is from before; a lower optim.base_lr, optim.clip_grad or "
                "run.precision=float32 may help"
            )


def _end_workers() -> None:
    """End the loader's workers, which an error's traceback would keep alive.

    They ignore SIGTERM, so at its exit Python would wait for them for ever. Being daemons, they
    would be ended there anyway. torch's SIGCHLD handler would take their end for a crash.
    """
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
            child.join()
    signal.signal(signal.SIGCHLD, handler)


class _StopFlag:
    """True once a signal came that ends jobs; the loop reads it at the end of a step."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextmanager
def _stop_on_signal() -> Iterator[_StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts at once."""
    flag = _StopFlag()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def handler(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield flag
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
