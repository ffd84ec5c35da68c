"""A test kernel that shows whether Triton can build and run kernels."""

import torch
import triton
import triton.language as tl


@triton.jit
def _double(values, BLOCK: tl.constexpr):  # noqa: N803  # Triton's way to name constants
    place = tl.arange(0, BLOCK)
    tl.store(values + place, 2 * tl.load(values + place))


def run(device: torch.device) -> None:
    """Launch the kernel on a device without synchronising; raises Triton's errors."""
    values = torch.ones(16, device=device)
    with torch.cuda.device_of(values):
        _double[(1,)](values, BLOCK=16)
