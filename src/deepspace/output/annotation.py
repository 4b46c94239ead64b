"""Pictures of an annotation: named clusters and gene sets over the H&E, and enriched sets."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from deepspace.output.canvas import (
    Backdrop,
    Box,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
    new_figure,
)
from deepspace.output.clusters import cluster_colours
from deepspace.output.maps import EXPRESSION_MAP, LARGEST_IN, PALE
from deepspace.output.scores import label_inches, round_mark

UNIT = "module score (sd units)"
_PANEL_IN = 2.9
_COLUMNS = 3
_GAP_IN = 0.1
_HEAD_IN = 0.45
_TITLE_IN = 0.3
_FOOT_IN = 0.55
_BAR_IN = 0.85
_LETTERS = 40
_LINE_IN = 0.16
_LEGEND_IN = 3.1
# of the dot of a set that is enriched at the limit; larger the smaller q is
_CELL_IN = 0.36
_SCORE_MAP = "RdBu_r"
_RING = "black"
_MOST_LOG_Q = 6.0


@dataclass(frozen=True)
class AnnotationView:
    """What the picture of an annotation is drawn from.

    Attributes
    ----------
    section : str
    backdrop : Backdrop
    points : Points
        All predicted points.
    used : ndarray of bool
        Points that have a score and a cluster.
    labels : ndarray of str
        Cluster of each point.
    names : mapping of str to str
        Name of each cluster.
    modules : mapping of str to ndarray
        Scores of the gene sets to show, at all points.
    support : mapping of str to float
        Share of the variation of each set that the prediction shows.
    regions : mapping of str to sequence of ndarray
        Outlines and holes of the drawn regions, full-resolution pixels.
    """

    section: str
    backdrop: Backdrop
    points: Points
    used: NDArray[np.bool_]
    labels: NDArray[np.str_]
    names: Mapping[str, str]
    modules: Mapping[str, FloatArray]
    support: Mapping[str, float]
    regions: Mapping[str, Sequence[FloatArray]]


def annotation_picture(view: AnnotationView) -> Figure:
    """Draw the H&E, the named clusters with their legend, and under them the gene sets.

    All gene sets share their colours, so that a set which hardly varies looks flat.
    """
    box = view.backdrop.crop(view.points.coords[view.used], 1.5 * view.points.size_um)
    sheet = _Sheet.of(box, view)
    he, clusters = sheet.panel(0, 0), sheet.panel(0, 1)
    view.backdrop.draw(he, box)
    he.set_title("H&E" + " with drawn regions" * bool(view.regions), fontsize=10, pad=4)
    add_scale_bar(he, box, view.backdrop.mpp)
    _outlines(he, view.regions, labelled=True)
    colours = cluster_colours(list(view.names))
    _draw_clusters(clusters, box, view, colours)
    _legend(sheet, view, colours)
    largest = [np.percentile(np.abs(v[view.used]), 97) for v in view.modules.values()]
    limit = max([0.1, *map(float, largest)])
    norm = Normalize(-limit, limit, clip=True)
    for number, (name, values) in enumerate(view.modules.items()):
        axes = sheet.panel(1 + number // _COLUMNS, number % _COLUMNS)
        view.backdrop.draw(axes, box, strength=PALE)
        style = {"array": values[view.used], "norm": norm, "cmap": EXPRESSION_MAP}
        add_points(axes, view.points[view.used], view.backdrop.mpp, **style)
        axes.set_title(f"{name}   (support {view.support[name]:.2f})", fontsize=9, pad=4)
        _outlines(axes, view.regions, labelled=False)
    add_colour_bar(sheet.bar(1), norm, mpl.colormaps[EXPRESSION_MAP], UNIT, extend="both")
    width, height = sheet.figure.get_size_inches()
    title = f"{view.section}: predicted expression, annotated"
    sheet.figure.text(_GAP_IN / width, 1 - 0.2 / height, title, fontsize=12, va="center")
    note = (
        "Support: share of the variation of the true score that the prediction shows (0: nothing "
        "but uncertainty). Of all gene sets, those best supported are drawn."
    )
    lines = "\n".join(textwrap.wrap(note, int(width * 15)))
    sheet.figure.text(_GAP_IN / width, 0.1 / height, lines, fontsize=8, color="0.35", va="bottom")
    return sheet.figure


@dataclass(frozen=True)
class _Sheet:
    """Places of equal panels in rows; the first row has the legend after its second panel."""

    figure: Figure
    wide: float
    high: float
    first_in: float

    @classmethod
    def of(cls, box: Box, view: AnnotationView) -> _Sheet:
        aspect = (box[3] - box[1]) / (box[2] - box[0])
        wide = min(_PANEL_IN, LARGEST_IN / aspect)
        high = wide * aspect
        # a legend of many clusters may be higher than the slide
        lines = sum(len(_wrapped(k, name)) for k, name in view.names.items())
        first = max(high, (lines + 2) * _LINE_IN + 0.06 * len(view.names))
        columns = _GAP_IN + _COLUMNS * (wide + _GAP_IN) + _BAR_IN
        legend = 2 * (wide + _GAP_IN) + _GAP_IN + _LEGEND_IN
        rows = -(-len(view.modules) // _COLUMNS)
        down = _HEAD_IN + _TITLE_IN + first + rows * (_TITLE_IN + high + _GAP_IN) + _FOOT_IN
        return cls(new_figure(max(columns, legend), down), wide, high, first)

    def top_in(self, row: int) -> float:
        """Distance of a row's panels from the top of the figure."""
        if row == 0:
            return _HEAD_IN + _TITLE_IN
        step = _TITLE_IN + self.high + _GAP_IN
        return _HEAD_IN + _TITLE_IN + self.first_in + (row - 1) * step + _TITLE_IN

    def _axes(self, left: float, top: float, wide: float, high: float) -> Axes:
        width, height = self.figure.get_size_inches()
        place = (left / width, 1 - (top + high) / height, wide / width, high / height)
        return self.figure.add_axes(place)

    def panel(self, row: int, column: int) -> Axes:
        """Panel of a slide."""
        left = _GAP_IN + column * (self.wide + _GAP_IN)
        return self._axes(left, self.top_in(row), self.wide, self.high)

    def bar(self, row: int) -> Axes:
        """Colour bar at the right of a row."""
        left = 2 * _GAP_IN + _COLUMNS * (self.wide + _GAP_IN) - 0.05
        return self._axes(left, self.top_in(row) + 0.1 * self.high, 0.12, 0.8 * self.high)


