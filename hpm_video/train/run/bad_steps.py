"""The rule for steps whose loss or gradient is not finite: skipped, counted, and bounded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


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

    def judge(self, total: Tensor) -> Tensor:
        """Mean over processes of the sum of a step's metrics -> 1. if not finite, else 0.

        Both are scalars on the device, for which nothing waits.
        """
        is_bad = ~total.isfinite()
        is_bad |= self._on_device >= self.max_in_a_row
        skip = is_bad.float()
        self._on_device = (self._on_device + 1) * skip
        return skip

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
