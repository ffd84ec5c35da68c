"""Attention, forward and backward: the form we choose, PyTorch's fused one, plain products."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds
from hpm_video.models.attention import attention
from hpm_video.runtime.distributed import pick_device

_LENGTHS = (36, 160, 352, 784, 1568)  # tokens
_HEADS = 3
_WIDTH = 64  # of a head


def bench_attention(*, batch_size: int, rounds: int, device: str) -> Report:
    """Both precisions at several lengths; ratios are to PyTorch's fused form."""
    at_least("batch-size", batch_size, 1)
    at_least("rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    rows: list[dict[str, Cell]] = []
    for precision in (torch.bfloat16, torch.float32):
        for num_tokens in _LENGTHS:
            shape = (batch_size, num_tokens, 3, _HEADS, _WIDTH)
            projections = torch.randn(shape, dtype=precision, device=place, requires_grad=True)
            forms = {"fused": _fused, "plain": _plain, "ours": attention}
            calls = {name: _call(form, projections) for name, form in forms.items()}
            seconds = median_seconds(calls, rounds=rounds, device=place)
            rows.append(
                {
                    "precision": str(precision).removeprefix("torch."),
                    "tokens": num_tokens,
                    "fused_ms": seconds["fused"] * 1e3,
                    "plain_ratio": seconds["plain"] / seconds["fused"],
                    "ours_ratio": seconds["ours"] / seconds["fused"],
                }
            )
    settings: dict[str, object] = {
        "batch_size": batch_size,
        "heads": _HEADS,
        "head_width": _WIDTH,
        "rounds": rounds,
    }
    return Report("attention", machine_facts(place), settings, rows)


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def _call(
    form: Callable[[Tensor, Tensor, Tensor], Tensor], projections: Tensor
) -> Callable[[], None]:
    def call() -> None:
        # (B, N, 3, heads, width) -> 3 x (B, heads, N, width)
        result = form(*projections.permute(2, 0, 3, 1, 4).unbind(0))
        result.backward(torch.ones_like(result))
        projections.grad = None

    return call
