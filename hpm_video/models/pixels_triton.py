"""A Triton kernel of `hpm_video.models.pixels`: bytes to standardised colours."""

import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit
def _standardize(bytes_ptr, mean_ptr, std_ptr, result_ptr, num_values, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < num_values
    mean = tl.load(mean_ptr + place % 3)
    std = tl.load(std_ptr + place % 3)
    # As PyTorch divides; `/` may be off by one digit
    pixel = tl.div_rn(tl.load(bytes_ptr + place, mask=inside, other=0).to(tl.float32), 255.0)
    result = tl.div_rn(pixel - mean, std)
    tl.store(result_ptr + place, result.to(result_ptr.dtype.element_ty), mask=inside)


def standardize(patches: Tensor, mean: Tensor, std: Tensor, result: Tensor) -> None:
    """Fill the result with (x / 255 - mean) / std of bytes whose last dimension is of colours."""
    grid = (triton.cdiv(patches.numel(), _BLOCK),)
    _standardize[grid](patches, mean, std, result, patches.numel(), BLOCK=_BLOCK)
