"""Plots: the ends of their axes."""

import numpy as np
import pytest

from hpm_video.runtime.plots import Line, curves, histogram


@pytest.mark.parametrize(
    "value, low, ends",
    [(0.0, 0.0, ("0", "1")), (3.0, None, ("2.5", "3.5")), (0.3, 0.0, ("0", "0.3"))],
)
def test_a_constant_curve_keeps_the_end_that_is_given(
    value: float, low: float | None, ends: tuple[str, str]
) -> None:
    plot = curves([Line("hard ratio", [1, 2], [value, value])], title="", x_name="step", low=low)
    assert plot is not None and (plot.bottom, plot.top) == ends


def test_the_ends_of_an_axis_differ() -> None:
    line = Line("loss", [1, 2], [1.1404, 1.1401])
    plot = curves([line], title="", x_name="step")
    assert plot is not None and (plot.bottom, plot.top) == ("1.1401", "1.1404")
    same = histogram(np.array([112.0, 112.0]), title="", unit="pixels")
    assert same.first != same.last


def test_bars_of_whole_numbers_hold_whole_numbers() -> None:
    few = histogram(np.array([50.0, 51.0, 52.0, 52.0]), title="Sizes", unit="videos")
    said = [words for *_, words in few.bars]
    assert said == ["videos 50: 1", "videos 51: 1", "videos 52: 2"]
    assert (few.first, few.last) == ("50", "52")
    many = histogram(np.arange(1000.0, 1101.0), title="Frames", unit="frames")
    said = [words for *_, words in many.bars]
    assert len(said) <= 40 and said[0] == "frames 1000 to 1002: 3"
    assert said[-1] == "frames 1099 to 1100: 2" and many.last == "1100"  # no number beyond
    assert sum(int(words.rpartition(" ")[2]) for words in said) == 101
    broken = histogram(np.array([50.0, 51.5]), title="Durations", unit="seconds")
    assert len(broken.bars) == 40
