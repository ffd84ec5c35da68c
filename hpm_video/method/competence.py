"""The competence ramp: the hard ratio follows what the student has learnt instead of time."""

import torch
from torch import Tensor

from hpm_video.config import MaskingConfig
from hpm_video.method.losses import rank_accuracy
from hpm_video.method.step import PretrainStep
from hpm_video.runtime.distributed import World, mean_over_processes

CHANCE = 0.5  # rank accuracy of a random predictor
KEPT = 0.98  # momentum of the running mean


class Competence:
    """Running mean of the student's rank accuracy, kept on the device without synchronisation.

    value: float64 scalar, equal on all ranks. It starts at chance, or at ``kept`` from a
    checkpoint. Skipped steps, and steps without pairs to rank, leave it unchanged.
    """

    def __init__(self, masking: MaskingConfig, world: World, kept: Tensor | None = None) -> None:
        self._masking, self._world = masking, world
        start = torch.tensor(CHANCE, dtype=torch.float64) if kept is None else kept
        self.value = start.to(world.device)

    @property
    def hard_ratio(self) -> Tensor:
        """Hard ratio of the next mask, a float64 scalar.

        It goes from masking.hard_ratio_start to hard_ratio_end while the running mean goes from
        masking.competence_low to competence_high.
        """
        return competent_hard_ratio(self._masking, self.value)

    def describe(self, *, is_new: bool) -> str:
        """One log line on the ramp and the running mean; synchronises with the device.
        ``is_new``: the run has just begun."""
        low, high = self._masking.competence_low, self._masking.competence_high
        since = "the value of chance" if is_new else "from the checkpoint"
        return (
            f"masks get harder as the student's rank accuracy rises from {low:g} to {high:g}; its "
            f"running mean is {self.value.item():.3f}, {since}"
        )

    def follow(self, accuracy: Tensor, *, skip: Tensor) -> None:
        """Add this rank's accuracy of a step; NaN if it had no pairs. ``skip``: 1 ignores it."""
        accuracy = mean_over_processes(accuracy.to(torch.float64, copy=True), self._world)
        moved = KEPT * self.value + (1 - KEPT) * accuracy
        self.value = torch.where((skip > 0) | moved.isnan(), self.value, moved)


def competent_hard_ratio(masking: MaskingConfig, value: Tensor) -> Tensor:
    """Hard ratio under masking.ramp=competence, given the running mean of the rank accuracy."""
    low, high = masking.competence_low, masking.competence_high
    start, end = masking.hard_ratio_start, masking.hard_ratio_end
    return start + (end - start) * ((value - low) / (high - low)).clamp(0, 1)


def competence_of(
    masking: MaskingConfig, world: World, kept: Tensor | None = None
) -> Competence | None:
    """The running mean for a run with these settings; None unless masking.ramp=competence."""
    return (
        Competence(masking, world, kept) if masking.mines and masking.ramp == "competence" else None
    )


def student_accuracy(step: PretrainStep) -> Tensor:
    """Rank accuracy of the student's predictor (of two, the encoded one) in a step: scalar."""
    assert step.predicted is not None and step.measured is not None
    return rank_accuracy(step.predicted, step.measured)
