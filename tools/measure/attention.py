"""Attention, forward and backward: ours and plain products, relative to PyTorch's fused form."""

import argparse
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.timing import median_seconds
from hpm_video.cli import bench_options as options
from hpm_video.models.attention import attention
from hpm_video.runtime.distributed import pick_device


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v


FORMS = {"fused": F.scaled_dot_product_attention, "plain": plain, "ours": attention}


def call(form: Callable[[Tensor, Tensor, Tensor], Tensor], projections: Tensor) -> None:
    # (B, N, 3, heads, width) -> 3 x (B, heads, N, width)
    result = form(*projections.permute(2, 0, 3, 1, 4).unbind(0))
    result.backward(torch.ones_like(result))
    projections.grad = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_timing(parser, batch_size=4)
    asked = parser.parse_args()
    device = pick_device(asked.device, setting="--device")
    rows = []
    for precision in (torch.bfloat16, torch.float32):
        for num_tokens in (36, 160, 352, 784, 1568):
            shape = (asked.batch_size, num_tokens, 3, 3, 64)  # 3 heads of 64
            given = torch.randn(shape, dtype=precision, device=device, requires_grad=True)
            calls = {name: partial(call, form, given) for name, form in FORMS.items()}
            seconds = median_seconds(calls, rounds=asked.rounds, device=device)
            row = {"precision": str(precision), "tokens": num_tokens, "fused_s": seconds["fused"]}
            ratios = {f"{name}_ratio": seconds[name] / seconds["fused"] for name in FORMS}
            rows.append({**row, **ratios})
    publish(Report("attention", machine_facts(device), vars(asked), rows))


if __name__ == "__main__":
    main()
