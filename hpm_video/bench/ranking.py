"""The ranking loss against the definition written for autograd: time, memory, gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import at_least, median_seconds, peak_extra_bytes
from hpm_video.method.losses import ranking_loss
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.subprocesses import given_settings, output_of


def naive_ranking_loss(predicted: Tensor, measured: Tensor) -> Tensor:
    """The definition, everything M x M at once: (B, M), (B, M) -> scalar."""
    harder = (measured[:, :, None] > measured[:, None, :]).to(predicted.dtype)
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()


SIDES = {"ours": ranking_loss, "naive": naive_ranking_loss}


def bench_ranking(*, batch_size: int, num_tokens: int, rounds: int, device: str) -> Report:
    """Forward and backward of both at (batch_size, num_tokens); ratios are ours : naive."""
    at_least("batch-size", batch_size, 1)
    at_least("tokens", num_tokens, 2)
    at_least("rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    example = _example(batch_size, num_tokens, place)
    calls = {name: _call(side, *example) for name, side in SIDES.items()}
    gradients = {name: call() for name, call in calls.items()}
    error = (gradients["ours"] - gradients["naive"]).abs().max() / gradients["naive"].abs().max()
    seconds = median_seconds(calls, rounds=rounds, device=place)
    if place.type == "cuda":
        extra = {name: peak_extra_bytes(call, place) for name, call in calls.items()}
    else:
        extra = {name: _extra_in_own_process(name, batch_size, num_tokens) for name in SIDES}
    return Report(
        "ranking",
        machine_facts(place),
        {"batch_size": batch_size, "tokens": num_tokens, "rounds": rounds},
        [
            {
                "loss": name,
                "median_ms": 1000 * seconds[name],
                "time_ratio": seconds[name] / seconds["naive"],
                "peak_extra_mb": extra[name] / 1e6,
                "memory_ratio": extra[name] / max(extra["naive"], 1),
                "gradient_error": error.item() if name == "ours" else 0.0,
            }
            for name in SIDES
        ],
        ["forward and backward; gradient_error: largest difference over largest naive gradient"],
    )


def _example(batch_size: int, num_tokens: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Predictions, and measured losses of which some tie."""
    generator = torch.Generator().manual_seed(0)
    predicted = torch.randn(batch_size, num_tokens, generator=generator)
    measured = torch.rand(batch_size, num_tokens, generator=generator)
    measured[:, ::50] = 0.5
    return predicted.to(device), measured.to(device)


def _call(
    loss: Callable[[Tensor, Tensor], Tensor], predicted: Tensor, measured: Tensor
) -> Callable[[], Tensor]:
    """Forward and backward -> gradient (B, M)."""
    leaf = predicted.clone().requires_grad_()

    def call() -> Tensor:
        (gradient,) = torch.autograd.grad(loss(leaf, measured), leaf)
        return gradient

    return call


def _extra_in_own_process(side: str, batch_size: int, num_tokens: int) -> int:
    """Peak extra bytes of a first call: memory kept by the other side cannot hide any."""
    settings = {
        "side": side,
        "batch_size": batch_size,
        "num_tokens": num_tokens,
        "threads": torch.get_num_threads(),
    }
    return int(output_of(__name__, settings))


def _print_extra(side: str, batch_size: int, num_tokens: int, threads: int) -> None:
    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    _call(SIDES[side], *_example(1, 64, cpu))()  # loads what first calls load
    call = _call(SIDES[side], *_example(batch_size, num_tokens, cpu))
    sys.stdout.write(str(peak_extra_bytes(call, cpu)))


if __name__ == "__main__":
    _print_extra(**given_settings())
