"""What a whole training step costs: time, kernels, memory, by variant and batch."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from gpu_stages.stage import Stage
from gpu_stages.timing import (
    kernel_seconds,
    num_kernels,
    peak_gb,
    product_rate,
    seconds_of,
)
from hpm_video.bench.flops import step_cost
from hpm_video.bench.steps import build_student, random_frames, step_on, transformers_step
from hpm_video.bench.variants import variants, with_batch
from hpm_video.config import PretrainConfig

NAMES = ("plain", "literal", "pixels", "both", "default")  # in the order of `variants`
_LISTED = 15  # kernels; the table has room for the first of them
MOST = {"literal": 64}  # clips, whose teacher and predictor see all tokens


def run(stage: Stage) -> None:
    rate = product_rate(stage, stage.either("bfloat16", "float32"))
    found = variants(stage.config(1), ["pixels", "both"], [0.25], [1])
    configs = dict(zip(NAMES, found.values(), strict=True))
    clips_at_rate = {name: rate / step_cost(config).step for name, config in configs.items()}
    # The most telling batch first, in case that time ends
    for batch in stage.either((64, 16, 256), (2,)):
        for name in ("plain", "default", "both", "pixels", "literal"):
            if batch <= MOST.get(name, batch):
                config = with_batch(configs[name], batch)
                measure(stage, f"{name}, {batch}", config, ours, clips_at_rate[name])
            if stage.on_gpu and name in ("plain", "default"):
                config = replace(config, run=replace(config.run, cuda_graphs="true"))
                what = f"{name}, {batch}, graphs"
                measure(stage, what, config, ours, clips_at_rate[name])
        config = with_batch(configs["plain"], batch)
        what = f"transformers, {batch}"
        measure(stage, what, config, of_transformers, clips_at_rate["plain"])
    for name, config in stage.pair(stage.either(64, 4), size="large").items():
        most = rate / step_cost(config).step
        measure(stage, f"large {name}, {config.data.batch_size}", config, ours, most)


def measure(
    stage: Stage,
    what: str,
    config: PretrainConfig,
    make: Callable[[Stage, PretrainConfig], Callable[[], Tensor]],
    clips_at_rate: float,
) -> None:
    """Time a step and report it. ``clips_at_rate``: clips a second if the step were nothing but a
    large matrix product."""
    if not stage.has_time(what, seconds=stage.either(5, 0)):
        return
    with stage.measuring(what):
        with peak_gb(stage) as peak:
            call = make(stage, config)
            seconds = seconds_of(stage, call)
        kernels = kernel_seconds(stage, call)
        milliseconds = {name: 1000 * sum(times) for name, times in kernels.items()}
        clips = config.data.batch_size / seconds
        stage.row(
            what,
            ms=1000 * seconds,
            kernel_ms=sum(milliseconds.values()) or None,
            launches=num_kernels(kernels),
            clips_per_s=clips,
            of_product=clips / clips_at_rate,
            peak_gb=peak.get("gb"),
        )
        if kernels and what == "default, 64":
            slowest = sorted(milliseconds, key=milliseconds.__getitem__)[: -_LISTED - 1 : -1]
            names = [f"{k}: {len(kernels[n])} x {n[:40]}" for k, n in enumerate(slowest, start=1)]
            figures = {name: milliseconds[n] for name, n in zip(names, slowest, strict=True)}
            stage.row(f"{what}, slowest, ms", **figures)


def ours(stage: Stage, config: PretrainConfig) -> Callable[[], Tensor]:
    with stage.device:  # built there, which is quicker
        student = build_student(config)
    return step_on(config, frames_of(stage, config), stage.device, student)


def of_transformers(stage: Stage, config: PretrainConfig) -> Callable[[], Tensor]:
    return transformers_step(config, frames_of(stage, config), stage.device)[0]


def frames_of(stage: Stage, config: PretrainConfig) -> Tensor:
    """Frames of a micro-batch, pinned as the loader's are."""
    one = random_frames(with_batch(config, 1))  # many random ones would take their time
    frames = one.expand(config.data.batch_size, *one.shape[1:]).contiguous()
    return frames.pin_memory() if stage.on_gpu else frames
