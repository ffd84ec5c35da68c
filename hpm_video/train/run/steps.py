"""A run's steps: what is kept of those since the last record, and which of them do not count."""

import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpm_video.runtime.distributed import World, mean_over_processes

# Verdicts on a step: skipped are bad ones, and those whose gradient a lower loss scale may mend.
GOOD, BAD, OVERFLOW = 0.0, 1.0, 2.0


class Period:
    """What a run keeps of the steps since its last record.

    names: of the numbers that every step gives, once one has given them.
    rows: one (M + 1,) a step, on the device: these M numbers, then GOOD, BAD or OVERFLOW.
    skipped: whether it was not a good one, of those steps that the host has looked at.
    videos: which each step was of, on this process; not known of steps before a resume.
    first_step: steps done before the first of them.
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
        """Rates are from here on."""
        self._started_s = time.monotonic()
        self._waited_s, self._clips = 0.0, 0

    def note_batch(self, videos: list[int], *, num_clips: int, waited_s: float) -> None:
        """A batch of this process's videos has come, of ``num_clips`` over all processes."""
        self._waited_s += waited_s
        self._clips += num_clips
        self._step_videos += videos

    def end_step(self, numbers: Mapping[str, Tensor], verdict: Tensor) -> None:
        """Count the step whose batches were noted, with its scalars on the device."""
        self.names = list(numbers)
        self.rows.append(torch.stack([*numbers.values(), verdict]))
        self.videos.append(self._step_videos)
        self._step_videos = []

    def means(self, figures: Mapping[str, Tensor | None], world: World) -> dict[str, float | None]:
        """Means over processes of the numbers, over the steps that were not skipped; the highest
        ``grad_norm``; figures of the last step. None where that is not a number, and figures where
        the last step was skipped. Waits for the device and for the other processes."""
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
        """Mean loss of this process's steps that were not skipped; waits for the device."""
        losses, verdicts = torch.stack(self.rows)[:, [self.names.index("loss"), -1]].T
        loss = losses[verdicts == GOOD].mean().item()
        return loss if math.isfinite(loss) else None

    def rates(self) -> dict[str, float]:
        """Clips per second and the share of the time that went into waiting for them."""
        elapsed_s = max(time.monotonic() - self._started_s, 1e-9)
        return {
            "clips_per_second": round(self._clips / elapsed_s, 2),
            "data_wait_fraction": round(self._waited_s / elapsed_s, 4),
        }


def own_rows(window: list[list[Tensor]], world: World) -> list[Tensor]:
    """A period's rows of this process, from a checkpoint's of all; their means if there were more
    or fewer processes. (P, steps) x (M + 1,) -> steps x (M + 1,), on this process's device."""
    if len(window) == world.size:
        rows = window[world.rank]
    else:
        rows = [torch.stack(rows).mean(dim=0) for rows in zip(*window, strict=True)]
    return [row.to(world.device) for row in rows]


class BadSteps:
    """Skips bad steps on the device, and counts on the host how many came in a row.

    The device decides for itself, so that the host need not wait for it at every step, and after
    ``max_in_a_row`` bad steps it skips all others too: whenever the host learns of it, nothing has
    moved since before the first of them.

    in_a_row: bad steps up to the latest one that the host was told of, at most max_in_a_row.
    before: steps done, and their rows since the last record, before the first of these.
    """

    def __init__(self, device: torch.device, *, max_in_a_row: int) -> None:
        self.max_in_a_row = max_in_a_row
        self.in_a_row = 0
        self.before: tuple[int, list[Tensor]] = (0, [])
        self._on_device = torch.zeros((), device=device)  # as in_a_row, and ahead of it

    @property
    def is_over(self) -> bool:
        """Whether the host knows of too many bad steps in a row."""
        return self.in_a_row >= self.max_in_a_row

    def judge(self, total: Tensor, overflow: Tensor | None = None) -> Tensor:
        """Mean over processes of the sum of a step's metrics -> BAD if not finite, else GOOD.

        ``overflow``: whether only the loss scale is to blame; then it is OVERFLOW. All are scalars
        on the device, for which nothing waits.
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
        """Count the step after ``steps_done`` ones, of which ``rows`` are since the last record.

        Returns whether it was a bad one, and not only one after too many of them.
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
    """``optimizer.step()``, without any effect where the device finds ``skip`` (scalar) to be 1."""
    # What a GradScaler sets: fused optimizers read it on the device. Weights, moments and their
    # counters then stay as they are, whatever the gradients.
    optimizer.found_inf = skip  # type: ignore[attr-defined]
    optimizer.step()


def running_means(model: nn.Module) -> list[Tensor]:
    """The buffers of a model's batch norms, which its forward pass moves."""
    norms = [module for module in model.modules() if isinstance(module, _NormBase)]
    return [buffer for norm in norms for buffer in norm.buffers()]


@torch.no_grad()
def restore_if(skip: Tensor, values: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Set values back to what they were where the device finds ``skip`` (scalar) to be 1."""
    for value, old in zip(values, before, strict=True):
        value.copy_(torch.where(skip > 0, old, value))
