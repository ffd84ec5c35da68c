"""Range checks of settings. A fault is one line: name, value, rule. None always passes."""

import math
from typing import Any


def at_least(name: str, value: float | None, low: float) -> None:
    if value is not None and not low <= value < math.inf:  # in this form NaN fails too
        finite = "" if value < low else "finite and "  # NaN and inf
        raise ValueError(f"{name} ({value}) must be {finite}at least {low}")


def all_at_least(group: str, settings: Any, **lows: float) -> None:
    """Check several settings of a group (a prefix such as ``data.``), each with its own limit."""
    for name, low in lows.items():
        at_least(f"{group}{name}", getattr(settings, name), low)


def below_one(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value < 1:
        raise ValueError(f"{name} ({value}) must be in [0, 1)")


def between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} ({value}) must be in [{low}, {high}]")


def multiple(name: str, value: int, of_name: str, of: int) -> None:
    """The message proposes the nearest multiple."""
    if value % of:
        nearest = max(1, round(value / of)) * of
        raise ValueError(
            f"{name} ({value}) must be a multiple of {of_name} ({of}); try {name}={nearest}"
        )
