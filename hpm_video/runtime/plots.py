"""Small pictures of numbers for our pages: what is where in them. plots.html draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeGuard

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import to_hex

Values = npt.NDArray[np.floating]

# The box of curves and bars in a picture of 330 x 120: numbers are beside and below it
LEFT, RIGHT, TOP, BASE = 54, 324, 8, 102
_NUM_BARS = 40
_MOST_DOTS = 200


def colour(value: float) -> str:
    """The colour of a value in [0, 1], of all our pages: dark is easy, yellow is hard."""
    return to_hex(colormaps["inferno"](min(max(value, 0.0), 1.0)))


class Line(NamedTuple):
    """A curve: its name, and y at x; None or NaN where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


class Point(NamedTuple):
    """A point of a curve, and where in the picture it is."""

    x: float
    y: float
    across: float
    down: float


@dataclass(frozen=True)
class Plot:
    """Curves (name, points) or bars (left, upper, height, words) in a box with its ends written."""

    title: str
    says: str
    x_name: str
    first: str
    last: str
    bottom: str
    top: str
    curves: Sequence[tuple[str, list[Point]]] = ()
    bars: Sequence[tuple[float, float, float, str]] = ()
    box = (LEFT, RIGHT, TOP, BASE)


@dataclass(frozen=True)
class HeatMap:
    """Values (R, C), coloured from low to high; ``unit``: what a value is, in a few words."""

    title: str
    values: Values
    low: float
    high: float
    unit: str
    ramp = ", ".join(colour(place / 8) for place in range(9))

    def colour(self, value: float) -> str:
        return colour((value - self.low) / ((self.high - self.low) or 1.0))


class Spread(NamedTuple):
    """Places from 0 to 200: of values, of their mean, and of one standard deviation around it."""

    dots: Sequence[float]
    middle: float
    start: float
    end: float


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    low: float | None = None,
    high: float | None = None,
    is_log: bool = False,
) -> Plot | None:
    """Lines over a common x; None where no y is known.

    ``low``, ``high``: ends of the axis that hold at least; more where there are values beyond.
    ``is_log``: equal ratios of y, which are above 0, are equally far apart.
    """
    known = [[(x, y) for x, y in zip(*line[1:], strict=True) if _is_number(y)] for line in lines]
    heights = [y for points in known for _, y in points]
    if not heights:
        return None
    bottom = min(*heights, heights[0] if low is None else low)
    top = max(*heights, heights[0] if high is None else high)
    if bottom == top:
        above = (bottom if low is None else low + 0.5) - 0.5  # a lower end that is given stays
        bottom, top = (bottom / 2, top * 2) if is_log else (above, above + 1)
    scale = math.log if is_log else float
    places = [x for line in lines for x in line.x]
    first, last = min(places), max(places)

    def at(x: float, y: float) -> Point:
        across = (x - first) / ((last - first) or 1)
        down = (scale(top) - scale(y)) / (scale(top) - scale(bottom))
        return Point(x, y, LEFT + across * (RIGHT - LEFT), TOP + down * (BASE - TOP))

    says = [
        f"{line.name} " + (f"from {of[0][1]:.3g} to {of[-1][1]:.3g}" if of else "unknown")
        for line, of in zip(lines, known, strict=True)
    ]
    return Plot(
        title,
        f"{title.rstrip(':')}: {'; '.join(says)}",
        x_name,
        *(f"{first:g}", f"{last:g}", *_apart(bottom, top)),
        curves=[(line.name, [at(*p) for p in of]) for line, of in zip(lines, known, strict=True)],
    )


def histogram(values: Values, *, title: str, unit: str) -> Plot:
    """How many values lie where. Bars of whole numbers hold equally many of these, at least one."""
    are_whole = bool((values == np.round(values)).all()) and values.min() < values.max()
    bins: int | Values = _NUM_BARS
    if are_whole:
        step = math.ceil((values.max() - values.min() + 1) / _NUM_BARS)
        bins = np.append(np.arange(values.min(), values.max() + 1, step), values.max() + 1)
    counts, edges = np.histogram(values, bins=bins)
    lows, highs = edges[:-1], edges[1:] - are_whole  # the last whole number of each bar
    tallest = max(1, int(counts.max()))
    heights = counts / tallest * (BASE - TOP)
    width = (RIGHT - LEFT) / len(counts)
    first, last = float(lows[0]), float(highs[-1])
    return Plot(
        title,
        f"{title}: {len(values)} from {_said(values.min())} to {_said(values.max())}",
        unit,
        *((_said(first), _said(last)) if are_whole else _apart(first, last)),
        *("", str(tallest)),
        bars=[
            (LEFT + k * width, BASE - height, height, f"{unit} {_between(low, high)}: {count}")
            for k, (height, low, high, count) in enumerate(
                zip(heights, lows, highs, counts, strict=True)
            )
        ],
    )


def _between(low: float, high: float) -> str:
    return _said(low) if low == high else f"{_said(low)} to {_said(high)}"


def _said(value: float) -> str:
    """A number with three digits, or all of those of a whole one."""
    return f"{value:.0f}" if value == round(value) else f"{value:.3g}"


def spread(values: Values, *, low: float, high: float) -> Spread:
    """Numbers as dots on a line from low to high; of many every second, third, ... one."""
    mean, deviation = float(values.mean()), float(values.std())
    inside = np.clip([mean - deviation, mean + deviation], low, high)
    step = max(1, math.ceil(len(values) / _MOST_DOTS))
    places = (np.array([mean, *inside, *np.sort(values)[::step]]) - low) / ((high - low) or 1) * 200
    middle, start, end, *dots = places.tolist()
    return Spread(dots, middle, start, end)


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def _apart(low: float, high: float) -> tuple[str, str]:
    """Both ends of an axis, with as few digits as show that they differ, but at least three."""
    written = [(f"{low:.{digits}g}", f"{high:.{digits}g}") for digits in range(3, 8)]
    return next((pair for pair in written if pair[0] != pair[1]), written[-1])
