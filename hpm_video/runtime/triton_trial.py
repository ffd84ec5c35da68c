"""A kernel that shows whether Triton can build and run any."""

import torch
import triton
import triton.language as tl


@triton.jit
def _double(values, BLOCK: tl.constexpr):  # noqa: N803  # Triton's way to name constants
    place = tl.arange(0, BLOCK)
    tl.store(values + place, 2 * tl.load(values + place))


def run(device: torch.device) -> None:
    """Double a few numbers on a device; raises what Triton raises, or RuntimeError."""
    values = torch.ones(16, device=device)
    _double[(1,)](values, BLOCK=16)
    if not bool((values == 2).all()):
        raise RuntimeError("a kernel that doubles numbers gave others")
