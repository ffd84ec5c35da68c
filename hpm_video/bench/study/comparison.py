"""Compares the rows of finished cells: means, and paired differences to the base."""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from scipy import stats

from hpm_video.bench.study.calibration import calibrated_cells, seconds_per_step
from hpm_video.bench.study.cell import Row, read_row
from hpm_video.bench.study.cells import Study

CONFIDENCE = 0.95
POWER = 0.8
# Name for probe results of the base's encoders before the first step; no variant can have it
UNTRAINED = "before training"


class Measure(NamedTuple):
    """A column of tables. key: its name in the rows. digits: after the decimal point."""

    key: str
    title: str
    digits: int = 3


ACCURACIES = (
    Measure("balanced_accuracy", "fine-tuned, balanced"),
    Measure("top1", "fine-tuned, top-1"),
    Measure("labels_area", "fine-tuned, area over labels"),
    Measure("attentive_labels_area", "attentive probe, area over labels"),
    Measure("linear_labels_area", "linear probe, area over labels"),
    Measure("knn_labels_area", "nearest neighbours, area over labels"),
    Measure("linear_balanced_accuracy", "linear probe"),
    Measure("attentive_balanced_accuracy", "attentive probe"),
    Measure("knn_balanced_accuracy", "nearest neighbours"),
    Measure("hard_linear_balanced_accuracy", "hard: linear"),
    Measure("hard_attentive_balanced_accuracy", "hard: attentive"),
    Measure("hard_knn_balanced_accuracy", "hard: neighbours"),
)
MINING = (
    Measure("rank_accuracy", "rank accuracy"),
    Measure("spearman", "Spearman"),
    Measure("object_coverage", "object in the hardest quarter"),
    Measure("motion_spearman", "Spearman of motion"),
    Measure("motion_object_coverage", "object in the quarter that moves most"),
    Measure("codec_spearman", "Spearman of the codec's motion"),
    Measure("codec_object_coverage", "object in the quarter that moves most, by the codec"),
    Measure("feature_variation", "feature variation"),
)
COSTS = (
    Measure("epochs", "epochs", 0),
    Measure("clips_per_second", "clips/s", 1),
    Measure("training_seconds", "training, s", 0),
    Measure("compute_seconds", "calibrated, s", 0),
)


@dataclass(frozen=True)
class Estimate:
    """Estimate of a mean over ``count`` seeds.

    spread: sample standard deviation. low, high: 95 % confidence interval of the mean, for normally
    distributed values. p: of a mean of 0, two-sided. All four are NaN for a single value.
    """

    count: int
    mean: float
    spread: float
    low: float
    high: float
    p: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the confidence interval."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one or more values, with the interval of Student's t distribution."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(1, mean, math.nan, math.nan, math.nan, math.nan)
    spread = statistics.stdev(values)
    if not spread:
        return Estimate(count, mean, 0.0, mean, mean, float(not mean))  # scipy would give NaN
    low, high = stats.t.interval(CONFIDENCE, count - 1, loc=mean, scale=stats.sem(values))
    p = stats.ttest_1samp(values, 0).pvalue
    return Estimate(count, mean, spread, float(low), float(high), float(p))


def corrected(p_values: Sequence[float]) -> list[float]:
    """Holm's correction for several comparisons: p-values that hold for all of them together.

    Values that are NaN stay, and do not count.
    """
    order = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, highest = list(p_values), 0.0
    for rank, (p, place) in enumerate(order):
        highest = adjusted[place] = max(highest, min(1.0, p * (len(order) - rank)))
    return adjusted


def pairs_needed(spread: float, difference: float) -> int:
    """Pairs of seeds by which a paired t-test (5 %, two-sided) finds a difference 80 % of the time.

    ``spread``: standard deviation of the differences of single pairs. Both must be above 0.
    """
    # Known variance needs a little less, so the count begins there
    z = stats.norm.isf((1 - CONFIDENCE) / 2) + stats.norm.isf(1 - POWER)
    count, found = max(1, math.ceil((z * spread / difference) ** 2) - 1), 0.0
    while found < POWER:
        count += 1
        critical = stats.t.isf((1 - CONFIDENCE) / 2, count - 1)
        expected = difference / spread * math.sqrt(count)
        found = stats.nct.sf(critical, count - 1, expected)
        found += stats.nct.cdf(-critical, count - 1, expected)
    return count


@dataclass(frozen=True)
class Comparison:
    """The finished cells of one data set at equal epochs or equal time."""

    data_set: str
    kind: str
    base: str
    rows: tuple[Row, ...]

    @property
    def name(self) -> str:
        return f"{self.data_set}_{self.kind}"

    @property
    def variants(self) -> list[str]:
        """The variants with a finished cell, in the study's order."""
        return list(dict.fromkeys(row["variant"] for row in self.rows))

    def values(self, variant: str, key: str) -> dict[int, float]:
        """Seed -> figure, for the cells that have it."""
        return {
            row["seed"]: row[key]
            for row in self.rows
            if row["variant"] == variant and row.get(key) is not None
        }

    def estimate(self, variant: str, key: str) -> Estimate | None:
        return estimate([*values.values()]) if (values := self.values(variant, key)) else None

    def differences(self, variant: str, key: str) -> dict[int, float]:
        """Seed -> difference to the base with the same seed, if both have the figure.

        Pairing cancels effects that the seed has on both.
        """
        ours, base = self.values(variant, key), self.values(self.base, key)
        return {seed: ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())}

    def difference(self, variant: str, key: str) -> Estimate | None:
        """Mean of the differences; None for the base itself, and without any pairs."""
        values = [] if variant == self.base else list(self.differences(variant, key).values())
        return estimate(values) if values else None

    def measured(self, measures: Sequence[Measure], variants: Iterable[str]) -> list[Measure]:
        """The measures that some of the variants have."""
        names = list(variants)
        return [one for one in measures if any(self.values(name, one.key) for name in names)]


def comparisons(study: Study) -> list[Comparison]:
    """All comparisons of a study, with the cells that are finished."""
    cells, seconds = calibrated_cells(study), seconds_per_step(study)
    order = list(study.config.variants)
    found = []
    for data_set in study.config.sets:
        for kind in study.config.comparisons:
            rows = []
            for cell in cells:
                # Cells from scratch have no pre-training, so both comparisons show them
                is_compared = kind in cell.comparisons or cell.pretrain is None
                if cell.data_set != data_set or not is_compared or not (row := read_row(cell)):
                    continue
                # The same calibration for all cells, whatever machine they ran on
                if (a_step := seconds.get((data_set, cell.variant))) is not None:
                    row["compute_seconds"] = row["steps"] * a_step
                rows.append(row)
            rows.sort(key=lambda row: (order.index(row["variant"]), row["seed"]))
            rows += [*_before_training(row for row in rows if row["variant"] == study.base)]
            found.append(Comparison(data_set, kind, study.base, tuple(rows)))
    return found


def _before_training(rows: Iterable[Row]) -> Iterator[Row]:
    """Rows with the first probes of cells, if these were before the first step."""
    for row in rows:
        if row.get("probe_epochs", [])[:1] == [0]:
            named = {key: row[key] for key in ("data_set", "seed", "folder")}
            curves = [k for k in row if k.endswith(("_balanced_accuracy_curve", "_top1_curve"))]
            probes = {key.removesuffix("_curve"): row[key][0] for key in curves}
            yield {**named, "variant": UNTRAINED, **probes}
