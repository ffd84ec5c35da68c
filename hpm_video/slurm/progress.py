"""How far a run has come, out of its folder."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpm_video.config.settings import read_stored
from hpm_video.slurm.queue import tail

_NUM_BYTES = 64 * 1024  # some hundred records
_LOGGED_STEP = re.compile(r"^(\S+) step (\d+)  ")
_START = re.compile(r"^\S+ (starts (from|with) |continues after step )")


@dataclass(frozen=True)
class Progress:
    """Figures of the newest record, and the seconds still to go; None where not known."""

    epoch: float | None = None
    epochs: int | None = None
    loss: float | None = None
    clips_per_second: float | None = None
    remaining_s: float | None = None


def read_progress(folder: Path, *, now: datetime | None = None) -> Progress:
    """Of a run folder, which may not have got anything yet."""
    record = _last_record(tail(folder / "metrics.jsonl", _NUM_BYTES))
    if record is None:
        return Progress(epochs=_epochs(folder))
    epoch, epochs = record["epoch"], _epochs(folder)
    remaining_s = None
    rate = _steps_per_second(tail(folder / "log.txt", _NUM_BYTES))
    if rate is not None and epochs and epoch:
        per_second, step, logged = rate
        total = epochs * record["step"] / epoch
        # What has passed since that step counts too, however rarely there are records.
        since_s = ((now or datetime.now()) - logged).total_seconds()
        remaining_s = max((total - step) / per_second - since_s, 0.0)
    return Progress(epoch, epochs, record["loss"], record.get("clips_per_second"), remaining_s)


def _last_record(text: str) -> dict[str, float] | None:
    """The newest record of training; the last line may be written at this moment."""
    for line in reversed(text.splitlines()):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and {"step", "epoch", "loss"} <= record.keys():
            return record
    return None


def _epochs(folder: Path) -> int | None:
    """How many epochs the run is to have."""
    try:
        return int(read_stored(folder / "config.yaml")["optim"]["epochs"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _steps_per_second(text: str) -> tuple[float, int, datetime] | None:
    """Speed since the latest start, out of log.txt; the last step with its time."""
    steps: list[tuple[datetime, int]] = []
    for line in text.splitlines():
        if _START.match(line):
            steps = []
        elif found := _LOGGED_STEP.match(line):
            try:
                steps.append((datetime.fromisoformat(found[1]), int(found[2])))
            except ValueError:
                continue  # the first line of the tail may be half a one
    if len(steps) < 2 or steps[-1][0] <= steps[0][0]:
        return None
    seconds = (steps[-1][0] - steps[0][0]).total_seconds()
    return (steps[-1][1] - steps[0][1]) / seconds, steps[-1][1], steps[-1][0]
