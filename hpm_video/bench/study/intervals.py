"""Means over seeds and paired differences, with intervals of Student's t distribution."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Of a mean over ``count`` seeds.

    spread: sample standard deviation of single values. low, high: interval that holds the true
    mean with 95 % confidence, if values are normally distributed. All three are NaN for one value.
    """

    count: int
    mean: float
    spread: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value or more, and how far it can be trusted."""
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(1, mean, math.nan, math.nan, math.nan)
    spread = statistics.stdev(values)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1)) * spread / math.sqrt(count)
    return Estimate(count, mean, spread, mean - half, mean + half)


def paired_differences(ours: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """Seed -> ours - base, for the seeds that both have (seed -> value).

    Both of a pair start from the same seed, so that what the seed does to both drops out.
    """
    return {seed: ours[seed] - base[seed] for seed in sorted(ours.keys() & base.keys())}
