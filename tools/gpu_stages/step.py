"""What a whole training step costs: time, kernels, memory, by variant and batch."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from gpu_stages.stage import Stage
from gpu_stages.timing import kernels_of, peak_gb, product_rate, seconds_of
from hpm_video.bench.flops import step_cost
from hpm_video.bench.steps import build_student, random_frames, step_on, transformers_step
from hpm_video.bench.variants import variants, with_batch
from hpm_video.config import PretrainConfig

NAMES = ("plain", "literal", "pixels", "default")  # in the order of `variants`
MOST = {"literal": 64}  # clips, whose teacher and predictor see all tokens


def run(stage: Stage) -> None:
    rate = product_rate(stage, stage.either("bfloat16", "float32"))
    ours = dict(
        zip(NAMES, variants(stage.config(1), ["pixels"], [0.25], [1]).values(), strict=True)
    )
    # The most telling batch first, in case that time ends
    for batch in stage.either((64, 16, 256), (2, 4)):
        for name in ("plain", "default", "pixels", "literal"):
            if batch <= MOST.get(name, batch):
                measure(stage, name, with_batch(ours[name], batch), rate)
        what = f"transformers, {batch}"
        if stage.has_time(what, seconds=5):
            with stage.measuring(what):
                config = with_batch(ours["plain"], batch)
                row(stage, what, config, partial(of_transformers, stage, config), rate)
    for name, config in stage.pair(64, size="large").items() if not stage.tiny else ():
        measure(stage, f"large {name}", config, rate)


def measure(stage: Stage, name: str, config: PretrainConfig, rate: float) -> None:
    what = f"{name}, {config.data.batch_size}"
    if stage.has_time(what, seconds=5):
        with stage.measuring(what):
            row(stage, what, config, partial(ours, stage, config), rate)


def ours(stage: Stage, config: PretrainConfig) -> Callable[[], Tensor]:
    with stage.device:  # built there, which is quicker
        student = build_student(config)
    return step_on(config, frames_of(stage, config), stage.device, student)


def of_transformers(stage: Stage, config: PretrainConfig) -> Callable[[], Tensor]:
    return transformers_step(config, frames_of(stage, config), stage.device)[0]


def frames_of(stage: Stage, config: PretrainConfig) -> Tensor:
    """Frames of a micro-batch, pinned as the loader's are."""
    one = random_frames(with_batch(config, 1))
    frames = one.expand(config.data.batch_size, *one.shape[1:]).contiguous()
    return frames.pin_memory() if stage.on_gpu else frames


def row(
    stage: Stage, what: str, config: PretrainConfig, make: Callable[[], Callable], rate: float
) -> None:
    """Time a step and report it; ``rate``: multiply-adds a second of a large product."""
    with peak_gb(stage) as peak:
        call = make()
        seconds = seconds_of(stage, call)
    launches, kernel_s = kernels_of(stage, call)
    clips = config.data.batch_size / seconds
    stage.row(
        what,
        ms=1000 * seconds,
        kernel_ms=None if kernel_s is None else 1000 * kernel_s,
        launches=launches,
        clips_per_s=clips,
        of_product=step_cost(config).step * clips / rate,
        peak_gb=peak.get("gb"),
    )
