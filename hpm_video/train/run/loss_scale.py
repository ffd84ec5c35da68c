"""Loss scaling: what keeps the gradients of float16 runs from vanishing below its range."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from hpm_video.config.values import Precision

# Those of torch.amp.GradScaler, which asks the host at every step, and has no least scale
_FIRST, _STEPS_TO_GROW = 2.0**16, 2000
_LEAST, _MOST = 1.0, 2.0**24


class LossScale:
    """The factor of a loss before its backward pass, by which gradients are divided afterwards
    (Mixed Precision Training, arXiv 1710.03740, section 3.2).

    It is halved where a gradient overflows, and doubled after 2,000 steps without. It stays on the
    device, which decides alone. In other precisions than float16 nothing is scaled.
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
        """What a checkpoint holds of it."""
        return {"value": self.value, "good_steps": self._good_steps}

    def scaled(self, loss: Tensor) -> Tensor:
        """A loss to call backward() on."""
        return loss * self.value if self.is_on else loss

    @torch.no_grad()
    def unscale(self, module: nn.Module) -> None:
        """Divide the gradients of a model, which may be spread over processes."""
        found = [each.grad for each in module.parameters() if each.grad is not None]
        if self.is_on and found:
            own = [each.to_local() if isinstance(each, DTensor) else each for each in found]
            torch._foreach_mul_(own, self.value.reciprocal())  # exact: a power of two

    def can_mend(self, losses: Tensor, norm: Tensor) -> Tensor | None:
        """Whether a lower scale would have made the step a good one, as far as one can tell: its
        losses are finite, its gradient's norm is not. Scalars on the device; None if it is off."""
        if not self.is_on:
            return None
        return losses.isfinite() & ~norm.isfinite() & (self.value > _LEAST)

    def follow(self, *, overflow: Tensor, skip: Tensor) -> None:
        """Note a step that was ``skip``ped (1.) or not (0.), because of an ``overflow`` or not;
        scalars on the device. One that was skipped for another reason moves nothing."""
        good_steps = (self._good_steps + (skip == 0)).where(~overflow, 0)
        grow = good_steps >= _STEPS_TO_GROW
        larger = torch.where(grow, self.value * 2, self.value).clamp(max=_MOST)
        # In place: a CUDA graph of the step knows no other tensor
        self.value.copy_(torch.where(overflow, self.value / 2, larger))
        self._good_steps = good_steps.where(~grow, 0)
