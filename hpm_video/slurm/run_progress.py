"""How far a run has come, out of its folder's metrics.jsonl and config.yaml."""

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from hpm_video.config.settings import read_stored
from hpm_video.runtime.reading import parse_json
from hpm_video.slurm.queue import tail

_NUM_BYTES = 64 * 1024  # some hundred records
_NUMBERS = ("step", "epoch", "loss")  # of every record of training
_NUM_RATES = 20  # records whose speed counts


@dataclass(frozen=True)
class Progress:
    """Figures of the newest record, and the seconds still to go; None where not known."""

    epoch: float | None = None
    epochs: int | None = None
    loss: float | None = None
    clips_per_second: float | None = None
    remaining_s: float | None = None


def read_progress(folder: Path, *, processes: int = 0, now_s: float | None = None) -> Progress:
    """Of a run folder, which may not have got anything yet.

    processes: that train together, 0 where that is not known. now_s: the time, as of time.time.
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
    # The time for a clip, with pauses to save in it, is the mean of some periods between records
    times = [1 / found for found in rates if _is_number(found) and found]
    if clips and times and epochs and epoch:
        steps = records[-1]["step"] * (epochs / epoch - 1)
        # What has passed since the record, or the latest start, counts too
        since_s = (time.time() if now_s is None else now_s) - file.stat().st_mtime
        remaining_s = max(steps * clips * sum(times) / len(times) - since_s, 0.0)
        remaining_s = remaining_s if math.isfinite(remaining_s) else None
    rate = rates[-1] if _is_number(rates[-1]) else None
    return Progress(epoch, epochs, loss, rate, remaining_s)


def _training_records(text: str) -> list[dict[str, Any]]:
    """Records of training, oldest first; the first may be cut off, the last in the making."""
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
    """Clips of a step of the optimizer, over all processes; None where that is not known."""
    with suppress(AttributeError, KeyError, TypeError):
        data, optim = config["data"], config["optim"]
        # Settings that are younger than the run had the effect of their defaults
        at_once = (data["batch_size"], optim.get("accumulation", 1), processes)
        factors = (total,) if (total := optim.get("total_batch")) else at_once
        factors = (*factors, data.get("repeats", 1))
        # A text times a number would be a longer text
        return math.prod(factors) if all(isinstance(of, int) for of in factors) else None
    return None
