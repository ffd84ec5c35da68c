"""Small pictures of numbers for our pages, as SVG that takes the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.colors import to_hex

from hpm_video.runtime.pages import text

_LEFT, _TOP, _BOTTOM = 46, 8, 18  # room for numbers beside and below a curve
_WIDTH, _HEIGHT = 330, 120


@dataclass(frozen=True)
class Line:
    """A curve: its name, and y at x; None or NaN where there is none."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


def colour(value: float) -> str:
    """The colour of a value in [0, 1], of all our pages: dark is easy, yellow is hard."""
    return to_hex(colormaps["inferno"](min(max(value, 0.0), 1.0)))


def heat_map(
    values: npt.NDArray[np.floating], *, title: str, low: float, high: float, unit: str
) -> str:
    """Values (R, C) as a picture, coloured from low to high; each is said where one points at it.

    ``unit``: what a value is, in a few words.
    """
    rows, columns = values.shape
    span = (high - low) or 1.0
    cells = "".join(
        f'<rect x="{column}" y="{row}" width="1.02" height="1.02" '
        f'fill="{colour((value - low) / span)}">'
        f"<title>row {row}, column {column}: {unit} {value:.3g}</title></rect>"
        for (row, column), value in np.ndenumerate(values)
    )
    says = f"{title}: from {values.min():.3g} to {values.max():.3g}"
    ramp = ", ".join(colour(place / 8) for place in range(9))
    return (
        f"<figure><figcaption>{text(title)}</figcaption>"
        f'<svg class="map" role="img" aria-label="{text(says)}" viewBox="0 0 {columns} {rows}" '
        f'style="aspect-ratio: {columns}/{rows}" shape-rendering="crispEdges">{cells}</svg>'
        f'<div class="ramp"><span>{low:.3g}</span>'
        f'<i style="background: linear-gradient(90deg, {ramp})"></i>'
        f"<span>{high:.3g}</span></div></figure>"
    )


def curves(
    lines: Sequence[Line],
    *,
    title: str,
    x_name: str,
    low: float | None = None,
    high: float | None = None,
    is_log: bool = False,
) -> str:
    """Lines over a common x, each point of which is said where one points at it.

    ``low``, ``high``: ends of the axis that hold at least; more where there are values beyond.
    ``is_log``: equal ratios of y, which are above 0, are equally far apart. The page can mark a
    place: ``data-first`` and ``data-last`` are the x of both ends of the plot, at ``data-left`` and
    ``data-right``; the line to be moved has the class ``cursor``.
    """
    known = [y for line in lines for y in line.y if _is_number(y)]
    places = [x for line in lines for x in line.x]
    if not known:
        return ""
    bottom, top = min([*known, *_given(low)]), max([*known, *_given(high)])
    if bottom == top:
        bottom, top = (bottom / 2, top * 2) if is_log else (bottom - 0.5, top + 0.5)
    scale: Callable[[float], float] = math.log if is_log else float
    first, last = min(places), max(places)
    base, right = _HEIGHT - _BOTTOM, _WIDTH - 6

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - first) / ((last - first) or 1)
        return (
            _LEFT + across * (right - _LEFT),
            _TOP + (scale(top) - scale(y)) / (scale(top) - scale(bottom)) * (base - _TOP),
        )

    parts = []
    for number, line in enumerate(lines):
        points = [(x, y, *at(x, y)) for x, y in zip(line.x, line.y, strict=True) if _is_number(y)]
        path = " ".join(f"{x:.1f},{y:.1f}" for _, _, x, y in points)
        parts.append(f'<polyline class="line{number}" points="{path}"/>')
        if len(points) <= 60:
            parts += [
                f'<circle class="line{number}" cx="{cx:.1f}" cy="{cy:.1f}" r="2.5">'
                f"<title>{text(line.name)}, {x_name} {x:g}: {y:.4g}</title></circle>"
                for x, y, cx, cy in points
            ]
    names = " ".join(
        f'<span class="key{number}">{text(line.name)}</span>' for number, line in enumerate(lines)
    )
    ends = "; ".join(f"{line.name} {_ends(line)}" for line in lines)
    return (
        f"<figure><figcaption>{text(title)} {names if len(lines) > 1 else ''}</figcaption>"
        f'<svg class="curve" role="img" aria-label="{text(f"{title}: {ends}")}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT}" data-first="{first:g}" data-last="{last:g}" '
        f'data-left="{_LEFT}" data-right="{right}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{right}"/>'
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{_LEFT - 4}" y="{base}" text-anchor="end">{bottom:.3g}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{first:g}</text>'
        f'<text x="{right}" y="{_HEIGHT - 4}" text-anchor="end">{x_name} {last:g}</text>'
        f'{"".join(parts)}<path class="cursor" d="M0 {_TOP}V{base}" visibility="hidden"/>'
        "</svg></figure>"
    )


def spread(
    values: npt.NDArray[np.floating], *, low: float, high: float, most_dots: int = 200
) -> str:
    """Numbers as dots on a line from low to high, their mean as a bar and one standard deviation
    to either side as a box."""
    span = (high - low) or 1.0
    mean, deviation = float(values.mean()), float(values.std())
    start, end = (
        (max(low, min(high, v)) - low) / span * 200 for v in (mean - deviation, mean + deviation)
    )
    step = max(1, math.ceil(len(values) / most_dots))
    dots = "".join(
        f'<circle cx="{(value - low) / span * 200:.1f}" cy="8" r="2"/>'
        for value in np.sort(values)[::step]
    )
    says = f"mean {mean:.4g}, standard deviation {deviation:.2g}"
    return (
        f'<svg class="spread" role="img" aria-label="{says}" viewBox="-4 0 208 16">'
        f'<rect x="{start:.1f}" y="3" width="{end - start:.1f}" height="10"/>{dots}'
        f'<path d="M{(mean - low) / span * 200:.1f} 1V15"/></svg>'
    )


def histogram(values: npt.NDArray[np.floating], *, title: str, unit: str, bins: int = 40) -> str:
    """How many values lie where, as bars."""
    counts, edges = np.histogram(values, bins=bins)
    tallest = max(1, int(counts.max()))
    base = _HEIGHT - _BOTTOM
    width = (_WIDTH - _LEFT - 6) / bins
    bars = "".join(
        f'<rect x="{_LEFT + place * width:.1f}" width="{width - 0.5:.1f}" '
        f'y="{base - count / tallest * (base - _TOP):.1f}" '
        f'height="{count / tallest * (base - _TOP):.1f}">'
        f"<title>{unit} {edges[place]:.3g} to {edges[place + 1]:.3g}: {count}</title></rect>"
        for place, count in enumerate(counts)
    )
    says = f"{title}: {len(values)} from {values.min():.3g} to {values.max():.3g}"
    return (
        f"<figure><figcaption>{text(title)}</figcaption>"
        f'<svg class="bars" role="img" aria-label="{text(says)}" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
        f'<path class="axis" d="M{_LEFT} {_TOP}V{base}H{_WIDTH - 6}"/>{bars}'
        f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor="end">{tallest}</text>'
        f'<text x="{_LEFT}" y="{_HEIGHT - 4}">{edges[0]:.3g}</text>'
        f'<text x="{_WIDTH - 6}" y="{_HEIGHT - 4}" text-anchor="end">{unit} {edges[-1]:.3g}</text>'
        "</svg></figure>"
    )


def _ends(line: Line) -> str:
    known = [y for y in line.y if _is_number(y)]
    return f"from {known[0]:.3g} to {known[-1]:.3g}" if known else "unknown"


def _given(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _is_number(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
