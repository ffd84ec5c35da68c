"""Attention in all its forms, against the definition in float64."""

import pytest
import torch
from torch import Tensor

from hpm_video.models import blocked_attention as forms
from hpm_video.models.attention import attention


def _by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhnd,bhmd->bhnm", q, k) / q.shape[-1] ** 0.5
    weights = scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    return torch.einsum("bhnm,bhmd->bhnd", weights, v)


def _projections(num_tokens: int, dtype: torch.dtype) -> Tensor:
    """q, k and v as they lie in memory after one linear layer: (B, N, 3, heads, head width)."""
    generator = torch.Generator().manual_seed(num_tokens)
    return torch.randn(2, num_tokens, 3, 3, 16, generator=generator).mul(1.5).to(dtype)


# Of bfloat16: plain, in one block, in several of which the last is smaller
@pytest.mark.parametrize("num_tokens", [1, 36, 512, 513, 1100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_the_definition(
    num_tokens: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "_BLOCK", 2**19)  # small enough to make several of 1,100
    ours = _projections(num_tokens, dtype).requires_grad_()
    exact = ours.detach().double().requires_grad_()
    result = attention(*ours.permute(2, 0, 3, 1, 4).unbind(0))
    expected = _by_definition(*exact.permute(2, 0, 3, 1, 4).unbind(0))
    outer = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    result.backward(outer.to(dtype))
    expected.backward(outer.to(dtype).double())
    assert result.dtype == dtype and ours.grad is not None and exact.grad is not None
    # bfloat16 keeps 8 bits: each number is off by up to 2^-9 of itself, sums of many by less
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for mine, true in ((result, expected), (ours.grad, exact.grad)):
        assert (mine - true).abs().max() < tolerance * true.abs().max()
        assert (mine - true).norm() < tolerance * true.norm()


def test_no_form_is_less_exact_than_separate_operations() -> None:
    """In bfloat16, against which a tolerance says little: errors, side by side."""
    for num_tokens in (100, 600):
        q, k, v = _projections(num_tokens, torch.bfloat16).permute(2, 0, 3, 1, 4).unbind(0)
        exact = _by_definition(q.double(), k.double(), v.double())
        separate = (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1) @ v
        mine, theirs = ((form - exact).norm() for form in (attention(q, k, v), separate))
        assert mine < 1.1 * theirs


def test_blocks_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.empty(4, 1000, 16)
    for block in (2**19, 10**6, 7_000, 1):
        monkeypatch.setattr(forms, "_BLOCK", block)
        pieces = forms._row_blocks(tokens)
        assert [row for rows in pieces for row in range(rows.start, rows.stop)] == list(range(1000))
        assert all(0 < rows.stop - rows.start <= max(1, block / 1000) for rows in pieces)
        assert forms._block(tokens).shape == (pieces[0].stop, 1000)


def test_blocked_attention_is_an_operator_that_compilers_can_use() -> None:
    q, k, v = (
        part.contiguous().requires_grad_()
        for part in _projections(20, torch.float32).permute(2, 0, 3, 1, 4).unbind(0)
    )
    torch.library.opcheck(forms.blocked_attention, (q, k, v))
