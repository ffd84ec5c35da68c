"""Plots of a comparison: variants with their intervals, and probes during pre-training."""

import math
from collections import Counter
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from hpm_video.bench.study.comparison import ACCURACIES, MINING, Comparison, estimate
from hpm_video.runtime.files import whole_file


def write_plots(comparison: Comparison, folder: Path) -> list[str]:
    """Write the plots of a comparison to plots/; returns their names relative to ``folder``."""
    if not comparison.rows:
        return []
    names = []
    with rc_context({"text.parse_math": False}):  # names of variants may contain $
        figures = {
            "values": _panels(comparison),
            "differences": _panels(comparison, paired=True),
            "curves": _curves(comparison),
        }
        for kind, figure in figures.items():
            if figure is not None:
                names.append(f"plots/{comparison.name}.{kind}.png")
                with whole_file(folder / names[-1]) as temporary:
                    figure.savefig(temporary, format="png", dpi=100)
    return names


def _panels(comparison: Comparison, *, paired: bool = False) -> Figure | None:
    """A panel for each available measure with a line for each variant, the first on top.

    A line shows a dot for every cell, the mean and its interval; with ``paired``, of differences
    to the base.
    """
    variants, base = comparison.variants, comparison.base
    dots, mean, shown = comparison.values, comparison.estimate, "one grey dot per seed, mean"
    if paired:
        variants = [variant for variant in variants if variant != base]
        dots, mean = comparison.differences, comparison.difference
        shown = f"difference from {base}, paired by seed"
    kinds = [comparison.measured(measures, variants) for measures in (ACCURACIES, MINING)]
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
                if (found := mean(variant, measure.key)) is None:
                    continue
                axes.plot([found.mean], [place], "o", color="C0", markersize=4)
                if not math.isnan(found.low):
                    # An artist, which does not change the axis limits: with two seeds, the interval
                    # is ten times as wide as the range of the values
                    ends = [found.low, found.high]
                    axes.add_artist(Line2D(ends, [place, place], color="C0", linewidth=1.5))
            if paired:
                axes.axvline(0, color="black", linewidth=0.5)
            axes.set_title(measure.title, fontsize=8)
            axes.tick_params(labelsize=7)
            axes.xaxis.set_major_locator(MaxNLocator(3))  # more labels would overlap
            axes.grid(axis="x", alpha=0.3)
            axes.margins(x=0.3)
    panels[0][0].set_yticks(range(len(variants)), variants)
    panels[0][0].invert_yaxis()
    title = f"{comparison.data_set}, equal {comparison.kind}: {shown}, 95 % interval"
    figure.suptitle(title, fontsize=10)
    return figure


def _curves(comparison: Comparison) -> Figure | None:
    """Curves over pre-training: balanced accuracy of probes, rank accuracy and hard ratio.

    Shows means over seeds, with intervals as bands, for the variants with the most seeds or one
    less, as in an unfinished study.
    """
    counts = Counter(row["variant"] for row in comparison.rows if row.get("probe_epochs"))
    main = [name for name, count in counts.items() if count >= max(counts.values()) - 1]
    titles = {
        f"{kind}_balanced_accuracy": f"probe: {kind}" for kind in ("linear", "attentive", "knn")
    }
    titles |= {"rank_accuracy": "rank accuracy in training", "hard_ratio": "hard ratio"}
    rows = {
        kind: [row for row in comparison.rows if any(row.get(f"{kind}_curve", []))]
        for kind in titles
    }
    kinds = [kind for kind in titles if rows[kind]]
    if not kinds:
        return None
    figure = Figure(figsize=(4 * len(kinds), 3.2), layout="constrained")
    panels = figure.subplots(1, len(kinds), squeeze=False)[0]
    for axes, kind in zip(panels, kinds, strict=True):
        for variant in main:
            own = [row for row in rows[kind] if row["variant"] == variant]
            if not own:
                continue
            curves = [row[f"{kind}_curve"] for row in own]
            points = [estimate(values) for values in zip(*curves, strict=True)]
            epochs = own[0]["probe_epochs"]
            (line,) = axes.plot(epochs, [point.mean for point in points], label=variant)
            low, high = [point.low for point in points], [point.high for point in points]
            axes.fill_between(epochs, low, high, color=line.get_color(), alpha=0.15)
        axes.set(title=titles[kind], xlabel="epoch of pre-training")
        axes.legend(fontsize=7)
        if kind.endswith("_balanced_accuracy"):
            axes.set_ylabel("balanced accuracy")
    title = f"{comparison.data_set}, equal {comparison.kind}: frozen encoders, mean, 95 % interval"
    figure.suptitle(title, fontsize=10)
    return figure
