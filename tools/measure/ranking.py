"""The ranking loss against the definition for autograd, forward and backward; also gradients."""

import argparse
import multiprocessing
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from hpm_video.bench.report import Report, machine_facts, publish
from hpm_video.bench.timing import median_seconds, peak_extra_bytes
from hpm_video.cli import bench_options as options
from hpm_video.method.losses import ranking_loss
from hpm_video.runtime.distributed import pick_device


def naive(predicted: Tensor, measured: Tensor) -> Tensor:
    harder = (measured[:, :, None] > measured[:, None, :]).to(predicted.dtype)
    log = F.logsigmoid(predicted[:, :, None] - predicted[:, None, :])
    return (-(log * harder).sum(dim=(1, 2)) / harder.sum(dim=(1, 2)).clamp(min=1)).mean()


SIDES = {"ours": ranking_loss, "naive": naive}


def gradient(side: str, predicted: Tensor, measured: Tensor) -> Tensor:
    leaf = predicted.clone().requires_grad_()
    (found,) = torch.autograd.grad(SIDES[side](leaf, measured), leaf)
    return found


def extra_bytes(side: str, example: Sequence[Tensor]) -> int:
    gradient(side, torch.rand(1, 64), torch.rand(1, 64))  # loads what first calls load
    return peak_extra_bytes(partial(gradient, side, *example), example[0].device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_timing(parser, batch_size=32)
    options.add_number(parser, "--tokens", 1408, "masked tokens per clip")
    asked = parser.parse_args()
    device = pick_device(asked.device, setting="--device")
    example = torch.rand(2, asked.batch_size, asked.tokens, device=device).unbind()
    calls = {side: partial(gradient, side, *example) for side in SIDES}
    exact = calls["naive"]()
    error = ((calls["ours"]() - exact).abs().max() / exact.abs().max()).item()
    seconds = median_seconds(calls, rounds=asked.rounds, device=device)
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        run = map if device.type == "cuda" else pool.map
        extra = dict(zip(SIDES, run(partial(extra_bytes, example=example), SIDES), strict=True))
    rows = [{"loss": k, "median_s": seconds[k], "peak_extra_mb": extra[k] / 1e6} for k in SIDES]
    notes = [f"gradients: largest difference relative to the largest naive one: {error:.1e}"]
    publish(Report("ranking", machine_facts(device), vars(asked), rows, notes))


if __name__ == "__main__":
    main()
