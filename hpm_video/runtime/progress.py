"""How far a long job is: a bar on a terminal, else a line now and then."""

import sys
import time
from contextlib import AbstractContextManager

from tqdm import tqdm

_LINE_EVERY_S = 30.0


class Progress(AbstractContextManager["Progress"]):
    """Counts items done, on stderr.

    Args:
        what: the job in a word, as `checked`.
        total: how many items there are.
        done: how many of these were done before, which say nothing of the speed.
        unit: an item, in a word.
    """

    def __init__(self, what: str, *, total: int, done: int = 0, unit: str = "video") -> None:
        self._what, self._total, self._done, self._before = what, total, done, done
        self._num_bad = 0
        self._started = self._said = time.monotonic()
        self._bar = (
            tqdm(desc=what, total=total, initial=done, unit=unit, dynamic_ncols=True)
            if sys.stderr.isatty()
            else None
        )

    def step(self, *, bad: bool) -> None:
        """One more item is done."""
        self._done += 1
        self._num_bad += bad
        if self._bar is not None:
            self._bar.set_postfix(bad=self._num_bad, refresh=False)
            self._bar.update()
        elif (now := time.monotonic()) - self._said > _LINE_EVERY_S:
            self._said = now
            speed = (self._done - self._before) / (now - self._started)
            left = time.strftime("%H:%M:%S", time.gmtime((self._total - self._done) / speed))
            days = int((self._total - self._done) / speed // 86400)
            sys.stderr.write(
                f"{self._what} {self._done:,} of {self._total:,} ({self._num_bad:,} bad), "
                f"{speed:.1f}/s, {f'{days} d ' if days else ''}{left} left\n"
            )

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
