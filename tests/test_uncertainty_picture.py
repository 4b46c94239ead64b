"""The picture of uncertainty says how errors compare with the predicted sd."""

from __future__ import annotations

import numpy as np

from deepspace.output.uncertainty import error_and_sd


def test_points_lie_on_the_diagonal_where_the_sd_is_right() -> None:
    rng = np.random.default_rng(0)
    sd = {"A": rng.uniform(0.5, 2.0, (400, 20)), "B": rng.uniform(0.5, 2.0, (300, 20))}
    error = {name: rng.normal(size=s.shape) * s for name, s in sd.items()}
    error["A"][0, 0] = np.nan
    left, right = error_and_sd(error, sd, title="model").axes
    x, y = left.lines[1].get_data()
    assert len(x) == 20
    assert np.abs(np.asarray(y) / np.asarray(x) - 1).max() < 0.15
    assert np.abs(np.asarray(right.lines[1].get_xdata()) - 90).max() < 1.5


def test_intervals_too_narrow_are_shown_as_such() -> None:
    rng = np.random.default_rng(0)
    sd = {"A": np.ones((500, 4))}
    error = {"A": 2 * rng.normal(size=(500, 4))}  # 59 % lie inside
    left, right = error_and_sd(error, sd, title="model").axes
    assert np.mean(left.lines[1].get_ydata()) > 1.7
    assert right.lines[1].get_xdata()[0] < 65
    assert right.get_xlim()[0] < right.lines[1].get_xdata()[0]
