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
