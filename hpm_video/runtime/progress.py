"""Progress of long jobs: a bar on a terminal, otherwise an occasional line."""

import sys
import time
from contextlib import AbstractContextManager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Columns
from rich.table import Column
from rich.text import Text

from hpm_video.runtime.screen import is_for_people

_LINE_EVERY_S = 30.0
_LEAST_ITEMS, _LEAST_S = 5, 5.0  # since the first item, for a speed to be told
_SPEED_OF_S = 900.0  # window over which speed is measured to estimate the time left
_REDRAWS_PER_S = 2


class Bar:
    """A bar at the bottom of a terminal; anything printed meanwhile appears above it.

    Only one bar exists at a time; further progress is printed as lines. ``done``: items of
    ``total`` done earlier, which do not count for the speed.
    """

    is_shown = False

    def __init__(self, what: str, *, total: int, done: int = 0, stream: TextIO) -> None:
        Bar.is_shown = True
        self._console = Console(
            file=stream, force_terminal=True, force_jupyter=False, highlight=False, markup=False,
            emoji=False,
        )  # fmt: skip
        whole = Column(no_wrap=True)
        columns: list[ProgressColumn] = [
            TextColumn("{task.description}", table_column=whole),
            BarColumn(24, table_column=whole),
            TextColumn("{task.completed:,}/{task.total:,}", table_column=whole),
            TextColumn("{task.percentage:.0f} %", table_column=whole),
            TimeRemainingColumn(table_column=whole),
            TextColumn("left  {task.fields[beside]}", table_column=whole),
        ]
        self._columns = Columns(
            *columns, console=self._console, speed_estimate_period=_SPEED_OF_S,
            refresh_per_second=_REDRAWS_PER_S, redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=sys.stderr.isatty(),
        )  # fmt: skip
        self._task = self._columns.add_task(what, total=total, completed=done, beside="")
        self._columns.start()
        self._console.show_cursor(True)  # never hide it: a killed process could not restore it

    def write(self, text: str, *, style: str = "") -> None:
        """Print a line above the bar, without wrapping it."""
        self._console.print(Text(text), style=style, soft_wrap=True)

    def step(self, beside: str | None = None) -> None:
        """Advance by one. ``beside``: text at the end of the bar from now on."""
        if beside is not None:
            self._columns.update(self._task, beside=beside)
        self._columns.advance(self._task)

    def close(self) -> None:
        """Leave the bar on screen and restore the streams."""
        self._columns.stop()
        Bar.is_shown = False


class Progress(AbstractContextManager["Progress"]):
    """Counts items done, on stderr.

    Args:
        what: the job in a word, such as `checked`; "" prints nothing, for ranks other than 0.
        total: number of items.
        done: items done earlier, which do not count for the speed.
    """

    def __init__(self, what: str, *, total: int, done: int = 0) -> None:
        self._what, self._total, self._done = what, total, done
        self._num_bad = 0
        self._said = time.monotonic()
        self._first: tuple[int, float] | None = None  # of this process: number, time
        shows_bar = bool(what) and is_for_people(sys.stderr) and not Bar.is_shown
        self._bar = Bar(what, total=total, done=done, stream=sys.stderr) if shows_bar else None

    def step(self, *, bad: bool) -> None:
        """Count one item."""
        self._done += 1
        self._num_bad += bad
        if self._bar is not None:
            self._bar.step(f"{self._num_bad:,} bad" if self._num_bad else None)
        now = time.monotonic()
        # Before the first item processes start and models load, which says nothing about the rest
        self._first = self._first or (self._done, now)
        if self._bar is None and self._what and now - self._said > _LINE_EVERY_S:
            self._said = now
            sys.stderr.write(
                f"{self._what} {self._done:,} of {self._total:,} ({self._num_bad:,} bad)"
                f"{self._speed(*self._first, now)}\n"
            )

    def _speed(self, first: int, since: float, now: float) -> str:
        """Speed and time left; nothing before there are enough items to tell."""
        if (count := self._done - first) < _LEAST_ITEMS or now - since < _LEAST_S:
            return ""
        speed = count / (now - since)
        said = f"{speed:.1f}/s" if speed >= 1 else f"{60 * speed:.2g}/min"
        return f", {said}, {in_words((self._total - self._done) / speed)} left"

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


def in_words(seconds: float) -> str:
    """A duration as days, hours, minutes and seconds."""
    days = f"{int(seconds // 86400)} d " if seconds >= 86400 else ""
    return days + time.strftime("%H:%M:%S", time.gmtime(seconds))
