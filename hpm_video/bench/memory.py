"""Memory of a training step, measured and modelled, and the largest batch a GPU has room for."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch

from hpm_video.bench.compared_steps import Setting, make_setting, our_step, transformers_step
from hpm_video.bench.flops import Variant, default_variant
from hpm_video.bench.live_tensors import modelled_bytes
from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.timing import at_least, peak_extra_bytes
from hpm_video.runtime.distributed import pick_device
from hpm_video.runtime.host_memory import keep_freed_memory
from hpm_video.runtime.subprocesses import given_settings, output_of

GPUS = (24, 40, 80, 141)  # GB
# Names of the steps, in the table and for processes of their own.
PLAIN, OTHERS = "VideoMAE", "transformers VideoMAE"
_CPU = torch.device("cpu")
_SMALL = (2, 6)  # batches that a CPU measures
_LARGE = (8, 16)  # batches from which those of GPUs follow; parameters are no longer what counts


@dataclass(frozen=True)
class Line:
    """Bytes of a step as a function of the batch: fixed + batch * per_clip."""

    fixed: float
    per_clip: float

    @staticmethod
    def through(batches: Sequence[int], peaks: Sequence[float]) -> Line:
        """The line through the peaks of two batches."""
        (one, other), (low, high) = batches, peaks
        per_clip = (high - low) / (other - one)
        return Line(low - one * per_clip, per_clip)

    def largest_batch(self, num_bytes: float) -> int:
        """Clips that there is room for in so many bytes; 0 where not even the fixed part fits."""
        return max(0, int((num_bytes - self.fixed) / self.per_clip))


def bench_memory(
    *,
    sizes: Sequence[str],
    measured_size: str,
    num_frames: int,
    crop_size: int,
    precision: str,
    reserve_gb: float,
    device: str,
) -> Report:
    """Fixed memory and memory per clip of the default HPM and of plain VideoMAE.

    On CUDA both are measured at every size (PyTorch's allocations), and the largest batch on that
    GPU is found by trying. On a CPU, ``measured_size`` is measured (resident memory of processes of
    their own), unless it is ``none``, beside a model of the same; rows about GPUs are modelled, see
    `modelled_bytes`.

    ``reserve_gb``: left free when batches are worked out: CUDA's own, workspaces, fragments.
    """
    at_least("frames", num_frames, 1)
    at_least("crop-size", crop_size, 1)
    if not 0 <= reserve_gb < math.inf:
        raise ValueError(f"--reserve-gb ({reserve_gb}) must be at least 0, and finite")
    place = pick_device(device, setting="--device")
    forms: dict[str, Variant | None] = {PLAIN: None, default_variant().name: default_variant()}

    def setting(size: str, batch_size: int) -> Setting:
        return make_setting(
            size=size,
            batch_size=batch_size,
            num_frames=num_frames,
            crop_size=crop_size,
            device=_CPU,
            precision=precision,
        )

    def model(
        size: str, variant: Variant | None, batches: Sequence[int], *, as_on_gpu: bool
    ) -> Line:
        return Line.through(
            batches,
            [
                modelled_bytes(setting(size, batch), variant, as_on_gpu=as_on_gpu)
                for batch in batches
            ],
        )

    rows: list[dict[str, Cell]] = []
    for size in sizes:
        for form, variant in forms.items():
            line = model(size, variant, _LARGE, as_on_gpu=True)
            rows.append(_row(size, form, "modelled, CUDA", line, reserve_gb))
            if place.type == "cuda":
                rows.append(_on_gpu(setting(size, 1), variant, place, rows[-1], reserve_gb))
    if place.type == "cpu" and measured_size != "none":
        for form in (*forms, *([OTHERS] if find_spec("transformers") else [])):
            measure = partial(
                _in_own_process,
                form=form,
                size=measured_size,
                num_frames=num_frames,
                crop_size=crop_size,
                precision=precision,
            )
            line = Line.through(_SMALL, [measure(batch_size=batch) for batch in _SMALL])
            rows.append(_row(measured_size, form, "measured, CPU", line, None))
            if form in forms:
                line = model(measured_size, forms[form], _SMALL, as_on_gpu=False)
                rows.append(_row(measured_size, form, "modelled, CPU", line, None))
    return Report(
        "memory",
        machine_facts(place),
        {
            "frames": num_frames,
            "crop_size": crop_size,
            "precision": precision,
            "reserve_gb": reserve_gb,
        },
        rows,
        [
            "memory of a step = fixed + batch x clip; batch_X_gb: largest on a GPU of X x 10^9 "
            "bytes less reserve_gb, by that line; one process: under DDP, its buckets of gradients "
            "are 4 more bytes per parameter",
            "modelled: tensors alive in a step, counted without running it, "
            f"at batches {_LARGE[0]} and {_LARGE[1]} (CPU: {_SMALL[0]} and {_SMALL[1]})",
        ],
    )


def _row(size: str, form: str, how: str, line: Line, reserve_gb: float | None) -> dict[str, Cell]:
    """A row of the table; without ``reserve_gb`` nothing about GPUs."""
    batches: dict[str, Cell] = {
        f"batch_{gpu}_gb": None
        if reserve_gb is None
        else line.largest_batch((gpu - reserve_gb) * 1e9)
        for gpu in GPUS
    }
    return {
        "size": size,
        "step": form,
        "how": how,
        "fixed_gb": line.fixed / 1e9,
        "clip_mb": line.per_clip / 1e6,
        **batches,
        "largest_tried": None,
    }


def _on_gpu(
    setting: Setting,
    variant: Variant | None,
    place: torch.device,
    modelled: dict[str, Cell],
    reserve_gb: float,
) -> dict[str, Cell]:
    """The row measured on this GPU, beside the modelled one."""

    def peak(batch: int) -> int:
        return peak_extra_bytes(lambda: _two_steps(setting, variant, batch, place), place)

    def fits(batch: int) -> bool:
        try:
            peak(batch)
            has_room = True
        except torch.OutOfMemoryError:
            has_room = False
        gc.collect()  # only now is the error gone, and what it held
        torch.cuda.empty_cache()
        return has_room

    line = Line.through(_LARGE, [peak(batch) for batch in _LARGE])
    free, _ = torch.cuda.mem_get_info(place)
    form, size = str(modelled["step"]), str(modelled["size"])
    row = _row(size, form, f"measured, {torch.cuda.get_device_name(place)}", line, reserve_gb)
    return {**row, "largest_tried": largest_that(fits, guess=line.largest_batch(free))}


def largest_that(fits: Callable[[int], bool], *, guess: int) -> int:
    """The largest number that ``fits``, as do all smaller ones, to 1 in 64; 0 if 1 does not."""
    low, high = 0, max(1, guess)  # low fits, high is not known to
    while fits(high):
        low, high = high, max(high + 1, high * 9 // 8)
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _two_steps(setting: Setting, variant: Variant | None, batch: int, place: torch.device) -> None:
    """The second has what the first makes: the optimizer's state."""
    frames = setting.frames.expand(batch, -1, -1, -1, -1)
    step = our_step(replace(setting, frames=frames, device=place), variant)
    for _ in range(2):
        step().item()


def _in_own_process(**settings: Any) -> int:
    """Peak resident memory of `_two_steps_here`, beyond that of a tiny model's.

    A process of its own: memory that another step has left behind cannot hide any.
    """
    settings["threads"] = torch.get_num_threads()
    return int(output_of(__name__, settings))


def _two_steps_here(form: str, **settings: Any) -> None:
    """Frames, model, two steps, on the CPU."""
    setting = make_setting(device=_CPU, **settings)
    if form == OTHERS:
        step, _ = transformers_step(setting)
    else:
        step = our_step(setting, None if form == PLAIN else default_variant())
    for _ in range(2):
        step()


def _own_process() -> None:
    settings = given_settings()
    torch.set_num_threads(settings.pop("threads"))
    tiny = {"size": "tiny", "num_frames": 2, "crop_size": 64, "batch_size": 1}
    _two_steps_here(**{**settings, **tiny})  # loads what first calls load
    gc.collect()
    if settings["form"] != OTHERS:
        keep_freed_memory()  # only now: what is kept of before would not be counted
    sys.stdout.write(str(peak_extra_bytes(partial(_two_steps_here, **settings), _CPU)))


if __name__ == "__main__":
    _own_process()
