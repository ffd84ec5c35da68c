"""What a run leaves to read: log.txt, metrics.jsonl, loggers, and a line or bar on screen."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from hpm_video.runtime.files import own_file, printable, write_atomically, writing
from hpm_video.runtime.reading import parse_json, read_text
from hpm_video.train.run.loggers import PATIENCE_S, About, Background, End, Point

Record = Mapping[str, float | int | None]


class RunLog:
    """Writers of one run folder; every method does nothing on processes other than the main one.

    A run that continues from ``start_step`` first drops the records after it, which an interrupted
    start may have left: `metrics.jsonl` then reads as if nothing had happened. So do ``loggers``,
    which are told the run's ``settings``.

    ``is_complete``: whether the run has come to its end; else loggers call it still running.
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
        # Names of files may hold bytes that are not UTF-8
        self._metrics, self._text = (
            open(file, "a", encoding="utf-8", errors=errors, opener=own_file)  # noqa: SIM115
            for file, errors in ((metrics, "strict"), (folder / "log.txt", "backslashreplace"))
        )
        self._bar = tqdm(
            total=total_steps,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stdout.isatty(),
            file=sys.stdout,
        )
        about = About(folder, start_step, settings or {}, _history(folder, settings or {}))
        self._loggers = [Background(name, about) for name in loggers]

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if not self.is_main:
            return
        self._bar.close()
        with ExitStack() as files:
            if error is not None:
                # On screen the command line says it, or a traceback does. It may be the full disk.
                files.enter_context(suppress(OSError, ValueError))
            files.callback(self._text.close)
            files.callback(self._metrics.close)
            self._close_loggers(failed=error is not None)
            if error is not None:
                self._write(f"stopped: {type(error).__name__}: {error}")

    def line(self, text: str, *, details: str = "") -> None:
        """One line of plain text, on screen and, with the time and details, in log.txt."""
        if not self.is_main:
            return
        text = printable(text)
        self._bar.write(text, file=sys.stdout) if not self._bar.disable else print(text, flush=True)
        self._write(text + details)

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
        self.line(format_record(values))
        self._tell("write", _points(values, prefix))

    def pictures(self, figures: Mapping[str, Figure], *, step: int) -> None:
        """Figures by their tags, into TensorBoard."""
        if self.is_main:
            self._tell("pictures", figures, step)

    def histograms(self, values: Mapping[str, Tensor], *, step: int) -> None:
        """Distributions of finite values of any shape by their tags, into TensorBoard."""
        if self.is_main:
            self._tell("histograms", {tag: tensor.cpu() for tag, tensor in values.items()}, step)

    def warning(self, text: str, *, tag: str, step: int) -> None:
        """A `line` that TensorBoard shows too, among its texts."""
        self.line(f"warning: {text}")
        if self.is_main:
            self._tell("text", tag, text, step)

    def _tell(self, what: str, *arguments: Any) -> None:
        for logger in self._loggers:
            logger.put(what, *arguments)
        self._drop_loggers()

    def _drop_loggers(self) -> None:
        """Go on without those that have failed, which is said once."""
        for logger in self._loggers:
            if logger.problem:
                self.line(
                    f"warning: run.loggers: {logger.name} {logger.problem}: it is off until the "
                    "next start; metrics.jsonl has all records"
                )
        self._loggers = [logger for logger in self._loggers if not logger.problem]

    def _close_loggers(self, *, failed: bool) -> None:
        until_s = time.monotonic() + PATIENCE_S
        end: End = "failed" if failed else "finished" if self.is_complete else "stopped"
        for logger in self._loggers:
            logger.close(end, until_s=until_s)
        self._drop_loggers()

    def progress(self, loss: float | None = None) -> None:
        """One more step is done."""
        if self.is_main and not self._bar.disable:
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4f}")
            self._bar.update()


def _points(values: Record, prefix: str) -> list[Point]:
    """A record as points of curves."""
    step = int(values["step"] or 0)
    return [
        Point(f"{prefix}/{name}", value, step)
        for name, value in values.items()
        if value is not None and name not in ("step", "epoch")
    ]


def _history(folder: Path, settings: Mapping[str, Any]) -> list[Point]:
    """What metrics.jsonl has, by the names it was recorded under."""
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
    """A record, unless others wrote something else into the file."""
    step = record.get("step") if isinstance(record, dict) else None
    if isinstance(step, bool) or not isinstance(step, int | float):
        raise ValueError(
            f"{file}:{number}: must be a record with a step, a number: mend or remove the line"
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
            break  # half a line, the last thing an interrupted start wrote
        if step and record["step"] <= step:  # before the first step nothing has been
            kept.append(line + "\n")
    write_atomically(path, kept)
