"""How well a predictor ranks the tubes of clips, in words, from Spearman's rank correlation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

WELL = 0.5  # from which a predictor ranks tubes well
CHANCE = 0.2  # below which it ranks them no better than chance: one clip has few tubes
RULE = f"From {WELL:.2f} on we say well, below {CHANCE:.2f} no better than chance."


class Verdict(NamedTuple):
    """Its colour on a page (good, fair or poor), and the words."""

    level: str
    words: str


def verdict(spearman: float | None) -> Verdict | None:
    """The verdict on a (mean) correlation; None where there is none."""
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
    """The mean of the known numbers; None where none is known."""
    known = [value for value in values if value is not None and np.isfinite(value)]
    return float(np.mean(known)) if known else None
