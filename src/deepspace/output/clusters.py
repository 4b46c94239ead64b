"""Pictures of clusters: over the H&E, as a recall matrix, and scores of models."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from deepspace.output.canvas import (
    Backdrop,
    Box,
    FloatArray,
    Points,
    add_points,
    add_scale_bar,
    new_figure,
)
from deepspace.output.maps import PALE, panel_inches
from deepspace.output.scores import MODEL_COLOUR, label_inches, plain_axes, round_mark, split_text

# Okabe & Ito without black, and Tol's "muted" ones that differ from those: told apart by the
# colour-blind; one that looks like a fainter neighbour comes late
PALETTE = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#f0e442",
    "#332288",
    "#56b4e9",
    "#882255",
    "#117733",
    "#999933",
    "#dddddd",
)
# opacity of a point whose most probable cluster is a mere guess
FAINTEST = 0.35
MAJORITY_COLOUR = "#b8860b"
PANEL_IN = 3.2
GAP_IN = 0.08
HEAD_IN = 0.75
FOOT_IN = 0.3


def cluster_colours(names: Sequence[str]) -> dict[str, str]:
    """Colour of each cluster, the same for the same names in the same order.

    More clusters than safe colours get hues at equal steps, which not everyone can tell apart.

    Examples
    --------
    >>> cluster_colours(["1", "2"])
    {'1': '#0072b2', '2': '#e69f00'}
    """
    colours: Sequence[str] = PALETTE
    if len(names) > len(PALETTE):
        hues = np.arange(len(names)) / len(names)
        levels = (0.45, 0.75)
        rgb = [colorsys.hls_to_rgb(h, levels[i % 2], 0.8) for i, h in enumerate(hues)]
        colours = ["#" + "".join(f"{round(255 * c):02x}" for c in parts) for parts in rgb]
    return dict(zip(names, colours, strict=False))


@dataclass(frozen=True)
class ClusterMap:
    """Clusters of points on one slide.

    Attributes
    ----------
    title : str
        Heading of the panel.
    points : Points
        Where they lie.
    labels : ndarray of str, shape (n,)
        Cluster of each point; empty where it has none.
    certainty : ndarray or None, shape (n,)
        Probability of that cluster; points are fainter the nearer it is to a guess.
    wrong : ndarray of bool or None, shape (n,)
        Points that get a black outline.
    """

    title: str
    points: Points
    labels: NDArray[np.str_]
    certainty: FloatArray | None = None
    wrong: NDArray[np.bool_] | None = None


def cluster_maps(
    backdrop: Backdrop, maps: Sequence[ClusterMap], names: Sequence[str], *, title: str = ""
) -> Figure:
    """Draw the H&E and, beside it, each map of clusters in the same colours.

    Parameters
    ----------
    backdrop : Backdrop
        The slide.
    maps : sequence of ClusterMap
        Panels, in this order.
    names : sequence of str
        All clusters, which the legend lists.
    title : str
        Heading of the picture.
    """
    coords = np.concatenate([m.points.coords for m in maps])
    size = min(m.points.size_um for m in maps)
    box = backdrop.crop(coords, 1.5 * max(m.points.size_um for m in maps))
    aspect = (box[3] - box[1]) / (box[2] - box[0])
    panel_w = max(panel_inches(box, size / backdrop.mpp), PANEL_IN)
    legend_in = label_inches([*names, "no cluster"]) + 0.3
    width = 2 * GAP_IN + (1 + len(maps)) * (panel_w + GAP_IN) + legend_in
    height = HEAD_IN + max(panel_w * aspect, 0.2 * len(names) + 0.3) + FOOT_IN
    figure = new_figure(width, height)
    panels = []
    for number in range(1 + len(maps)):
        left = 2 * GAP_IN + number * (panel_w + GAP_IN)
        bottom = height - HEAD_IN - panel_w * aspect
        place = (left / width, bottom / height, panel_w / width, panel_w * aspect / height)
        panels.append(figure.add_axes(place))
    backdrop.draw(panels[0], box)
    panels[0].set_title("H&E", fontsize=10, pad=5)
    add_scale_bar(panels[0], box, backdrop.mpp)
    colours = cluster_colours(names)
    for axes, clusters in zip(panels[1:], maps, strict=True):
        _draw_map(axes, backdrop, box, clusters, colours)
    _legend(figure, colours, maps, 1 - legend_in / width, 1 - (HEAD_IN - 0.05) / height)
    figure.text(2 * GAP_IN / width, 1 - 0.2 / height, title, fontsize=12, va="center")
    notes = _notes(maps)
    figure.text(2 * GAP_IN / width, 0.12 / height, notes, fontsize=8.5, color="0.35", va="center")
    return figure


def _draw_map(
    axes: Axes, backdrop: Backdrop, box: Box, clusters: ClusterMap, colours: Mapping[str, str]
) -> None:
    backdrop.draw(axes, box, strength=PALE)
    axes.set_title(clusters.title, fontsize=10, pad=5)
    known = np.flatnonzero(clusters.labels != "")
    points = clusters.points[known]
    faces = np.ones((len(known), 4))
    faces[:, :3] = [to_rgb(colours[label]) for label in clusters.labels[known]]
    if clusters.certainty is not None:
        guess = 1 / len(colours)
        sure = np.clip((clusters.certainty[known] - guess) / (1 - guess), 0, 1)
        faces[:, 3] = FAINTEST + (1 - FAINTEST) * sure
    add_points(axes, points, backdrop.mpp, facecolors=faces)
    unknown = clusters.points[np.flatnonzero(clusters.labels == "")]
    style = {"facecolors": "none", "edgecolors": "0.4", "linewidths": 0.5}
    add_points(axes, unknown, backdrop.mpp, **style)
    if clusters.wrong is not None:
        wrong = clusters.points[np.flatnonzero(clusters.wrong)]
        add_points(axes, wrong, backdrop.mpp, facecolors="none", edgecolors="black", linewidths=0.7)


def _legend(
    figure: Figure,
    colours: Mapping[str, str],
    maps: Sequence[ClusterMap],
    left: float,
    top: float,
) -> None:
    handles = [round_mark(colour, 8, name) for name, colour in colours.items()]
    if any((m.labels == "").any() for m in maps):
        handles.append(
            Line2D([], [], ls="", marker="o", ms=8, mfc="none", mec="0.4", label="no cluster")
        )
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(left, top),
        fontsize=9,
        frameon=False,
        title="cluster",
        title_fontsize=9,
        alignment="left",
    )


def _notes(maps: Sequence[ClusterMap]) -> str:
    parts = []
    if any(m.certainty is not None for m in maps):
        parts.append("fainter: the most probable cluster is less certain")
    if any(m.wrong is not None for m in maps):
        parts.append("black ring: another cluster was measured")
    return "; ".join(parts)


def recall_picture(recall: pd.DataFrame, title: str) -> Figure:
    """Draw a recall matrix.

    Parameters
    ----------
    recall : DataFrame
        Index: true clusters; column `spots`, then one column for each predicted cluster with
        the share of the row's spots that were called it.
    title : str
        Heading of the picture.
    """
    names = [str(name) for name in recall.columns[1:]]
    values = recall.iloc[:, 1:].to_numpy(dtype=np.float64)
    rows = [f"{name}  ({n} spots)" for name, n in zip(recall.index, recall["spots"], strict=True)]
    cell, left, foot = 0.48, label_inches(rows) + 0.35, label_inches(names) + 0.35
    shape = (cell * len(names), cell * len(rows))
    width, height = max(left + shape[0] + 0.95, 4.6), foot + shape[1] + 0.75
    figure = new_figure(width, height)
    place = (left / width, foot / height, shape[0] / width, shape[1] / height)
    axes = figure.add_axes(place)
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        own = names[j] == str(recall.index[i])
        style: dict[str, Any] = {"fontweight": "bold" if own else "normal", "fontsize": 8.5}
        colour = "white" if value > 0.55 else "black" if value >= 0.005 else "0.7"
        axes.text(j, i, f"{value:.0%}", ha="center", va="center", color=colour, **style)
    long = max(len(name) for name in names) > 4
    axes.set_xticks(range(len(names)), names, fontsize=9, rotation=90 if long else 0)
    axes.set_yticks(range(len(rows)), rows, fontsize=9)
    axes.set_xlabel("predicted cluster", fontsize=9.5)
    axes.set_ylabel("true cluster", fontsize=9.5)
    axes.tick_params(length=0)
    axes.spines[:].set(linewidth=0.5, color="0.6")
    figure.text(0.1 / width, 1 - 0.2 / height, title, fontsize=11, va="center")
    text = "share of each true cluster's spots; bold: called rightly (recall)"
    figure.text(0.1 / width, 1 - 0.45 / height, text, fontsize=8.5, color="0.35", va="center")
    return figure


PANELS = {"accuracy": "accuracy", "macro_f1": "macro F1"}


def cluster_scores(
    scores: pd.DataFrame, baselines: Sequence[str], pooled: str, majority: str
) -> Figure:
    """Draw accuracy and macro F1 of every model and baseline, section by section.

    Parameters
    ----------
    scores : DataFrame
        One row per `model` and `section`, with `accuracy`, `macro_f1` and `split`.
    baselines : sequence of str
        Names in `model` that are baselines; they are drawn grey, under the models.
    pooled : str
        The `section` that stands for the spots of all sections.
    majority : str
        The baseline that always says the largest cluster: its score is drawn as a line.
    """
    names = list(dict.fromkeys(scores["model"]))
    names = [n for n in names if n not in baselines] + [n for n in names if n in baselines]
    label_in, panel_in = label_inches(names), 3.1
    width = label_in + len(PANELS) * (panel_in + 0.25)
    height = 0.32 * len(names) + 1.4
    figure = new_figure(width, height)
    for number, (metric, text) in enumerate(PANELS.items()):
        left = (label_in + number * (panel_in + 0.25)) / width
        size = (panel_in / width, 0.32 * len(names) / height)
        axes = figure.add_axes((left, 0.85 / height, *size))
        for row, name in enumerate(names):
            table = scores[scores["model"] == name].set_index("section")[metric]
            colour = "0.5" if name in baselines else MODEL_COLOUR
            _score_row(axes, row, table.drop(index=pooled), float(table[pooled]), colour)
        base = scores[(scores["model"] == majority) & (scores["section"] == pooled)]
        for level in base[metric]:
            axes.axvline(level, color=MAJORITY_COLOUR, linewidth=1.6, zorder=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.75))
        plain_axes(axes)
        axes.set_title(text + split_text(scores) * (number == 0), fontsize=10)
        axes.set_xlabel(f"held-out {text}", fontsize=9)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names), fontsize=9)
        for label, name in zip(axes.get_yticklabels(), names, strict=True):
            label.set_color("0.4" if name in baselines else "black")
    handles = [
        round_mark("0.2", 8, f"spots of {pooled}"),
        round_mark("0.2", 3.5, "one section", alpha=0.6),
        Line2D([], [], color=MAJORITY_COLOUR, linewidth=1.6, label=majority),
    ]
    figure.legend(handles=handles, loc="lower right", ncols=3, fontsize=8, frameon=False)
    return figure


def _score_row(axes: Axes, row: int, sections: pd.Series, total: float, colour: str) -> None:
    """A small dot for each section, and a large one with its number for all of them."""
    axes.plot(sections, [row] * len(sections), "o", ms=3.5, color=colour, alpha=0.6)
    axes.plot(total, row, "o", ms=8, color=colour, zorder=4)
    axes.annotate(
        f"{total:.2f}",
        (total, row),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
