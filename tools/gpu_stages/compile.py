"""What torch.compile takes and gives, and which attention is the fastest."""

import time
from contextlib import redirect_stdout
from functools import partial
from io import StringIO

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_stages.stage import Stage
from gpu_stages.step import frames_of
from gpu_stages.timing import medians, peak_gb, seconds_of
from hpm_video.bench.steps import step_on
from hpm_video.config import PretrainConfig

BACKENDS = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH")


def run(stage: Stage) -> None:
    # The most telling first, in case that time ends
    full = [
        *(("default", 64, False), ("default", 16, False), ("default", 16, True)),
        *(("default", 64, True), ("plain", 64, False), ("plain", 16, True)),
    ]
    for name, batch, graphs in stage.either(full, [("default", 2, False)]):
        config = stage.pair(batch, compile=True, cuda_graphs=graphs)[name]
        what = f"compiled {name}, {batch}" + (", graphs" if graphs else "")
        if not stage.has_time(what, seconds=stage.either(25, 0)):
            continue
        with stage.measuring(what):
            compiled_step(stage, what, config)
    shapes = ((64, 12, 160, 64), (64, 6, 1568, 64))  # of base: encoder, decoder
    for shape in stage.either(shapes, ((2, 3, 36, 64),)):
        with stage.measuring("attention"):
            attention(stage, shape)


def compiled_step(stage: Stage, what: str, config: PretrainConfig) -> None:
    """Time a compiled step, and what compiling it took; a part that is not compiled fails."""
    with peak_gb(stage) as peak, redirect_stdout(StringIO()) as said:
        call = step_on(config, frames_of(stage, config), stage.device)
        start = time.perf_counter()
        call().item()
        first = time.perf_counter() - start
        seconds = seconds_of(stage, call)
    failures = [line for line in said.getvalue().splitlines() if "runs eagerly" in line]
    stage.row(
        what,
        ok=not failures,
        note="; ".join(failures),
        compile_s=first - seconds,
        ms=1000 * seconds,
        clips_per_s=config.data.batch_size / seconds,
        peak_gb=peak.get("gb"),
    )


def attention(stage: Stage, shape: tuple[int, int, int, int]) -> None:
    """Milliseconds of each backend, forward and backward."""
    dtype = stage.either(torch.bfloat16, torch.float32)
    leaf = torch.randn(3, *shape, device=stage.device, dtype=dtype, requires_grad=True)
    result = torch.randn(shape, device=stage.device, dtype=dtype)

    def call(backend: SDPBackend) -> None:
        with sdpa_kernel(backend):
            F.scaled_dot_product_attention(*leaf.unbind(0)).backward(result)
        leaf.grad = None

    found: dict[str, float | None] = {}
    for name in BACKENDS:
        label = name.removesuffix("_ATTENTION").lower()
        found[label] = None
        backend = getattr(SDPBackend, name, None)
        if backend is not None and works(partial(call, backend)):
            found[label] = 1000 * medians(stage, {label: partial(call, backend)})[label]
    stage.row(f"attention {' x '.join(map(str, shape))}, ms", **found)


def works(call) -> bool:
    try:
        call()
    except RuntimeError:  # no kernel of this backend for this device
        return False
    return True
