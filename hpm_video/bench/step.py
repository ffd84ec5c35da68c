"""One whole pre-training step: VideoMAE, hard patches mining in several forms, `transformers`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import torch

from hpm_video.bench.compared_steps import (
    Setting,
    make_setting,
    multiply_adds,
    our_step,
    transformers_step,
)
from hpm_video.bench.flops import Variant, variants
from hpm_video.bench.report import Report, machine_facts
from hpm_video.bench.timing import at_least, matmul, round_seconds, spread
from hpm_video.config.values import PredictorInput
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.subprocesses import answer_calls, apart, given_settings

# Largest relative difference of a first step's loss from that of float32, not compiled. Rounding
# moves scores too, and with them the masks.
_TOLERANCE = 0.01
_MATMUL = "a matrix product"
_OTHERS = "transformers VideoMAE"
_OTHERS_APART = "transformers VideoMAE, freed memory given back"


def bench_step(
    *,
    size: str,
    batch_size: int,
    num_frames: int,
    crop_size: int,
    rounds: int,
    precision: str,
    compile_models: bool,
    predictor_inputs: Sequence[PredictorInput],
    token_ratios: Sequence[float],
    predictor_depths: Sequence[int],
    device: str,
) -> Report:
    """Frames to the device, scores, mask, forward, loss, backward, optimizer, EMA; ratios are to
    our plain VideoMAE. Masks are tubes of ratio .9, AdamW is the same for all.

    Our first losses are checked against float32 before anything is timed. ``utilisation``: the
    rate of a step's multiply-adds, as `hpm_video.bench.flops` counts them, as a share of the rate
    of a large matrix product timed in the same rounds. On a CPU this process keeps freed memory, as
    our commands do; the last row is `transformers` in a process that does not, as it comes.
    """
    for name, value in [("batch-size", batch_size), ("frames", num_frames)]:
        at_least(name, value, 1)
    at_least("crop-size", crop_size, 1)
    at_least("rounds", rounds, 1)
    wanted = variants(predictor_inputs, token_ratios, predictor_depths)
    place = pick_device(device, setting="--device")
    setting = make_setting(
        size=size,
        batch_size=batch_size,
        num_frames=num_frames,
        crop_size=crop_size,
        device=place,
        precision=precision,
        compile_models=compile_models,
    )

    sides = {"VideoMAE": None, **{variant.name: variant for variant in wanted}}
    steps: dict[str, Callable[[], object]] = {}
    furthest = 0.0
    for name, variant in sides.items():
        steps[name] = step = our_step(setting, variant)
        furthest = max(furthest, _check(name, step().item(), setting, variant))
    costs = {name: multiply_adds(setting, variant) for name, variant in sides.items()}
    notes = [
        "masks are those of halfway through a run; ratio to our VideoMAE",
        f"first losses are within {furthest:.1e} of float32's, not compiled",
    ]
    with ExitStack() as processes:
        try:
            steps[_OTHERS], attention = transformers_step(setting)
            notes.append(f"transformers' attention: {attention}")
            others = [_OTHERS]
            if place.type == "cpu":
                steps[_OTHERS_APART] = processes.enter_context(_transformers_apart(setting))
                others.append(_OTHERS_APART)
            costs.update(dict.fromkeys(others, costs["VideoMAE"]))
        except ImportError:
            notes.append("transformers is not installed: left out")
        steps[_MATMUL], product_cost = matmul(place, precision)
        times = round_seconds(steps, rounds=rounds, warmup=2, device=place)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    plain = seconds["VideoMAE"]
    rate = product_cost / seconds.pop(_MATMUL)
    notes.append(f"rate of {_MATMUL}: {rate / 1e9:.4g} x 10^9 multiply-adds a second")
    return Report(
        "step",
        machine_facts(place),
        {
            "size": size,
            "batch_size": batch_size,
            "frames": num_frames,
            "crop_size": crop_size,
            "precision": precision,
            "compile": compile_models,
            "rounds": rounds,
        },
        [
            {
                "step": name,
                "median_s": value,
                "spread": spread(times[name]),
                "ratio": value / plain,
                "clips_per_s": batch_size / value,
                "multiply_adds_g": costs[name] / 1e9,
                "utilisation": costs[name] * batch_size / value / rate,
            }
            for name, value in seconds.items()
        ],
        notes,
    )


def _transformers_apart(setting: Setting) -> AbstractContextManager[Callable[[], None]]:
    """The step of `transformers` in a process of its own, whose memory is managed as it comes."""
    return apart(
        __name__,
        {
            "size": setting.model.size,
            "batch_size": setting.frames.shape[0],
            "num_frames": setting.frames.shape[1],
            "crop_size": setting.frames.shape[2],
            "precision": setting.precision,
            "compile_models": setting.compile,
            "threads": torch.get_num_threads(),
        },
    )


def _own_process() -> None:
    settings = given_settings()
    torch.set_num_threads(settings.pop("threads"))
    step, _ = transformers_step(make_setting(device=torch.device("cpu"), **settings))
    answer_calls(step)


def _check(name: str, loss: float, setting: Setting, variant: Variant | None) -> float:
    """Relative difference of a first step's loss from that of float32, not compiled.

    Raises RuntimeError where they are further apart than rounding explains.
    """
    expected = our_step(replace(setting, precision="float32", compile=False), variant)().item()
    difference = abs(loss - expected) / expected
    if not difference <= _TOLERANCE:
        raise RuntimeError(f"{name}: first loss {loss:.6g}, but {expected:.6g} in float32")
    return difference


if __name__ == "__main__":
    _own_process()
