"""Triton kernels of models against the formulas in float64; see `interpreter`."""

from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpm_video.models.pixels import as_floats, standardize
from hpm_video.models.projections import gelu_of_linear, heads_of_linear
from hpm_video.models.residual import add_and_norm
from hpm_video.models.vit import IMAGENET_MEAN, IMAGENET_STD
from hpm_video.runtime import gpu_kernels

LOW = [torch.bfloat16, torch.float16]
_LAYER = nn.Linear(1, 1)  # as it is: no adapter in its place
STEP = {torch.float32: 1e-5, torch.float16: 2**-9, torch.bfloat16: 2**-6}


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with (
        patch.object(gpu_kernels, "runs_triton", lambda device: True),
        patch.object(gpu_kernels, "PARTS", 3),
    ):
        yield


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _near(ours: Tensor, true: Tensor, dtype: torch.dtype) -> bool:
    """Within the rounding of a precision, relative to the largest number."""
    return bool((ours.double() - true).abs().max() <= STEP[dtype] * true.abs().max())


@pytest.mark.parametrize("dtype", LOW)
@pytest.mark.parametrize("has_branch", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 12), (1, 1, 1), (3, 7, 100), (2, 17, 512), (1, 3, 1408)])
def test_residual_sum_and_norm(
    shape: tuple[int, ...], has_branch: bool, dtype: torch.dtype
) -> None:
    norm = nn.LayerNorm(shape[-1], eps=1e-6)
    with torch.no_grad():
        norm.weight.copy_(_random(shape[-1], seed=1))
        norm.bias.copy_(_random(shape[-1], seed=2))
    x = (3 + _random(*shape, seed=3)).requires_grad_()
    branch = _random(*shape, seed=4).to(dtype).requires_grad_() if has_branch else None
    weights = _random(*shape, seed=5), _random(*shape, seed=6)
    with torch.autocast("cpu", dtype):
        total, normed = add_and_norm(x, branch, norm)
    assert total.dtype == torch.float32 and normed.dtype == dtype
    inputs = [x, *norm.parameters()] + ([branch] if has_branch else [])
    ours = torch.autograd.grad((total * weights[0] + normed * weights[1]).sum(), inputs)

    exact = [each.detach().double().requires_grad_() for each in inputs]
    true_total = exact[0] + (exact[3] if has_branch else 0)
    true = F.layer_norm(true_total, shape[-1:], exact[1], exact[2], 1e-6)
    assert _near(total, true_total, torch.float32)
    assert _near(normed, true, dtype)
    # The gradient of the norm comes in its precision
    weighted = true_total * weights[0] + true * weights[1].to(dtype)
    expected = torch.autograd.grad(weighted.sum(), exact)
    for mine, other, given in zip(ours, expected, inputs, strict=True):
        assert mine.dtype == given.dtype and mine.shape == given.shape
        assert _near(mine, other, given.dtype)


@pytest.mark.parametrize("used", ["total", "normed"])
def test_either_may_be_all_that_is_used(used: str) -> None:
    norm, x, branch = nn.LayerNorm(12), _random(2, 5, 12), _random(2, 5, 12, seed=1).bfloat16()
    x.requires_grad_(), branch.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(x, branch, norm)
    weights = _random(2, 5, 12, seed=2)
    ((total if used == "total" else normed) * weights).sum().backward()
    if used == "total":
        assert torch.equal(x.grad, weights) and torch.equal(branch.grad, weights.bfloat16())
        assert norm.weight.grad is None
    else:
        exact = (x.detach().double() + branch.detach().double()).requires_grad_()
        true = F.layer_norm(exact, (12,))
        (true * weights.bfloat16()).sum().backward()
        assert _near(x.grad, exact.grad, torch.float32)
        assert _near(branch.grad, x.grad.double(), torch.bfloat16)


