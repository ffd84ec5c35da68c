"""Progress of a run, from the metrics.jsonl and config.yaml in its folder."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hpm_video.config.settings import read_stored
from hpm_video.runtime.reading import parse_json
from hpm_video.slurm.queue import tail

_NUM_BYTES = 64 * 1024  # a few hundred records
_NUMBERS = ("step", "epoch", "loss")  # present in every training record
_NUM_RATES = 20  # records over which to average the speed


@dataclass(frozen=True)
class Progress:
    """Figures of the latest record, and the estimated seconds left; None if unknown."""

    epoch: float | None = None
    epochs: int | None = None
    loss: float | None = None
    clips_per_second: float | None = None
    remaining_s: float | None = None


def read_progress(folder: Path, *, processes: int = 0, now_s: float | None = None) -> Progress:
    """Progress of a run folder, which may still be empty.

    processes: number of ranks, 0 if unknown. now_s: current time (time.time).
    """
    config: dict[str, Any] = {}
    epochs = None
    with suppress(OSError, ValueError, KeyError, TypeError, OverflowError):
        config = read_stored(folder / "config.yaml")
        epochs = int(config["optim"]["epochs"])
    file = folder / "metrics.jsonl"
    records = _training_records(tail(file, _NUM_BYTES))
    if not records:
        return Progress(epochs=epochs)
    epoch, loss = records[-1]["epoch"], records[-1]["loss"]
    rates = [one.get("clips_per_second") for one in records[-_NUM_RATES:]]
    remaining_s = None
    clips = _clips_per_step(config, processes)
    # Mean time per clip over several periods, so that pauses for saving are included
    times = [1 / found for found in rates if _is_number(found) and found]
    if clips and times and epochs and epoch:
        steps = records[-1]["step"] * (epochs / epoch - 1)
        # Subtract the time since the latest record or restart
        since_s = (time.time() if now_s is None else now_s) - file.stat().st_mtime
        remaining_s = max(steps * clips * sum(times) / len(times) - since_s, 0.0)
        remaining_s = remaining_s if math.isfinite(remaining_s) else None
    rate = rates[-1] if _is_number(rates[-1]) else None
    return Progress(epoch, epochs, loss, rate, remaining_s)


def _training_records(text: str) -> list[dict[str, Any]]:
    """Training records, oldest first. The first and last line may be incomplete."""
    records = []
    for line in text.splitlines():
        with suppress(ValueError):
            record = parse_json(line)
            if isinstance(record, dict) and all(map(_is_number, map(record.get, _NUMBERS))):
                records.append(record)
    return records


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and abs(value) < 2**63


def _clips_per_step(config: dict[str, Any], processes: int) -> int | None:
    """Clips per optimizer step over all ranks; None if unknown."""
    with suppress(AttributeError, KeyError, TypeError):
        data, optim = config["data"], config["optim"]
        # Settings newer than the run take their defaults
        at_once = (data["batch_size"], optim.get("accumulation", 1), processes)
        factors = (total,) if (total := optim.get("total_batch")) else at_once
        factors = (*factors, data.get("repeats", 1))
        # Python would multiply strings, too
        return math.prod(factors) if all(isinstance(of, int) for of in factors) else None
    return None
