"""Times a whole pre-training step: VideoMAE, variants of hard patches mining, `transformers`."""

import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch

from hpm_video.bench.flops import step_cost
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.steps import random_frames, step_on, transformers_step
from hpm_video.bench.timing import matmul, round_seconds, spread
from hpm_video.bench.variants import PLAIN, step_config, variants
from hpm_video.config import PretrainConfig
from hpm_video.config.limits import at_least
from hpm_video.config.settings import config_from_dict, config_to_dict
from hpm_video.config.values import Precision, PredictorInput
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, pick_device
from hpm_video.runtime.subprocesses import answer_calls, apart, given_settings

# Maximum relative difference of a first step's loss from that in float32, not compiled. Rounding
# also affects scores and thus masks.
_TOLERANCE = 0.01
_MATMUL = "a matrix product"
_OTHERS = "transformers VideoMAE"
_OTHERS_APART = "transformers VideoMAE, freed memory given back"


def bench_step(
    *,
    rounds: int,
    device: str,
    precision: Precision = "auto",
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
    **shape: Any,
) -> Report:
    """Time steps: frames to the device, scores, mask, forward, loss, backward, optimizer, EMA.

    Ratios are relative to our plain VideoMAE. By default masks are tubes at ratio 0.9; all use the
    same AdamW. Our first losses are checked against float32 before timing.

    ``utilisation``: multiply-adds per second of a step (see `hpm_video.bench.flops`) relative to
    those of a large matrix product timed in the same rounds. On a CPU this process keeps freed
    memory, like our commands; the last row is `transformers` in a process with default memory
    management. ``shape``: other arguments of `step_config`.
    """
    at_least("--rounds", rounds, 1)
    place = pick_device(device, setting="--device")
    if shape.get("cuda_graphs") and place.type != "cuda":
        raise ValueError("--cuda-graphs needs a CUDA device: leave it out")
    alone = World(0, 1, place)
    shape["precision"], _ = choose_precision(precision, alone, setting="--precision")
    base = step_config(**shape)
    ours = variants(base, predictor_inputs, token_ratios, predictor_depths)
    frames = random_frames(base, place)
    steps: dict[str, Callable[[], object]] = {}
    furthest = 0.0
    for name, config in ours.items():
        steps[name] = step = step_on(config, frames, place)
        loss, run = step().item(), replace(config.run, precision="float32", compile="false")
        exact = step_on(replace(config, run=run), frames, place)().item()
        furthest = max(furthest, _check(name, loss, exact))
    costs = {name: step_cost(config).step for name, config in ours.items()}
    notes = [
        "masks are those of the middle of a run; ratio: relative to our VideoMAE",
        f"first losses differ by at most {furthest:.1e} (relative) from float32, not compiled",
    ]
    with ExitStack() as processes:
        try:
            steps[_OTHERS], attention = transformers_step(base, frames, place)
        except ImportError:
            notes.append("transformers is not installed, so it is not timed")
        else:
            notes.append(f"transformers' attention: {attention}")
            costs[_OTHERS] = costs[_OTHERS_APART] = costs[PLAIN]
            if place.type == "cpu":  # a separate process with default memory management
                settings = {"config": config_to_dict(base), "threads": torch.get_num_threads()}
                steps[_OTHERS_APART] = processes.enter_context(apart(__name__, settings))
        steps[_MATMUL], product_cost = matmul(place, base.run.precision)
        times = round_seconds(steps, rounds=rounds, warmup=2, device=place)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    rate = product_cost / seconds.pop(_MATMUL)
    notes.append(f"rate of {_MATMUL}: {rate / 1e9:.4g} x 10^9 multiply-adds per second")
    return Report(
        "step",
        machine_facts(place),
        {**shape, "rounds": rounds},
        [
            {
                "step": name,
                "median_s": value,
                "spread": spread(times[name]),
                "ratio": value / seconds[PLAIN],
                "clips_per_s": len(frames) / value,
                "multiply_adds_g": costs[name] / 1e9,
                "utilisation": costs[name] * len(frames) / value / rate,
            }
            for name, value in seconds.items()
        ],
        notes,
    )


def _check(name: str, loss: float, exact: float) -> float:
    """Relative difference of a first step's loss from that in float32, not compiled; raises
    RuntimeError if rounding cannot explain it."""
    difference = abs(loss - exact) / exact
    if not difference <= _TOLERANCE:
        raise RuntimeError(
            f"{name}: first loss ({loss:.6g}) must be within {_TOLERANCE:.0%} of that in float32 "
            f"({exact:.6g})"
        )
    return difference


def _own_process() -> None:
    settings = given_settings()
    torch.set_num_threads(settings["threads"])
    config = config_from_dict(PretrainConfig, settings["config"])
    answer_calls(transformers_step(config, random_frames(config))[0])


if __name__ == "__main__":
    _own_process()
