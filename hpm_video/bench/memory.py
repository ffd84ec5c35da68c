"""Memory of a training step, measured and modelled, and the largest batch that fits on a GPU."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch

from hpm_video.bench.live_bytes import modelled_bytes
from hpm_video.bench.report import Cell, Report, machine_facts
from hpm_video.bench.steps import random_frames, step_on, transformers_step
from hpm_video.bench.timing import peak_extra_bytes
from hpm_video.bench.variants import PLAIN, plain, step_config, variant_name, with_batch
from hpm_video.config import PretrainConfig
from hpm_video.config.settings import config_from_dict, config_to_dict
from hpm_video.config.values import Precision, Size
from hpm_video.models.precision import choose_precision
from hpm_video.runtime.distributed import World, pick_device
from hpm_video.runtime.host_memory import keep_freed_memory
from hpm_video.runtime.subprocesses import given_settings, output_of

GPUS = (24, 40, 80, 141)  # GB
OTHERS = "transformers VideoMAE"
_CPU = torch.device("cpu")
_SMALL = (2, 6)  # batches to measure on a CPU
_LARGE = (8, 16)  # batches to extrapolate for GPUs; large enough that parameters do not dominate


@dataclass(frozen=True)
class Line:
    """Memory of a step in bytes as a function of the batch size: fixed + batch * per_clip."""

    fixed: float
    per_clip: float

    @staticmethod
    def through(batches: Sequence[int], peak: Callable[[int], float]) -> Line:
        """The line through the peaks of two batch sizes."""
        (one, other), (low, high) = batches, map(peak, batches)
        per_clip = (high - low) / (other - one)
        return Line(low - one * per_clip, per_clip)

    def largest_batch(self, num_bytes: float) -> int:
        """Number of clips that fit in ``num_bytes``; 0 if not even the fixed part fits."""
        return max(0, int((num_bytes - self.fixed) / self.per_clip))

    def row(self, size: str, step: str, how: str, reserve_gb: float | None) -> dict[str, Cell]:
        """A row of the table; batches for GPUs are None without ``reserve_gb``."""
        found: dict[str, Cell] = {"fixed_gb": self.fixed / 1e9, "clip_mb": self.per_clip / 1e6}
        for gpu in GPUS:
            room = None if reserve_gb is None else self.largest_batch((gpu - reserve_gb) * 1e9)
            found[f"batch_{gpu}_gb"] = room
        return {"size": size, "step": step, "how": how, **found, "largest_tried": None}


def bench_memory(
    *,
    sizes: Sequence[Size],
    measured_size: Size | Literal["none"],
    reserve_gb: float,
    device: str,
    precision: Precision = "bfloat16",
    **shape: Any,
) -> Report:
    """Fixed memory and memory per clip of the default HPM and of plain VideoMAE.

    On CUDA both are measured at every size (PyTorch's allocations), and the largest batch on that
    GPU is found by trial. On a CPU, ``measured_size`` is measured (resident memory of separate
    processes) and modelled, unless it is ``none``. Rows about GPUs are modelled, see
    `modelled_bytes`.

    ``reserve_gb``: memory left free for CUDA itself, workspaces and fragmentation when batches are
    computed. ``shape``: other arguments of `step_config`.
    """
    if not 0 <= reserve_gb < math.inf:
        raise ValueError(f"--reserve-gb ({reserve_gb}) must be at least 0, and finite")
    place = pick_device(device, setting="--device")
    alone = World(0, 1, place)
    shape["precision"], _ = choose_precision(precision, alone, setting="--precision")

    def forms(size: Size) -> dict[str, PretrainConfig]:
        config = step_config(size=size, **shape)
        return {PLAIN: plain(config), variant_name(config): config}

    def modelled(config: PretrainConfig, batches: Sequence[int], *, as_on_gpu: bool) -> Line:
        return Line.through(
            batches, lambda batch: modelled_bytes(with_batch(config, batch), as_on_gpu=as_on_gpu)
        )

    rows: list[dict[str, Cell]] = []
    for size in sizes:
        for form, config in forms(size).items():
            line = modelled(config, _LARGE, as_on_gpu=True)
            rows.append(line.row(size, form, "modelled, CUDA", reserve_gb))
            if place.type == "cuda":
                line, largest = _on_gpu(config, place)
                how = f"measured, {torch.cuda.get_device_name(place)}"
                row = line.row(size, form, how, reserve_gb)
                rows.append({**row, "largest_tried": largest})
    if place.type == "cpu" and measured_size != "none":
        ours = forms(measured_size)
        theirs = {OTHERS: ours[PLAIN]} if find_spec("transformers") else {}
        for form, config in {**ours, **theirs}.items():
            measure = partial(_in_own_process, config, is_ours=form in ours)
            line = Line.through(_SMALL, measure)
            rows.append(line.row(measured_size, form, "measured, CPU", None))
            if form in ours:
                line = modelled(config, _SMALL, as_on_gpu=False)
                rows.append(line.row(measured_size, form, "modelled, CPU", None))
    return Report(
        "memory",
        machine_facts(place),
        {**shape, "reserve_gb": reserve_gb},
        rows,
        [
            "memory of a step = fixed + batch x clip; batch_X_gb: largest batch, by this formula, "
            "on a GPU of X x 10^9 bytes minus reserve_gb, for one process; DDP needs 4 more bytes "
            "per parameter for its gradient buckets",
            "modelled: from the tensors alive during a step, without running it, "
            f"at batches {_LARGE[0]} and {_LARGE[1]} (CPU: {_SMALL[0]} and {_SMALL[1]})",
        ],
    )


def _on_gpu(config: PretrainConfig, place: torch.device) -> tuple[Line, int]:
    """Measured memory on this GPU, and the largest batch that fits."""

    def peak(batch: int) -> int:
        return peak_extra_bytes(lambda: _two_steps(with_batch(config, batch), place), place)

    def fits(batch: int) -> bool:
        has_room = False
        with suppress(torch.OutOfMemoryError):
            peak(batch)
            has_room = True
        gc.collect()  # outside the block, where the exception no longer holds tensors
        torch.cuda.empty_cache()
        return has_room

    line = Line.through(_LARGE, peak)
    free, _ = torch.cuda.mem_get_info(place)
    return line, largest_that(fits, guess=line.largest_batch(free))


def largest_that(fits: Callable[[int], bool], *, guess: int) -> int:
    """The largest number that ``fits`` (monotonic), to 1 part in 64; 0 if 1 does not."""
    low, high = 0, max(1, guess)  # low fits, high is unknown
    while fits(high):
        low, high = high, max(high + 1, high * 9 // 8)
    while high - low > max(1, low // 64):
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _two_steps(config: PretrainConfig, place: torch.device, *, is_ours: bool = True) -> None:
    """Frames, model, two steps: the second has the optimizer state that the first creates."""
    # The same clip repeated, as random ones would take time
    frames = random_frames(with_batch(config, 1)).repeat(config.data.videos_at_once, 1, 1, 1, 1)
    of = config, frames, place
    step = step_on(*of) if is_ours else transformers_step(*of)[0]
    for _ in range(2):
        step().item()


def _in_own_process(config: PretrainConfig, batch_size: int, *, is_ours: bool) -> int:
    """Peak resident memory of `_two_steps` beyond that of a tiny model. A separate process ensures
    that memory left by earlier steps is not reused."""
    given = config_to_dict(with_batch(config, batch_size))
    settings = {"config": given, "is_ours": is_ours, "threads": torch.get_num_threads()}
    return int(output_of(__name__, settings))


def _own_process() -> None:
    settings = given_settings()
    torch.set_num_threads(settings["threads"])
    config, is_ours = config_from_dict(PretrainConfig, settings["config"]), settings["is_ours"]
    tiny = step_config(size="tiny", frames=2, crop_size=64, precision=config.run.precision)
    tiny = tiny if config.masking.needs_teacher else plain(tiny)
    _two_steps(tiny, _CPU, is_ours=is_ours)  # loads libraries that first calls load
    gc.collect()
    if is_ours:
        keep_freed_memory()  # only now: memory kept from before would not be counted
    peak = peak_extra_bytes(partial(_two_steps, config, _CPU, is_ours=is_ours), _CPU)
    sys.stdout.write(str(peak))


if __name__ == "__main__":
    _own_process()
