"""Pictures of a section: what was read, and expression over the H&E."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial import KDTree

from deepspace.output.canvas import (
    DPI,
    Backdrop,
    Box,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
    new_figure,
)

EXPRESSION_MAP = "viridis"
SD_MAP = "magma"
UNIT = "log1p CP10k"
PALE = 0.45


@dataclass(frozen=True)
class GeneMap:
    """Values of one gene on one section, log1p of counts per 10,000.

    Attributes
    ----------
    gene : str
        Its symbol.
    predicted : array
        One value per predicted point.
    measured : array or None
        One value per measured spot; None on an unmeasured section.
    sd : array or None
        Predictive standard deviation at the predicted points.
    score, ceiling : float or None
        Held-out Pearson correlation and its noise ceiling, written beside the gene.
    """

    gene: str
    predicted: FloatArray
    measured: FloatArray | None = None
    sd: FloatArray | None = None
    score: float | None = None
    ceiling: float | None = None

    def limits(self) -> tuple[float, float]:
        """Colour limits that measured and predicted share.

        5 % to 95 % of what was measured, so that they do not depend on how many points were
        predicted; of the predictions where nothing was measured. All of the range for a gene
        that nearly every spot lacks.
        """
        return robust_limits(self.predicted if self.measured is None else self.measured)


def robust_limits(values: FloatArray) -> tuple[float, float]:
    """5 % and 95 % of the finite values; all of their range where these are equal."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = np.percentile(finite, [5, 95])
    if high <= low:
        low, high = finite.min(), finite.max()
    # a constant gene still needs a scale
    return float(low), float(max(high, low + 0.05))


@dataclass(frozen=True)
class Grid:
    """Axes of rows of equal panels with a colour bar after each of some columns."""

    figure: Figure
    panels: list[list[Axes]]
    bars: list[list[Axes]]


PANEL_IN = 2.5
LARGEST_IN = 4.0
# smaller spots blend with the tissue behind them
CLEAR_SPOT_PX = 5
OUTLINE_PT = 0.4
LABEL_IN = 1.15
BAR_IN = 0.8
GAP_IN = 0.08
HEAD_IN = 0.65


def panel_inches(box: Box, smallest_px: float) -> float:
    """Width of a panel in which points of `smallest_px` slide pixels can be told apart."""
    wanted = CLEAR_SPOT_PX * (box[2] - box[0]) / smallest_px / DPI
    return float(np.clip(wanted, PANEL_IN, LARGEST_IN))


def panel_grid(rows: int, bars_after: Sequence[bool], aspect: float, panel_w: float) -> Grid:
    """Lay out panels by hand: their shape is known, so nothing has to be guessed.

    Parameters
    ----------
    rows : int
        Number of rows.
    bars_after : sequence of bool
        One entry a column: whether a colour bar follows it.
    aspect : float
        Height of a panel over its width.
    panel_w : float
        Width of a panel in inches; less where it would be higher than `LARGEST_IN`.
    """
    panel_w = min(panel_w, LARGEST_IN / aspect)
    panel_h = panel_w * aspect
    columns = len(bars_after)
    width = LABEL_IN + columns * (panel_w + GAP_IN) + sum(bars_after) * BAR_IN
    height = HEAD_IN + rows * (panel_h + GAP_IN) + GAP_IN
    figure = new_figure(width, height)
    panels: list[list[Axes]] = []
    bars: list[list[Axes]] = []
    for row in range(rows):
        bottom = height - HEAD_IN - row * (panel_h + GAP_IN) - panel_h
        left = LABEL_IN
        panels.append([])
        bars.append([])
        for with_bar in bars_after:
            place = (left / width, bottom / height, panel_w / width, panel_h / height)
            panels[-1].append(figure.add_axes(place))
            left += panel_w + GAP_IN
            if with_bar:
                corner = (left / width, (bottom + 0.1 * panel_h) / height)
                bars[-1].append(figure.add_axes((*corner, 0.1 / width, 0.8 * panel_h / height)))
                left += BAR_IN
    return Grid(figure, panels, bars)


Painter = Callable[[Axes, GeneMap, Normalize], None]


def expression_maps(
    backdrop: Backdrop,
    genes: Sequence[GeneMap],
    predicted_at: Points,
    measured_at: Points | None = None,
    *,
    title: str = "",
    unit: str = UNIT,
) -> Figure:
    """Draw a row a gene: H&E, measured, predicted, both and, where known, the sd.

    Measured and predicted share their colours within a gene, so that a prediction which is
    too flat looks flat: a model that is uncertain shrinks towards the mean, and a scale of its
    own would hide that. *Both* shows the measured spots, outlined, and predictions where
    nothing was measured; where every predicted point is a measured spot, the left half of a
    spot is measured and the right half predicted.

    Parameters
    ----------
    backdrop : Backdrop
        The slide.
    genes : sequence of GeneMap
        Rows, in this order.
    predicted_at, measured_at : Points
        Where the values lie; without `measured_at` only predictions (and sd) are drawn.
    title, unit : str
        Heading of the picture, and what the values are.

    Returns
    -------
    Figure
    """
    columns = _columns(backdrop.mpp, predicted_at, measured_at)
    with_sd = all(gene.sd is not None for gene in genes)
    every = [predicted_at] if measured_at is None else [predicted_at, measured_at]
    margin = max(1.5 * points.size_um for points in every)
    box = backdrop.crop(np.concatenate([points.coords for points in every]), margin)
    bars_after = [False] * len(columns) + [True] + [True] * with_sd
    smallest = min((p.size_um for p in every if not p.square), default=np.inf)
    panel_w = panel_inches(box, smallest / backdrop.mpp)
    grid = panel_grid(len(genes), bars_after, (box[3] - box[1]) / (box[2] - box[0]), panel_w)
    names = ["H&E", *columns] + ["uncertainty (sd)"] * with_sd
    for axes, name in zip(grid.panels[0], names, strict=True):
        axes.set_title(name, fontsize=10, pad=5)
    for row, gene in enumerate(genes):
        panels, bars = grid.panels[row], grid.bars[row]
        norm = Normalize(*gene.limits(), clip=True)
        backdrop.draw(panels[0], box)
        for axes, paint in zip(panels[1:], columns.values(), strict=False):
            backdrop.draw(axes, box, strength=PALE)
            paint(axes, gene, norm)
        label_row(panels[0], gene)
        add_colour_bar(bars[0], norm, mpl.colormaps[EXPRESSION_MAP], unit, extend="both")
        if with_sd and gene.sd is not None:
            backdrop.draw(panels[-1], box, strength=PALE)
            _paint_sd(panels[-1], bars[1], predicted_at, gene.sd, backdrop.mpp, unit)
    add_scale_bar(grid.panels[0][0], box, backdrop.mpp)
    grid.figure.text(0.012, 1 - 0.2 / grid.figure.get_figheight(), title, fontsize=12, va="center")
    return grid.figure


