"""Verdict in words on how well a predictor ranks tubes, from Spearman's rank correlation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WELL = 0.5  # from here on a predictor ranks tubes well
CHANCE = 0.2  # below this no better than chance; clips have too few tubes for less
RULE = f"{WELL:.2f} or more counts as well, less than {CHANCE:.2f} as no better than chance."


class Verdict(NamedTuple):
    """A level (good, fair or poor), which sets the colour on a page, and the words."""

    level: str
    words: str


def verdict(spearman: float | None) -> Verdict | None:
    """Verdict on a (mean) correlation; None if there is none."""
    if spearman is None:
        return None
    if spearman >= WELL:
        return Verdict("good", "ranks tubes well")
    if spearman >= CHANCE:
        return Verdict("fair", "ranks tubes better than chance, but not well")
    if spearman > -CHANCE:
        return Verdict("poor", "ranks tubes no better than chance")
    return Verdict("poor", "ranks tubes the wrong way round")


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of the known numbers; None if none is known."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
