"""Picture of an IHC check: sections, predicted gene and stain, map beside map, against chance."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from deepspace.io.slide import Slide
from deepspace.output.canvas import (
    Backdrop,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
    laid_points,
    new_figure,
)
from deepspace.output.maps import EXPRESSION_MAP, LARGEST_IN, PALE, UNIT, robust_limits
from deepspace.registration.register import Registration
from deepspace.registration.warp import warp

DAB_MAP = "YlOrBr"
_PANEL_IN = 3.3
_PLOT_IN = 3.0
_GAP_IN = 0.1
_TITLE_IN = 0.3
_BAR_IN = 0.85
_HEAD_IN = 0.5
_FOOT_IN = 0.55
_AXIS_IN = 0.65
_PIXELS = 1400
_DARK, _CHANCE = "#7a3b00", "0.75"


@dataclass(frozen=True)
class IHCView:
    """What an IHC check is drawn from.

    Attributes
    ----------
    gene
        Its symbol.
    he, ihc
        The slides.
    registration
        From the IHC to the H&E section.
    points
        Columns x, y (px of the H&E slide), predicted, dab and used.
    mpp
        Micrometres per px of x and y.
    size_um
        Diameter of the discs.
    null
        Pearson correlation after each move of the stain.
    summary
        ``pearson`` (r, p), ``spearman`` (r), ``verdict``.
    """

    gene: str
    he: Slide
    ihc: Slide
    registration: Registration
    points: pd.DataFrame
    mpp: float
    size_um: float
    null: FloatArray
    summary: Mapping[str, Any]


def ihc_picture(view: IHCView) -> Figure:
    """Draw the H&E above the IHC, the gene above the stain, and how they agree.

    Left the two sections, the IHC as it lies on the H&E. In the middle the predicted gene and
    the mean DAB at the same points; points left out are grey. Right all points, and the observed
    correlation among those of moved stains.
    """
    used = view.points[view.points["used"]]
    coords = used[["x", "y"]].to_numpy()
    he, stained = _backdrops(view)
    box = he.crop(coords, 2.0 * view.size_um)
    aspect = (box[3] - box[1]) / (box[2] - box[0])
    width_in = min(_PANEL_IN, LARGEST_IN / aspect)
    height_in = width_in * aspect
    sheet = _Sheet.of(width_in, height_in)
    points = laid_points(coords, view.size_um, view.mpp)
    norms = [Normalize(*robust_limits(used[name].to_numpy())) for name in ("predicted", "dab")]
    left_out = view.points.loc[~view.points["used"], ["x", "y"]].to_numpy()
    labels = (("H&E", f"predicted {view.gene}"), ("IHC, laid over the H&E", "DAB of the IHC"))
    rows = zip((he, stained), labels, norms, ("predicted", "dab"), strict=True)
    for row, (backdrop, (section, mapped), norm, name) in enumerate(rows):
        picture, chart, bar = sheet.row(row)
        backdrop.draw(picture, box)
        picture.set_title(section, fontsize=9, pad=4)
        he.draw(chart, box, strength=PALE)
        rest = Points(left_out, points.size_um, points.square)
        add_points(chart, rest, view.mpp, facecolors="0.8")
        colours = EXPRESSION_MAP if name == "predicted" else DAB_MAP
        values = used[name].to_numpy()
        add_points(chart, points, view.mpp, array=values, norm=norm, cmap=colours)
        chart.set_title(mapped, fontsize=9, pad=4)
        unit = UNIT if name == "predicted" else "mean optical density"
        add_colour_bar(bar, norm, mpl.colormaps[colours], unit, extend="both")
        add_scale_bar(picture, box, view.mpp)
    _scatter(sheet.plot(0), used, view)
    _null(sheet.plot(1), view)
    _heading(sheet.figure, view)
    return sheet.figure


@dataclass(frozen=True)
class _Sheet:
    """Places of the panels: two pictures, a colour bar and a plot in each of two rows."""

    figure: Figure
    width_in: float
    height_in: float

    @classmethod
    def of(cls, width_in: float, height_in: float) -> _Sheet:
        across = 2 * (width_in + _GAP_IN) + _GAP_IN + _BAR_IN + _AXIS_IN + _PLOT_IN + 0.15
        down = _HEAD_IN + 2 * (_TITLE_IN + max(height_in, 2.2)) + _FOOT_IN
        return cls(new_figure(across, down), width_in, height_in)

    def _axes(self, left: float, row: int, width: float, height: float, above: float = 0) -> Axes:
        across, down = self.figure.get_size_inches()
        room = max(self.height_in, 2.2)
        top = _HEAD_IN + row * (_TITLE_IN + room) + _TITLE_IN + above
        place = (left / across, 1 - (top + height) / down, width / across, height / down)
        return self.figure.add_axes(place)

    def row(self, row: int) -> tuple[Axes, Axes, Axes]:
        """Picture, map and its colour bar."""
        left = _GAP_IN
        second = left + self.width_in + _GAP_IN
        bar = second + self.width_in + 0.08
        return (
            self._axes(left, row, self.width_in, self.height_in),
            self._axes(second, row, self.width_in, self.height_in),
            self._axes(bar, row, 0.1, 0.8 * self.height_in, 0.1 * self.height_in),
        )

    def plot(self, row: int) -> Axes:
        """Plot at the right."""
        left = 2 * (self.width_in + _GAP_IN) + _GAP_IN + _BAR_IN + _AXIS_IN
        height = max(self.height_in, 2.2) - 0.45
        axes = self._axes(left, row, _PLOT_IN, height)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        return axes


def _backdrops(view: IHCView) -> tuple[Backdrop, Backdrop]:
    """The H&E, and the IHC as it lies on it, in full-resolution px of the prediction."""
    he_mpp = view.he.require_mpp()
    image, downsample = view.he.thumbnail(_PIXELS)
    um_per_px = downsample * he_mpp
    box = (0.0, 0.0, image.shape[1] * um_per_px, image.shape[0] * um_per_px)
    stained = warp(view.ihc, view.registration.transform, box, um_per_px)
    step = um_per_px / view.mpp
    return Backdrop(image, step, view.mpp), Backdrop(stained, step, view.mpp)


def _scatter(axes: Axes, used: pd.DataFrame, view: IHCView) -> None:
    x, y = used["predicted"].to_numpy(), used["dab"].to_numpy()
    size = float(np.clip(4000 / len(x), 1.0, 14.0))
    axes.scatter(x, y, s=size, color=_DARK, alpha=0.5, linewidths=0, rasterized=True)
    axes.set_xlabel(f"predicted {view.gene} ({UNIT})", fontsize=8)
    axes.set_ylabel("DAB, mean optical density", fontsize=8)
    text = f"{len(x):,} points: Pearson r = {_number(view.summary['pearson']['r'])}"
    text += f", Spearman {_number(view.summary['spearman']['r'])}"
    axes.set_title(text, fontsize=8, pad=4)


def _null(axes: Axes, view: IHCView) -> None:
    null = view.null[np.isfinite(view.null)]
    axes.hist(null, bins=30, color=_CHANCE)
    score = view.summary["pearson"]
    axes.set_xlabel(f"r of {len(null)} shifted, turned, mirrored stains", fontsize=8)
    axes.set_ylabel("how many", fontsize=8)
    if score["r"] is None:
        return
    axes.axvline(score["r"], color=_DARK, linewidth=1.8)
    low, high = axes.get_xlim()
    left = score["r"] > (low + high) / 2
    axes.annotate(
        f"this stain: {score['r']:.2f}\np = {score['p']:.2g}",
        (score["r"], 0.97),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=8,
        color=_DARK,
    )
    axes.set_title("what chance can do", fontsize=8, pad=4)


def _heading(figure: Figure, view: IHCView) -> None:
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(str(view.summary["verdict"]), int(width * 10))
    figure.text(
        _GAP_IN / width, 1 - 0.12 / height, "\n".join(lines), fontsize=11, va="top", weight="bold"
    )
    used = int(view.points["used"].sum())
    note = f"{used:,} of {len(view.points):,} points lie on both sections (grey: left out)"
    figure.text(
        _GAP_IN / width,
        0.12 / height,
        f"{note}; disc {view.size_um:.0f} µm. Registration: {view.registration.reason()}.",
        fontsize=7,
        color="0.3",
    )


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.2f}"
