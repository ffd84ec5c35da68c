"""Signals that end jobs, as a flag that a loop reads."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopFlag:
    """True once a signal came that ends jobs; the loop reads it at the end of a step."""

    def __init__(self) -> None:
        self.name: str | None = None

    def __bool__(self) -> bool:
        return self.name is not None


@contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """Turn SIGINT, SIGTERM and SIGUSR2 into a flag; a second Ctrl-C interrupts at once."""
    flag = StopFlag()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

    def handler(number: int, frame: FrameType | None) -> None:
        if flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.name = signal.Signals(number).name

    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield flag
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