def test_float32_norms_where_they_are_asked_for() -> None:
    norm, x = nn.LayerNorm(24), _random(2, 5, 24)
    with torch.autocast("cpu", torch.bfloat16):
        total, normed = add_and_norm(x, None, norm, dtype=torch.float32)
    assert normed.dtype == torch.float32 and torch.equal(total, x)
    assert _near(normed, norm.double()(x.double()), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize("shape", [(2, 9, 10, 7), (1, 1, 4, 3), (2, 70, 16, 300)])
def test_gelu_of_a_linear_layer(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    *tokens, width, hidden = shape
    inputs = [
        _random(*tokens, width).to(dtype),
        (2 * _random(hidden, width, seed=1) / width**0.5).to(dtype),
        _random(hidden, seed=2).to(dtype),
    ]
    weights = _random(*tokens, hidden, seed=3).to(dtype)

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return (F.gelu(F.linear(x, weight, bias)),)

    _check(lambda *of: (gelu_of_linear(_LAYER, *of),), formula, inputs, [weights], dtype)


@pytest.mark.parametrize("dtype", [torch.float32, *LOW])
@pytest.mark.parametrize(
    ("tokens", "width", "heads"), [((2, 9), 12, 3), ((1, 1), 8, 1), ((2, 40), 144, 6)]
)
def test_heads_of_a_linear_layer(
    tokens: tuple[int, ...], width: int, heads: int, dtype: torch.dtype
) -> None:
    inputs = [
        _random(*tokens, width).to(dtype),
        (_random(3 * width, width, seed=1) / width**0.5).to(dtype),
        _random(3 * width, seed=2).to(dtype),
    ]
    shape = tokens[0], heads, tokens[1], width // heads
    weights = [_random(*shape, seed=seed).to(dtype) for seed in (3, 4, 5)]
    weights[1] = weights[1].transpose(1, 2).contiguous().transpose(1, 2)  # as attention gives them

    def formula(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        parts = F.linear(x, weight, bias).chunk(3, dim=-1)
        return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)

    _check(lambda *of: heads_of_linear(_LAYER, *of, heads), formula, inputs, weights, dtype)


def _check(ours, formula, inputs, weights, dtype) -> None:
    """Results and gradients against a formula in float64."""
    given = [each.requires_grad_() for each in inputs]
    exact = [each.detach().double().requires_grad_() for each in inputs]
    results, expected = ours(*given), formula(*exact)
    for mine, other in zip(results, expected, strict=True):
        assert mine.dtype == dtype and _near(mine, other, dtype)
    mine = torch.autograd.grad(results, given, weights)
    other = torch.autograd.grad(expected, exact, [each.double() for each in weights])
    for gradient, true, of in zip(mine, other, given, strict=True):
        assert gradient.dtype == dtype and gradient.shape == of.shape
        assert _near(gradient, true, dtype)


def test_no_kernel_where_no_gradient_is_wanted() -> None:
    x, weight, bias = _random(2, 3, 4), _random(5, 4), _random(5)
    assert gelu_of_linear(_LAYER, x, weight, bias).equal(F.gelu(F.linear(x, weight, bias)))
    with torch.no_grad():
        assert gelu_of_linear(_LAYER, x, weight.requires_grad_(), bias).grad_fn is None


@pytest.mark.parametrize("dtype", LOW)
def test_bytes_are_standardised_as_floats_are(dtype: torch.dtype) -> None:
    """In float16 to the last bit; the interpreter cuts off what bfloat16 has no room for, where a
    GPU rounds."""
    patches = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).repeat(2).view(2, 4, -1)
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    with torch.autocast("cpu", dtype):
        ours = standardize(patches, mean, std)
    assert ours.dtype == dtype and ours.shape == patches.shape
    floats = standardize(as_floats(patches), mean, std)
    assert torch.equal(ours, floats.to(dtype)) or dtype == torch.bfloat16
    assert _near(ours, floats.double(), dtype)
