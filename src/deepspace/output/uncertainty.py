"""Picture of uncertainty: does the error grow as the predicted sd says, do intervals hold."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepspace.core.metrics import NORMAL_90
from deepspace.output.canvas import new_figure

COLOUR = "#0047ab"
# what calibrated intervals should hold, and how far off is still good
AIM, LOW, HIGH = 0.90, 0.87, 0.93
BINS = 20


def error_and_sd(
    error: Mapping[str, NDArray[np.floating]], sd: Mapping[str, NDArray[np.floating]], *, title: str
) -> Figure:
    """Draw errors against predicted sd, and the share of measurements inside 90 % intervals.

    Parameters
    ----------
    error, sd : mapping
        Per held-out section: measured minus predicted, and predicted sd of a measurement, of one
        shape each; NaN where there is none.
    title : str
        Heading.

    Returns
    -------
    Figure
        Left: points in twenty equal groups by predicted sd, their root mean squared error against
        it; on the diagonal the sd is right. Right: coverage in each section, 87 to 93 % shaded.
    """
    figure = new_figure(8.4, 3.6)
    left = figure.add_axes((0.09, 0.17, 0.36, 0.65))
    right = figure.add_axes((0.58, 0.17, 0.39, 0.65))
    wrong = np.concatenate([np.ravel(e) for e in error.values()])
    told = np.concatenate([np.ravel(s) for s in sd.values()])
    known = np.isfinite(wrong) & np.isfinite(told)
    order = np.argsort(told[known], kind="stable")
    groups = [part for part in np.array_split(order, BINS) if len(part)]
    x = [float(np.sqrt(np.mean(told[known][part] ** 2))) for part in groups]
    y = [float(np.sqrt(np.mean(wrong[known][part] ** 2))) for part in groups]
    most = max([*x, *y], default=1.0) * 1.05
    left.plot([0, most], [0, most], color="0.6", linewidth=1, linestyle="--")
    left.plot(x, y, "o", color=COLOUR, markersize=4)
    left.set(xlim=(0, most), ylim=(0, most), xlabel="predicted sd", ylabel="error (RMS)")
    left.set_title("Error against predicted sd", fontsize=10)
    names = list(error)
    shares = [_inside(error[name], sd[name]) for name in names]
    right.axvspan(100 * LOW, 100 * HIGH, color="0.9")
    right.axvline(100 * AIM, color="0.6", linewidth=1, linestyle="--")
    right.plot([100 * s for s in shares], range(len(names)), "o", color=COLOUR)
    right.set_yticks(range(len(names)), names)
    right.set_ylim(len(names) - 0.5, -0.5)
    lowest = min([LOW, *(s for s in shares if np.isfinite(s))])
    right.set_xlim(min(80.0, 100 * lowest - 2), 100)
    right.set_xlabel("measurements inside the 90 % interval (%)")
    right.set_title("Held-out sections", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.text(0.02, 0.97, title, va="top")
    return figure


def _inside(error: NDArray[np.floating], sd: NDArray[np.floating]) -> float:
    known = np.isfinite(error) & np.isfinite(sd)
    if not known.any():
        return float("nan")
    return float(np.mean(np.abs(error[known]) <= NORMAL_90 * sd[known]))
