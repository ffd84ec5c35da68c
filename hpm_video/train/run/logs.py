"""A run's logs: log.txt, metrics.jsonl and loggers, and a table or plain lines on screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

from matplotlib.figure import Figure
from torch import Tensor

from hpm_video.runtime.files import own_file, printable, write_atomically, writing
from hpm_video.runtime.progress import Bar, in_words
from hpm_video.runtime.reading import parse_json, read_text
from hpm_video.runtime.screen import is_for_people
from hpm_video.train.run.loggers import PATIENCE_S, About, Background, End, Point

Record = Mapping[str, float | int | None]


class RunLog:
    """Writes the logs of one run folder; on ranks other than 0, all methods do nothing.

    A run that continues from ``start_step`` first drops later records of an interrupted start, from
    `metrics.jsonl` and from ``loggers``, which also get the run's ``settings``.

    ``is_complete``: set it when the run has finished; otherwise loggers show it as running.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_main: bool,
        start_step: int,
        total_steps: int,
        loggers: Sequence[str] = ("tensorboard",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.is_main, self.is_complete = is_main, False
        if not is_main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        metrics = folder / "metrics.jsonl"
        _drop_records_after(metrics, start_step)
        # File names may contain bytes that are not UTF-8
        self._metrics, self._text = (
            open(file, "a", encoding="utf-8", errors=errors, opener=own_file)  # noqa: SIM115
            for file, errors in ((metrics, "strict"), (folder / "log.txt", "backslashreplace"))
        )
        about = About(folder, start_step, settings or {}, _history(folder, settings or {}))
        self._loggers = [Background(name, about) for name in loggers]
        self._table, self._bar = RecordTable(), None
        if is_for_people(sys.stdout):
            self._bar = Bar("step", total=total_steps, done=start_step, stream=sys.stdout)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.is_main:
            return
        with ExitStack() as files:
            if self._bar is not None:
                files.callback(self._bar.close)  # after the last line
            if error is not None:
                # The command prints the error itself; writing it here may fail (full disk)
                files.enter_context(suppress(OSError, ValueError))
            files.callback(self._text.close)
            files.callback(self._metrics.close)
            self._close_loggers(failed=error is not None)
            if error is not None:
                self._write(f"stopped: {type(error).__name__}: {error}")

    def line(self, text: str, *, details: str = "") -> None:
        """Print one line of text, and write it with time and details to log.txt."""
        if not self.is_main:
            return
        text = printable(text)
        self._show(text)
        self._write(text + details)

    def _show(self, text: str, *, style: str = "") -> None:
        if self._bar is not None:
            self._bar.write(text, style=style)
        else:
            print(text, flush=True)

    def _write(self, text: str) -> None:
        with writing(self._folder):
            self._text.write(f"{datetime.now().isoformat(timespec='seconds')} {text}\n")
            self._text.flush()

    def record(self, values: Record, *, prefix: str) -> None:
        """Append one record (it has a ``step``) to metrics.jsonl and TensorBoard, and show it."""
        if not self.is_main:
            return
        with writing(self._folder):
            self._metrics.write(json.dumps(values) + "\n")
            self._metrics.flush()
        text = format_record(values)
        if self._bar is not None and "grad_norm" in values:  # of steps, not of an evaluation
            for line, style in self._table.lines(values):
                self._show(line, style=style)
        else:
            self._show(text)
        self._write(text)
        self._tell("write", _points(values, prefix))

    def first_figures(self, loss: float, *, step: int, step_s: float, steps_left: int) -> None:
        """Print figures of the first steps, since the first record may take long to come."""
        if self.is_main:
            left = in_words(step_s * steps_left)
            self._show(
                f"after {step:,} steps: loss {loss:.4g}, {step_s:.3g} s per step, about {left} left"
            )

    def pictures(self, figures: Mapping[str, Figure], *, step: int) -> None:
        """Write figures, keyed by tag, to TensorBoard."""
        if self.is_main:
            self._tell("pictures", figures, step)

    def histograms(self, values: Mapping[str, Tensor], *, step: int) -> None:
        """Write histograms of finite values of any shape, keyed by tag, to TensorBoard."""
        if self.is_main:
            self._tell("histograms", {tag: tensor.cpu() for tag, tensor in values.items()}, step)

    def warning(self, text: str, *, tag: str, step: int) -> None:
        """A `line` that TensorBoard shows as well, as text."""
        self.line(f"warning: {text}")
        if self.is_main:
            self._tell("text", tag, text, step)

    def _tell(self, what: str, *arguments: Any) -> None:
        for logger in self._loggers:
            logger.put(what, *arguments)
        self._drop_loggers()

    def _drop_loggers(self) -> None:
        """Drop loggers that have failed, with one warning each."""
        for logger in self._loggers:
            if logger.problem:
                self.line(
                    f"warning: run.loggers: {logger.name} {logger.problem}; it stays off until the "
                    "next start, and metrics.jsonl has all records"
                )
        self._loggers = [logger for logger in self._loggers if not logger.problem]

    def _close_loggers(self, *, failed: bool) -> None:
        until_s = time.monotonic() + PATIENCE_S
        end: End = "failed" if failed else "finished" if self.is_complete else "stopped"
        for logger in self._loggers:
            logger.close(end, until_s=until_s)
        self._drop_loggers()

    def progress(self, loss: float | None = None) -> None:
        """Advance the progress bar by one step."""
        if self.is_main and self._bar is not None:
            self._bar.step(None if loss is None else f"loss {loss:.4f}")


class RecordTable:
    """Formats records as table rows with the main figures; repeats the header now and then."""

    # Figure -> column name and format
    _FIGURES: ClassVar[dict[str, tuple[str, str]]] = {
        "step": ("step", "{:,}"),
        "epoch": ("epoch", "{:.2f}"),
        "loss": ("loss", "{:.4f}"),
        "rank_accuracy": ("rank acc.", "{:.3f}"),
        "hard_ratio": ("hard ratio", "{:.2f}"),
        "lr": ("lr", "{:.2e}"),
        "clips_per_second": ("clips/s", "{:.1f}"),
        "data_wait_fraction": ("waiting", "{:.0%}"),
    }
    _NAMES_EVERY = 20  # rows

    def __init__(self) -> None:
        self._names: list[str] = []
        self._rows = 0

    def lines(self, values: Record) -> Iterator[tuple[str, str]]:
        """Lines for a record, each with a style."""
        known = [name for name in self._FIGURES if values.get(name) is not None]
        if not set(known) <= set(self._names) or self._rows % self._NAMES_EVERY == 0:
            self._names, self._rows = known, 0
            yield self._line(self._FIGURES[name][0] for name in self._names), "bold"
        self._rows += 1
        cells = (
            "-" if (value := values.get(name)) is None else self._FIGURES[name][1].format(value)
            for name in self._names
        )
        yield self._line(cells), ""

    def _line(self, cells: Iterable[str]) -> str:
        widths = (max(len(self._FIGURES[name][0]) + 2, 9) for name in self._names)
        return "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))


def _points(values: Record, prefix: str) -> list[Point]:
    """The points of a record."""
    step = int(values["step"] or 0)
    return [
        Point(f"{prefix}/{name}", value, step)
        for name, value in values.items()
        if value is not None and name not in ("step", "epoch")
    ]


def _history(folder: Path, settings: Mapping[str, Any]) -> list[Point]:
    """The points in metrics.jsonl, by the names they were logged under."""
    steps, others = ("pretrain", "probe") if "masking" in settings else ("finetune", "evaluation")
    return [
        point
        for record in read_records(folder)
        for point in _points(record, steps if "grad_norm" in record else others)
    ]


def format_record(values: Record) -> str:
    """``name value`` pairs on one line."""
    known = [(name, value) for name, value in values.items() if value is not None]
    return "  ".join(f"{n} {v:.4g}" if isinstance(v, float) else f"{n} {v}" for n, v in known)


def read_records(folder: Path) -> list[dict[str, float]]:
    """All records of a run folder's metrics.jsonl, oldest first."""
    file = folder / "metrics.jsonl"
    return [
        _checked(parse_json(line), file, number)
        for number, line in enumerate(read_text(file).splitlines(), start=1)
    ]


def _checked(record: Any, file: Path, number: int) -> dict[str, float]:
    """Check that a line of the file is a record."""
    step = record.get("step") if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int | float):
        raise ValueError(
            f"{file}:{number}: must be a record whose step is a number: fix or remove the line"
        )
    return record


def _drop_records_after(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept: list[str] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        try:
            record = _checked(parse_json(line), path, number)
        except json.JSONDecodeError:
            break  # a half-written line of an interrupted start
        if step and record["step"] <= step:
            kept.append(line + "\n")
    write_atomically(path, kept)
