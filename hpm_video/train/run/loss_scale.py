"""Loss scaling, which keeps gradients of float16 runs from underflowing."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hpm_video.config.values import Precision

# Values of torch.amp.GradScaler, which synchronises at every step and has no minimum scale
_FIRST, _STEPS_TO_GROW = 2.0**16, 2000
_LEAST, _MOST = 1.0, 2.0**24


class LossScale:
    """Multiplies losses before the backward pass and divides gradients afterwards (Mixed Precision
    Training, arXiv 1710.03740, section 3.2).

    The scale halves when a gradient overflows and doubles after 2,000 steps without overflow. It
    lives on the device, without synchronisation. In other precisions than float16 it does nothing.
    """

    def __init__(
        self,
        precision: Precision,
        device: torch.device,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.is_on = precision == "float16"
        state = state or {"value": torch.tensor(_FIRST), "good_steps": torch.tensor(0)}
        self.value, self._good_steps = (state[name].to(device) for name in ("value", "good_steps"))

    def state(self) -> dict[str, Tensor]:
        """State for a checkpoint."""
        return {"value": self.value, "good_steps": self._good_steps}

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call backward() on."""
        return loss * self.value if self.is_on else loss

    @torch.no_grad()
    def unscale(self, module: nn.Module) -> None:
        """Divide the gradients of a model, which may be sharded."""
        found = [each.grad for each in module.parameters() if each.grad is not None]
        if self.is_on and found:
            own = [each.to_local() if isinstance(each, DTensor) else each for each in found]
            torch._foreach_mul_(own, self.value.reciprocal())  # exact: a power of two

    def can_mend(self, losses: Tensor, norm: Tensor) -> Tensor | None:
        """Whether a lower scale might have made the step good: finite losses, but not the gradient
        norm. Scalars on the device; None if scaling is off."""
        if not self.is_on:
            return None
        return losses.isfinite() & ~norm.isfinite() & (self.value > _LEAST)

    def follow(self, *, overflow: Tensor, skip: Tensor) -> None:
        """Update the scale after a step, given scalars ``skip`` and ``overflow`` (0 or 1) on the
        device. Steps skipped for another reason change nothing."""
        good_steps = (self._good_steps + (skip == 0)).where(~overflow, 0)
        grow = good_steps >= _STEPS_TO_GROW
        larger = torch.where(grow, self.value * 2, self.value).clamp(max=_MOST)
        # In place, because a CUDA graph of the step refers to this tensor
        self.value.copy_(torch.where(overflow, self.value / 2, larger))
        self._good_steps = good_steps.where(~grow, 0)
