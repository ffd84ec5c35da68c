"""Weights cast together: what autocast would make of each, and their gradients."""

from unittest.mock import patch

import pytest
import torch

from hpm_video.models.weight_casts import cast_together
from hpm_video.runtime import gpu_kernels


def _weights() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((3, 4), (4,), (2, 3))]
    return [weights[0].requires_grad_(), weights[1], weights[2].requires_grad_()]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_cast_together_are_those_cast_one_by_one(dtype: torch.dtype) -> None:
    weights = _weights()
    with (
        patch.object(gpu_kernels, "is_eager_gpu", lambda device: True),
        torch.autocast("cpu", dtype),
    ):
        cast = cast_together(weights)
    for mine, weight in zip(cast, weights, strict=True):
        assert torch.equal(mine, weight.to(dtype))
    ((3 * cast[0]).sum() + cast[1].sum()).backward()
    assert weights[0].grad is not None and weights[0].grad.dtype == torch.float32
    assert torch.equal(weights[0].grad, torch.full((3, 4), 3.0))
    assert weights[1].grad is None  # wants none
    assert weights[2].grad is None  # was not used


def test_weights_stay_as_they_are_elsewhere() -> None:
    weights = _weights()
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_together(weights) is weights  # a CPU
    with patch.object(gpu_kernels, "is_eager_gpu", lambda device: True):
        assert cast_together(weights) is weights  # no autocast
        with torch.autocast("cpu", torch.bfloat16):
            low = [weight.bfloat16() for weight in weights]
            assert cast_together(low) is low
