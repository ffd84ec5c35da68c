"""Measures the step time of each variant, to plan trainings of equal time.

The times are measured once and stored, so that the numbers of epochs are the same after a restart
and can be checked by readers.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from hpm_video.bench.report import machine_facts
from hpm_video.bench.steps import accumulation_of, config_step, micro_batches_of
from hpm_video.bench.study.cells import Cell, Study
from hpm_video.bench.timing import round_seconds
from hpm_video.data.loading.bad_videos import UnreadableDataError
from hpm_video.runtime.distributed import join_world
from hpm_video.runtime.files import printable, write_atomically
from hpm_video.runtime.reading import read_json
from hpm_video.train.batch_size import with_batch_size

_WARMUP = 1  # rounds that do not count
_LOADING = ""  # key for loading; no variant has this name
_SAME = 0.04  # relative differences of step times below this count as noise


def calibrate(study: Study, say: Callable[[str], None]) -> None:
    """Measure and store the step times of variants that are not known yet.

    A variant or data set that cannot do a step, for lack of memory or videos, is reported and
    skipped. It gets no cells at equal time, and its cells at equal epochs fail later.
    """
    trained = [name for name, variant in study.config.variants.items() if variant.pretrain]
    for data_set in study.config.sets:
        known = read_calibration(study, data_set)
        if missing := [name for name in trained if name not in known]:
            try:
                entries = {**known, **_measure(study, data_set, missing, say)}
            except UnreadableDataError as error:
                say(f"sets.{data_set}: cannot measure a step: {printable(str(error))}")
                continue
            file = calibration_file(study, data_set)
            write_atomically(file, [json.dumps(entries, indent=1) + "\n"])


def seconds_per_step(study: Study) -> dict[tuple[str, str], float]:
    """(data set, variant) -> measured seconds per step; variants not measured yet are left out.

    Variants are always measured together with the base. For one measured later, the ratio to the
    base counts, which cancels changes in the machine's speed.
    """
    seconds = {}
    for data_set in study.config.sets:
        entries = read_calibration(study, data_set)
        if study.base not in entries:
            continue
        for variant, entry in entries.items():
            ratio = entry["seconds_per_step"] / entry["base_seconds_per_step"]
            seconds[data_set, variant] = ratio * entries[study.base]["seconds_per_step"]
    return seconds


def epochs_of_equal_time(study: Study) -> dict[tuple[str, str], int]:
    """(data set, variant) -> whole epochs of pre-training that take as long as the base's.

    At least one more than the warm-up's; equal to the base's if step times do not differ by more
    than noise.
    """
    epochs = {}
    for data_set in study.config.sets:
        for variant, entry in read_calibration(study, data_set).items():
            if variant not in study.config.variants:
                continue
            base = study.pretraining(data_set, study.base).optim
            # Compare with the base in the same rounds, as the machine's speed varies
            ratio = entry["base_seconds_per_step"] / entry["seconds_per_step"]
            if abs(ratio - 1) < _SAME:
                ratio = 1.0
            epochs[data_set, variant] = max(base.warmup + 1, round(base.epochs * ratio))
    return epochs


def calibrated_cells(study: Study) -> list[Cell]:
    """All cells of the study, except those at equal time whose variants are not measured yet."""
    return study.cells(epochs_of_equal_time(study))


def calibration_file(study: Study, data_set: str) -> Path:
    return study.folder / "preparation" / f"calibration_{data_set}.json"


def _measure(
    study: Study, data_set: str, names: list[str], say: Callable[[str], None]
) -> dict[str, dict[str, object]]:
    """Calibration entries of the named variants, measured in turn with the base."""
    configs = {name: study.pretraining(data_set, name) for name in [study.base, *names]}
    base, rounds = configs[study.base], study.config.calibration_rounds
    clock = time.process_time if study.config.clock == "process" else time.perf_counter
    with join_world(base.run.device) as world:
        configs = {name: with_batch_size(config, world) for name, config in configs.items()}
        base = configs[study.base]
        # Load in this process, as its CPU clock does not include loader workers
        alone = replace(base, data=replace(base.data, num_workers=0))
        batches = micro_batches_of(alone, world, rounds + _WARMUP + 1)
        batch = next(batches)
        functions: dict[str, Callable[[], object]] = {_LOADING: lambda: next(batches)}
        for name, config in configs.items():
            try:
                step = config_step(config, lambda: batch.on(world.device, as_floats=False), world)
                step()
            except ValueError as error:
                raise ValueError(f"variants.{name}: {error}") from error
            except (RuntimeError, MemoryError, ArithmeticError) as error:
                reason = printable(str(error)).strip() or type(error).__name__
                say(f"variants.{name}: cannot measure a step on sets.{data_set}: {reason}")
                continue
            functions[name] = step
        if study.base not in functions:
            return {}
        device = world.device
        times = round_seconds(functions, rounds=rounds, warmup=_WARMUP, device=device, clock=clock)
        machine = machine_facts(device)
    seconds = {name: statistics.median(values) for name, values in times.items()}
    per_batch = seconds.pop(_LOADING)
    if study.config.clock == "wall":
        per_batch = 0.0  # loader workers run in parallel
    loading = {name: per_batch * accumulation_of(configs[name]) for name in seconds}
    return {
        name: {
            "seconds_per_step": seconds[name] + loading[name],
            "base_seconds_per_step": seconds[study.base] + loading[study.base],
            "loading_seconds_per_step": loading[name],
            "clock": study.config.clock,
            "rounds": rounds,
            "machine": machine,
        }
        for name in names
        if name in seconds
    }


def read_calibration(study: Study, data_set: str) -> dict[str, dict[str, float]]:
    """Variant -> calibration entry; raises ValueError if the file is damaged."""
    file = calibration_file(study, data_set)
    if not file.is_file():
        return {}
    try:
        entries: dict[str, dict[str, float]] = read_json(file)
        for entry in entries.values():
            entry["seconds_per_step"] / entry["base_seconds_per_step"]
    except (ValueError, TypeError, KeyError, AttributeError, ArithmeticError) as error:
        raise ValueError(
            f"{file} is damaged: must have the step times of variants; if you remove it, they are "
            "measured again, and finished cells at equal time may no longer match them"
        ) from error
    return entries
