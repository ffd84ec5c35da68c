"""Pictures of a comparison: variants with their intervals, and probes as pre-training goes on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpm_video.bench.study.intervals import Estimate, estimate
from hpm_video.bench.study.report import ACCURACIES, MINING, Comparison, Measure
from hpm_video.runtime.files import whole_file

_CURVES = ("linear", "attentive", "knn")


def write_plots(comparison: Comparison, folder: Path) -> list[str]:
    """Write what there is to show of a comparison into plots/; returns names within ``folder``."""
    if not comparison.rows:
        return []
    figures = {
        "values": _values(comparison),
        "differences": _differences(comparison),
        "curves": _curves(comparison),
    }
    names = []
    for kind, figure in figures.items():
        if figure is None:
            continue
        names.append(f"plots/{comparison.name}.{kind}.png")
        with whole_file(folder / names[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=100)
    return names


def _values(comparison: Comparison) -> Figure | None:
    """Every cell as a dot, means with intervals."""
    title = (
        f"{comparison.data_set}, equal {comparison.kind}: one grey dot for each seed, mean, 95 % "
        "interval"
    )
    return _panels(comparison, comparison.variants, title, comparison.values, comparison.estimate)


def _differences(comparison: Comparison) -> Figure | None:
    """Paired differences to the base with their intervals."""
    others = [variant for variant in comparison.variants if variant != comparison.base]
    title = (
        f"{comparison.data_set}, equal {comparison.kind}: difference to {comparison.base}, paired "
        "by seed, 95 % interval"
    )
    return _panels(
        comparison, others, title, comparison.differences, comparison.difference, mark_zero=True
    )


def _panels(
    comparison: Comparison,
    variants: list[str],
    title: str,
    dots: Callable[[str, str], Mapping[int, float]],
    mean: Callable[[str, str], Estimate | None],
    *,
    mark_zero: bool = False,
) -> Figure | None:
    """A panel for each measure that there is, a line for each variant, the first on top."""
    kinds = [
        [
            measure
            for measure in measures
            if any(comparison.values(variant, measure.key) for variant in variants)
        ]
        for measures in (ACCURACIES, MINING)
    ]
    kinds = [measures for measures in kinds if measures]
    if not kinds:
        return None
    columns = max(len(measures) for measures in kinds)
    size = (1.5 + 2.1 * columns, 0.5 + len(kinds) * (0.6 + 0.3 * len(variants)))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(kinds), columns, sharey=True, squeeze=False)
    for row, measures in zip(panels, kinds, strict=True):
        for axes in row[len(measures) :]:
            axes.set_visible(False)
        for axes, measure in zip(row, measures, strict=False):
            for place, variant in enumerate(variants):
                values = list(dots(variant, measure.key).values())
                axes.plot(values, [place] * len(values), ".", color="grey", alpha=0.6)
                _mark(axes, place, mean(variant, measure.key))
            _label(axes, measure)
            if mark_zero:
                axes.axvline(0, color="black", linewidth=0.5)
    panels[0][0].set_yticks(range(len(variants)), variants)
    panels[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=10)
    return figure


def _curves(comparison: Comparison) -> Figure | None:
    """Balanced accuracy of probes during pre-training: means over seeds, intervals as bands; of the
    variants with the most seeds, or one less, as in an unfinished study."""
    counts = Counter(row["variant"] for row in comparison.rows if row.get("probe_epochs"))
    main = [name for name, count in counts.items() if count >= max(counts.values()) - 1]
    kinds = [
        kind
        for kind in _CURVES
        if any(f"{kind}_balanced_accuracy_curve" in row for row in comparison.rows)
    ]
    if not kinds:
        return None
    figure = Figure(figsize=(4 * len(kinds), 3.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False, sharey=True)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for variant in main:
            rows = [
                row
                for row in comparison.rows
                if row["variant"] == variant and f"{kind}_balanced_accuracy_curve" in row
            ]
            if not rows:
                continue
            curves = [row[f"{kind}_balanced_accuracy_curve"] for row in rows]
            points = [estimate(values) for values in zip(*curves, strict=True)]
            epochs = rows[0]["probe_epochs"]
            (line,) = axes.plot(epochs, [point.mean for point in points], label=variant)
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15)
        axes.set(title=f"probe: {kind}", xlabel="epoch of pre-training")
        axes.legend(fontsize=7)
    panels[0].set_ylabel("balanced accuracy")
    title = f"{comparison.data_set}, equal {comparison.kind}: frozen encoders, mean, 95 % interval"
    figure.suptitle(title, fontsize=10)
    return figure


def _mark(axes: Axes, place: int, value: Estimate | None) -> None:
    """A mean, and its interval if there is one, which may end beyond the panel: with two seeds it
    is ten times as wide as all that was measured."""
    if value is None:
        return
    axes.plot([value.mean], [place], "o", color="C0", markersize=4)
    if not math.isnan(value.low):
        line = Line2D([value.low, value.high], [place, place], color="C0", linewidth=1.5)
        axes.add_artist(line)  # without a say in what the panel shows


def _label(axes: Axes, measure: Measure) -> None:
    axes.set_title(measure.title, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_locator(MaxNLocator(3))  # more would run into each other
    axes.grid(axis="x", alpha=0.3)
    axes.margins(x=0.3)