def _draw_clusters(axes: Axes, box: Box, view: AnnotationView, colours: Mapping[str, str]) -> None:
    view.backdrop.draw(axes, box, strength=PALE)
    known = np.flatnonzero(view.labels != "")
    faces = [to_rgb(colours[label]) for label in view.labels[known]]
    add_points(axes, view.points[known], view.backdrop.mpp, facecolors=faces)
    axes.set_title("clusters, named by their marker genes", fontsize=10, pad=4)
    _outlines(axes, view.regions, labelled=False)


def _wrapped(cluster: str, name: str) -> list[str]:
    # a hard space keeps q and its value together
    return textwrap.wrap(f"{cluster}: {name}".replace("(q ", "(q\u00a0"), _LETTERS)


def _legend(sheet: _Sheet, view: AnnotationView, colours: Mapping[str, str]) -> None:
    handles = [
        round_mark(colours[k], 8, "\n".join(_wrapped(k, name))) for k, name in view.names.items()
    ]
    width, height = sheet.figure.get_size_inches()
    left = 2 * (sheet.wide + _GAP_IN) + _GAP_IN
    sheet.figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left / width, 1 - (sheet.top_in(0) - 0.1) / height),
        fontsize=8.5,
        frameon=False,
        title="cluster: enriched gene sets (largest q)",
        title_fontsize=8.5,
        alignment="left",
    )


def _outlines(axes: Axes, regions: Mapping[str, Sequence[FloatArray]], *, labelled: bool) -> None:
    """Outlines of the drawn regions, with their names at the highest corner."""
    for name, rings in regions.items():
        for ring in rings:
            closed = np.concatenate([ring, ring[:1]])
            halo = [withStroke(linewidth=2.4, foreground="white")]
            axes.plot(*closed.T, color="black", linewidth=1.0, path_effects=halo, zorder=6)
        if not labelled:
            continue
        # inside, under the upper edge of what is to be seen of it
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        x = np.clip(rings[0][:, 0], left, right)
        y = np.clip(rings[0][:, 1].min(), top, bottom)
        halo = [withStroke(linewidth=2.5, foreground="white")]
        style: dict[str, Any] = {"textcoords": "offset points", "ha": "center", "va": "top"}
        place = (float(x.min() + x.max()) / 2, float(y))
        axes.annotate(name, place, xytext=(0, -4), fontsize=8, path_effects=halo, zorder=7, **style)


