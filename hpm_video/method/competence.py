"""Masks that wait for the student: the hard ratio follows what it has learnt, not the time."""

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method.losses import rank_accuracy
from hpm_video.method.step import PretrainStep
from hpm_video.runtime.distributed import World, mean_over_processes

CHANCE = 0.5  # rank accuracy of a predictor that knows nothing
KEPT = 0.98  # share of itself that the running mean keeps at each step


class Competence:
    """Running mean of the rank accuracy of a run's student, on the device, for which nothing waits.

    value: float64 scalar, the same on all processes. It starts at chance, or at ``kept``, the value
    of a checkpoint. Steps that are skipped leave it as it is.
    """

    def __init__(self, masking: MaskingConfig, world: World, kept: Tensor | None = None) -> None:
        self._masking, self._world = masking, world
        start = torch.tensor(CHANCE, dtype=torch.float64) if kept is None else kept
        self.value = start.to(world.device)

    @property
    def hard_ratio(self) -> Tensor:
        """That of the next mask, a float64 scalar: from masking.hard_ratio_start to hard_ratio_end
        while the value goes from masking.competence_low to competence_high."""
        return competent_hard_ratio(self._masking, self.value)

    def describe(self, *, is_new: bool) -> str:
        """In a line what masks wait for, and where the running mean stands; waits for the device.
        ``is_new``: it has just begun."""
        low, high = self._masking.competence_low, self._masking.competence_high
        since = "which starts at chance" if is_new else "as in the checkpoint"
        return (
            f"masks become hard as the student's rank accuracy rises from {low:g} to {high:g}; its "
            f"running mean is {self.value.item():.3f}, {since}"
        )

    def follow(self, accuracy: Tensor, *, skip: Tensor) -> None:
        """Take in a step's rank accuracy on this process. ``skip``: scalar, 1 leaves it out."""
        accuracy = mean_over_processes(accuracy.to(torch.float64, copy=True), self._world)
        moved = KEPT * self.value + (1 - KEPT) * accuracy
        self.value = torch.where(skip > 0, self.value, moved)


def competent_hard_ratio(masking: MaskingConfig, value: Tensor) -> Tensor:
    """The hard ratio of a mask that waits for the student, at a running mean, a scalar."""
    low, high = masking.competence_low, masking.competence_high
    start, end = masking.hard_ratio_start, masking.hard_ratio_end
    return start + (end - start) * ((value - low) / (high - low)).clamp(0, 1)


def competence_of(
    masking: MaskingConfig, world: World, kept: Tensor | None = None
) -> Competence | None:
    """Of a run with these settings; None where its masks do not ask for it."""
    return (
        Competence(masking, world, kept) if masking.mines and masking.ramp == "competence" else None
    )


def student_accuracy(step: PretrainStep) -> Tensor:
    """Rank accuracy of a step's student, of its encoded predictor where it has one: scalar."""
    assert step.predicted is not None and step.measured is not None
    return rank_accuracy(step.predicted, step.measured)