def _columns(mpp: float, predicted_at: Points, measured_at: Points | None) -> dict[str, Painter]:
    """Columns between the H&E and the sd: heading and what draws it."""

    def paint(axes: Axes, points: Points, values: FloatArray, norm: Normalize) -> None:
        add_points(axes, points, mpp, array=values, norm=norm, cmap=EXPRESSION_MAP)

    def predicted(axes: Axes, gene: GeneMap, norm: Normalize) -> None:
        paint(axes, predicted_at, gene.predicted, norm)

    if measured_at is None:
        return {"predicted": predicted}
    spots = measured_at
    elsewhere = not_measured(predicted_at, spots, mpp)

    def measured(axes: Axes, gene: GeneMap, norm: Normalize) -> None:
        paint(axes, spots, _values(gene), norm)

    def filled(axes: Axes, gene: GeneMap, norm: Normalize) -> None:
        paint(axes, predicted_at[elsewhere], gene.predicted[elsewhere], norm)
        paint(axes, spots, _values(gene), norm)
        width = outline_pt(axes, spots.size_um / mpp)
        add_points(axes, spots, mpp, facecolors="none", edgecolors="black", linewidths=width)

    def halves(axes: Axes, gene: GeneMap, norm: Normalize) -> None:
        _add_half_discs(axes, spots, mpp, _values(gene), norm, left=True)
        _add_half_discs(axes, predicted_at, mpp, gene.predicted, norm, left=False)

    if elsewhere.any():
        return {"measured": measured, "predicted": predicted, "both (measured outlined)": filled}
    return {"measured": measured, "predicted": predicted, "measured ◖◗ predicted": halves}


def _values(gene: GeneMap) -> FloatArray:
    if gene.measured is None:
        raise ValueError(f"{gene.gene}: measured points are given, but no measured values")
    return gene.measured


def not_measured(predicted_at: Points, measured_at: Points, mpp: float) -> NDArray[np.bool_]:
    """Tell which predicted points lie on no measured spot, shape (n,)."""
    if not len(measured_at.coords):
        return np.ones(len(predicted_at.coords), np.bool_)
    distance, _ = KDTree(measured_at.coords).query(predicted_at.coords)
    outside: NDArray[np.bool_] = distance > measured_at.size_um / mpp / 4
    return outside


def _add_half_discs(
    axes: Axes, points: Points, mpp: float, values: FloatArray, norm: Normalize, *, left: bool
) -> None:
    angle = np.linspace(0.5 * np.pi, 1.5 * np.pi, 17) + (0.0 if left else np.pi)
    half = np.stack([np.cos(angle), np.sin(angle)], axis=-1) * points.size_um / mpp / 2
    shapes = PolyCollection(
        list(points.coords[:, None] + half),
        array=values,
        norm=norm,
        cmap=EXPRESSION_MAP,
        linewidths=0.0,
        rasterized=True,
    )
    axes.add_collection(shapes, autolim=False)


def outline_pt(axes: Axes, diameter_px: float) -> float:
    """Width of an outline that leaves the colour of a small spot to be seen, in points."""
    left, right = axes.get_xlim()
    diameter_pt = 72 / DPI * axes.bbox.width * diameter_px / (right - left)
    return float(min(OUTLINE_PT, 0.1 * diameter_pt))


def _paint_sd(axes: Axes, bar: Axes, points: Points, sd: FloatArray, mpp: float, unit: str) -> None:
    norm = Normalize(*robust_limits(sd), clip=True)
    add_points(axes, points, mpp, array=sd, norm=norm, cmap=SD_MAP)
    add_colour_bar(bar, norm, mpl.colormaps[SD_MAP], f"sd of {unit}", extend="both")


def label_row(axes: Axes, gene: GeneMap, *, font: str = "italic") -> None:
    """Gene and scores left of a row; gene symbols are written in italics."""
    style: dict[str, Any] = {
        "xy": (0, 0.5),
        "xycoords": "axes fraction",
        "textcoords": "offset points",
        "ha": "right",
    }
    axes.annotate(gene.gene, xytext=(-8, 4), fontsize=12, fontstyle=font, va="bottom", **style)
    known = {"held-out r": gene.score, "ceiling": gene.ceiling}
    lines = [f"{name} {value:.2f}" for name, value in known.items() if _is_number(value)]
    axes.annotate("\n".join(lines), xytext=(-8, 0), fontsize=8, color="0.3", va="top", **style)


def _is_number(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