def enrichment_picture(summary: Mapping[str, Any], enrichment: pd.DataFrame, fdr: float) -> Figure:
    """Draw every cluster and region against every gene set.

    Parameters
    ----------
    summary : mapping
        What ``annotation.json`` holds: `clusters` and `regions` with their `module_scores`.
    enrichment : DataFrame
        `grouping`, `group`, `set` and `q_value`.
    fdr : float
        Dots of a q up to this have a ring.

    Returns
    -------
    Figure
        Colour: the mean score of the set inside the group; size of the dot: -log10 of q.
    """
    groups = [("cluster", g) for g in summary["clusters"]]
    groups += [("region", g) for g in summary["regions"]]
    sets = [str(s["set"]) for s in summary["gene_sets"] if s["used"]]
    rows = [
        f"{kind} {g['group']}: {textwrap.shorten(str(g['name']), 46)}  ({g['points']})"
        for kind, g in groups
    ]
    left, foot = label_inches(rows) * 0.82, label_inches(sets) * 0.65
    shape = (_CELL_IN * len(sets), _CELL_IN * len(rows))
    width, height = left + shape[0] + 1.6, foot + max(shape[1], 1.9) + 0.75
    figure = new_figure(width, height)
    top = height - 0.65
    place = (left / width, (top - shape[1]) / height, shape[0] / width, shape[1] / height)
    axes = figure.add_axes(place)
    scores = np.array([[g["module_scores"].get(s, 0.0) for s in sets] for _, g in groups])
    limit = max(0.5, float(np.abs(scores).max(initial=0.0)))
    norm = Normalize(-limit, limit)
    known = enrichment.set_index(["grouping", "group", "set"])["q_value"]
    for row, (kind, group) in enumerate(groups):
        q = np.array([known.get((kind, group["group"], s), 1.0) for s in sets], dtype=np.float64)
        _dots(axes, row, (scores[row], q), norm, fdr)
    axes.set(xlim=(-0.5, len(sets) - 0.5), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xticks(range(len(sets)), sets, fontsize=8.5, rotation=60, ha="right")
    axes.set_yticks(range(len(rows)), rows, fontsize=8.5)
    axes.tick_params(length=0)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set(linewidth=0.5, color="0.6")
    if 0 < len(summary["clusters"]) < len(rows):
        axes.axhline(len(summary["clusters"]) - 0.5, color="0.5", linewidth=0.8)
    bar = figure.add_axes(
        ((left + shape[0] + 0.2) / width, (top - 1.2) / height, 0.11 / width, 1.2 / height)
    )
    add_colour_bar(bar, norm, mpl.colormaps[_SCORE_MAP], "mean score (sd)")
    _size_legend(figure, fdr, (left + shape[0] + 0.05) / width, (top - 1.3) / height)
    title = f"{summary['section']}: gene sets of clusters" + " and regions" * bool(
        summary["regions"]
    )
    figure.text(0.1 / width, 1 - 0.2 / height, title, fontsize=11, va="center")
    text = "colour: mean score of the set; dot: over-representation among the marker genes"
    figure.text(0.1 / width, 1 - 0.45 / height, text, fontsize=8.5, color="0.35", va="center")
    return figure


def _area(q: FloatArray) -> FloatArray:
    """Area of a dot in points squared."""
    strength = np.clip(-np.log10(np.maximum(q, 1e-300)), 0, _MOST_LOG_Q) / _MOST_LOG_Q
    area: FloatArray = 18.0 + 260.0 * strength
    return area


def _dots(
    axes: Axes, row: int, found: tuple[FloatArray, FloatArray], norm: Normalize, fdr: float
) -> None:
    scores, q = found
    axes.scatter(
        np.arange(len(q)),
        np.full(len(q), row),
        s=_area(q),
        c=mpl.colormaps[_SCORE_MAP](norm(scores)),
        edgecolors=[_RING if value <= fdr else "0.8" for value in q],
        linewidths=[1.3 if value <= fdr else 0.5 for value in q],
    )


def _size_legend(figure: Figure, fdr: float, left: float, top: float) -> None:
    handles = []
    for q, text in ((1.0, "q 1"), (fdr, f"q {fdr:g}"), (1e-3, "q 0.001"), (1e-6, "q 1e-6 or less")):
        size = float(np.sqrt(_area(np.array([q])))[0])
        edge, line = (_RING, 1.3) if q <= fdr else ("0.8", 0.5)
        dot = Line2D([], [], ls="", marker="o", ms=size, mfc="white", mec=edge, mew=line)
        dot.set_label(text)
        handles.append(dot)
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, top),
        fontsize=8,
        frameon=False,
        labelspacing=0.9,
    )
