"""Bookkeeping of steps: figures since the last record, and skipped steps."""

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpm_video.runtime.distributed import World, mean_over_processes

# Verdicts on a step. Bad steps and overflows (to be mended by a lower loss scale) are skipped.
GOOD, BAD, OVERFLOW = 0.0, 1.0, 2.0


class Period:
    """Steps since the last record.

    names: the M figures of each step, known from the first step on.
    rows: (M + 1,) per step, on the device: the figures, then GOOD, BAD or OVERFLOW.
    skipped: whether each step was skipped, for the steps that the host knows of.
    videos: the videos of each step on this rank; unknown for steps before a resume.
    first_step: number of steps done before this period.
    """

    def __init__(self, steps_done: int, rows: Sequence[Tensor] = ()) -> None:
        self.names: list[str] = []
        self.rows = list(rows)
        self.skipped = [bool(row[-1]) for row in rows]
        self.videos: list[list[int]] = [[] for _ in rows]
        self.first_step = steps_done - len(rows)
        self._step_videos: list[int] = []
        self.start_clock()

    def start_clock(self) -> None:
        """Start measuring rates here."""
        self._started_s = time.monotonic()
        self._waited_s, self._clips = 0.0, 0

    def note_batch(self, videos: list[int], *, num_clips: int, waited_s: float) -> None:
        """Record a batch: this rank's videos, and ``num_clips`` clips over all ranks."""
        self._waited_s += waited_s
        self._clips += num_clips
        self._step_videos += videos

    def end_step(self, numbers: Mapping[str, Tensor], verdict: Tensor) -> None:
        """Record a step after its batches; ``numbers`` are scalars on the device."""
        self.names = list(numbers)
        self.rows.append(torch.stack([*numbers.values(), verdict]))
        self.videos.append(self._step_videos)
        self._step_videos = []

    def means(self, figures: Mapping[str, Tensor | None], world: World) -> dict[str, float | None]:
        """Means over ranks and over steps that were not skipped, the highest ``grad_norm``, and the
        figures of the last step. NaN becomes None, as do the figures of a skipped last step.
        Synchronises with the device and the other ranks."""
        steps = zip(self.rows, self.skipped, strict=True)
        rows = [row for row, skipped in steps if not skipped]
        table = torch.stack(rows or [torch.full_like(self.rows[0], math.nan)])[:, :-1]
        highest_norm = table[:, self.names.index("grad_norm")].max()
        known = {name: value for name, value in figures.items() if value is not None}
        numbers = torch.stack([*table.mean(dim=0), highest_norm, *known.values()])
        means = {
            name: number if math.isfinite(number) else None
            for name, number in zip(
                [*self.names, "grad_norm_max", *known],
                mean_over_processes(numbers, world).tolist(),
                strict=True,
            )
        }
        if self.skipped[-1]:
            known = {}
        return {**means, **{name: means[name] if name in known else None for name in figures}}

    def own_loss(self) -> float | None:
        """This rank's mean loss over steps that were not skipped; synchronises."""
        losses, verdicts = torch.stack(self.rows)[:, [self.names.index("loss"), -1]].T
        loss = losses[verdicts == GOOD].mean().item()
        return loss if math.isfinite(loss) else None

    def rates(self) -> dict[str, float]:
        """Clips per second, and the share of time spent waiting for data."""
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        return {
            "clips_per_second": round(self._clips / elapsed_s, 2),
            "data_wait_fraction": round(self._waited_s / elapsed_s, 4),
        }


def own_rows(window: list[list[Tensor]], world: World) -> list[Tensor]:
    """This rank's rows of a period, from a checkpoint with those of all P ranks.

    (P, steps) x (M + 1,) -> steps x (M + 1,), on this rank's device. Rows are averaged if the
    number of ranks has changed.
    """
    if len(window) == world.size:
        rows = window[world.rank]
    else:
        rows = [torch.stack(rows).mean(dim=0) for rows in zip(*window, strict=True)]
    return [row.to(world.device) for row in rows]


class BadSteps:
    """Skips bad steps on the device and counts consecutive ones on the host.

    The device decides, so the host need not synchronise at every step. After ``max_in_a_row`` bad
    steps the device skips all later steps too. When the host finds out, the weights are still those
    from before the first bad step.

    in_a_row: consecutive bad steps that the host knows of, at most max_in_a_row.
    before: number of steps, and their rows since the last record, before the first of them.
    """

    def __init__(self, device: torch.device, *, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.before: tuple[int, list[Tensor]] = (0, [])
        self._on_device = torch.zeros((), device=device)  # in_a_row, ahead of the host's

    @property
    def is_over(self) -> bool:
        """Whether the host knows of max_in_a_row consecutive bad steps."""
        return self.in_a_row >= self.max_in_a_row

    def judge(self, total: Tensor, overflow: Tensor | None = None) -> Tensor:
        """Judge the sum of a step's metrics, averaged over ranks: BAD if not finite, else GOOD.

        ``overflow``: 1 if the loss scale caused it; the verdict is then OVERFLOW. All are scalars
        on the device, without synchronisation.
        """
        is_over = self._on_device >= self.max_in_a_row
        is_bad = ~total.isfinite()
        if overflow is not None:
            is_bad &= ~overflow
        is_bad |= is_over
        verdict = is_bad.float()
        self._on_device = (self._on_device + 1) * verdict
        if overflow is not None:
            verdict = verdict + OVERFLOW * (overflow & ~is_over)
        return verdict

    def note(self, *, skipped: bool, steps_done: int, rows: list[Tensor]) -> bool:
        """Count a step after ``steps_done`` others, of which ``rows`` are since the last record.

        Returns whether the step itself was bad, rather than skipped after too many bad ones.
        """
        if self.is_over:
            return False
        if not skipped:
            self.in_a_row = 0
        elif self.in_a_row == 0:
            self.in_a_row, self.before = 1, (steps_done, rows)
        else:
            self.in_a_row += 1
        return skipped


def step_unless(skip: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()``, without effect if ``skip`` (scalar on the device) is 1."""
    # GradScaler's flag, which fused optimizers read on the device: weights, moments and counters
    # then stay unchanged, whatever the gradients.
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def running_means(model: nn.Module) -> list[Tensor]:
    """The running statistics of a model's batch norms, which change in its forward pass."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers()]


@torch.no_grad()
def restore_if(skip: Tensor, values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Restore values in place if ``skip`` (scalar on the device) is 1."""
    for value, old in zip(values, before, strict=True):
        value.copy_(torch.where(skip > 0, old, value))
