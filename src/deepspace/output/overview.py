"""Picture of a section as it was read."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.data.tissue import TissueMask
from deepspace.data.transforms import total_counts
from deepspace.io.section import Section
from deepspace.output.canvas import (
    Backdrop,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
    new_figure,
)

MEASURED = "measured"
NO_COUNTS = "in tissue, no counts"
OFF_TISSUE = "off tissue"
# edge and face, in colours that H&E does not have
STATES: dict[str, tuple[str, tuple[str, float]]] = {
    OFF_TISSUE: ("0.55", ("0.8", 0.0)),
    NO_COUNTS: ("#a63c00", ("#ffb000", 0.75)),
    MEASURED: ("black", ("white", 0.45)),
}
OUTLINE = "#00664b"
COUNTS_MAP = "viridis"
# of the pitch, where nobody said how large the spots are
GUESSED_SHARE = 0.5

PANEL_IN = 6.0
HEAD_IN = 0.7
FOOT_IN = 0.45
BAR_IN = 0.85
GAP_IN = 0.12


def overview(section: Section, tissue: TissueMask | None = None) -> Figure:
    """Draw what was read of a section: slide, tissue, spots in true size and their counts.

    Parameters
    ----------
    section : Section
        Measured or not.
    tissue : TissueMask, optional
        Its outline is drawn.

    Returns
    -------
    Figure
        One panel, and a second one with the counts of a measured section.

    Raises
    ------
    InputError
        If the slide does not know its mpp.
    """
    backdrop = Backdrop.of(section.slide)
    box = backdrop.box
    aspect = (box[3] - box[1]) / (box[2] - box[0])
    panel_w, panel_h = (
        (PANEL_IN, PANEL_IN * aspect) if aspect < 1 else (PANEL_IN / aspect, PANEL_IN)
    )
    panels = 2 if section.measured else 1
    width = panels * (panel_w + GAP_IN) + GAP_IN + (BAR_IN if section.measured else 0.0)
    height = HEAD_IN + panel_h + FOOT_IN
    figure = new_figure(width, height)

    def place(number: int) -> tuple[float, float, float, float]:
        left = GAP_IN + number * (panel_w + GAP_IN)
        return left / width, FOOT_IN / height, panel_w / width, panel_h / height

    axes = figure.add_axes(place(0))
    backdrop.draw(axes, box)
    _draw_states(axes, section, backdrop, tissue)
    add_scale_bar(axes, box, backdrop.mpp)
    if section.measured:
        right = figure.add_axes(place(1))
        backdrop.draw(right, box, strength=0.45)
        left, bottom, wide, high = place(1)
        bar_axes = figure.add_axes(
            (left + wide + 0.1 / width, bottom + 0.1 * high, 0.13 / width, 0.8 * high)
        )
        _draw_counts(right, bar_axes, section, backdrop)
    _write_heading(figure, section)
    return figure


def _write_heading(figure: Figure, section: Section) -> None:
    slide = section.slide
    left, height = GAP_IN / figure.get_figwidth(), figure.get_figheight()
    head = f"Section {section.section}, patient {section.patient}"
    figure.text(left, 1 - 0.2 / height, head, fontsize=12, va="center")
    facts = f"{section.platform} · {slide.width:,} x {slide.height:,} px · {slide.mpp:.4g} µm/px"
    if section.counts is not None:
        facts += f" · {section.counts.n_obs:,} spots x {section.counts.n_vars:,} genes"
    points = spot_points(section)
    if points is not None:
        known = "" if section.spot_diameter_um is not None else " (true size unknown)"
        facts += f" · spots drawn {points.size_um:g} µm wide{known}"
    figure.text(left, 1 - 0.46 / height, facts, fontsize=9, va="center", color="0.3")


def spot_size_um(section: Section) -> float:
    """Diameter of a section's spots; half of their pitch, or 50 um, where it is unknown."""
    if section.spot_diameter_um is not None:
        return section.spot_diameter_um
    return 50.0 if section.spot_pitch_um is None else GUESSED_SHARE * section.spot_pitch_um


def spot_points(section: Section) -> Points | None:
    """Spots of a section in their true size."""
    spots = section.spots
    if spots is None:
        return None
    coords = spots[["x", "y"]].to_numpy(dtype=np.float64)
    return Points(coords, spot_size_um(section), square=section.platform == "visium_hd")


def spot_states(section: Section) -> pd.Series:
    """State of every spot: measured, in tissue without counts, or off tissue."""
    if section.spots is None:
        raise ValueError(f"section {section.section} has no spots")
    spots = section.spots
    states: NDArray[Any] = np.where(
        spots[keys.IN_TISSUE].to_numpy(dtype=bool), NO_COUNTS, OFF_TISSUE
    )
    if section.counts is not None:
        states = np.where(spots.index.isin(section.counts.obs_names), MEASURED, states)
    return pd.Series(states, index=spots.index, dtype="object")


def _draw_states(
    axes: Axes, section: Section, backdrop: Backdrop, tissue: TissueMask | None
) -> None:
    handles = []
    points = spot_points(section)
    if points is not None:
        states = spot_states(section)
        # the edges of small bins would hide the tissue
        share = points.size_um / backdrop.mpp / (backdrop.box[2] - backdrop.box[0])
        edge_width = min(0.6, 0.06 * share * PANEL_IN * 72)
        for state, (edge, face) in STATES.items():
            rows = (states == state).to_numpy()
            if not rows.any():
                continue
            add_points(
                axes,
                points[rows],
                backdrop.mpp,
                facecolors=[face],
                edgecolors=edge,
                linewidths=edge_width,
            )
            handles.append(_marker(f"{state} ({rows.sum():,})", edge, face))
    if tissue is not None and tissue.mask.any() and not tissue.mask.all():
        down, across = ((np.arange(n) + 0.5) * tissue.downsample for n in tissue.mask.shape)
        axes.contour(across, down, tissue.mask, levels=[0.5], colors=OUTLINE, linewidths=1.2)
        handles.append(Line2D([], [], color=OUTLINE, linewidth=1.5, label="tissue found"))
    if handles:
        axes.legend(
            handles=handles[::-1],
            loc="upper left",
            bbox_to_anchor=(0, 0),
            ncols=len(handles),
            fontsize=8,
            frameon=False,
            borderaxespad=0.4,
            columnspacing=1.2,
            handletextpad=0.4,
        )


def _marker(label: str, edge: str, face: tuple[str, float]) -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        marker="o",
        markersize=7,
        markeredgecolor=edge,
        markerfacecolor=mpl.colors.to_rgba(*face),
        label=label,
    )


def count_limits(totals: FloatArray) -> tuple[float, float]:
    """Colour limits that a few empty spots do not stretch: 2 % to 98 %."""
    if not totals.size:
        return 1.0, 10.0
    low, high = np.percentile(totals, [2, 98])
    return float(low), float(max(high, 1.1 * low))


def _draw_counts(axes: Axes, bar: Axes, section: Section, backdrop: Backdrop) -> None:
    counts = section.require_counts()
    spots = spot_points(section)
    size, square = (50.0, False) if spots is None else (spots.size_um, spots.square)
    totals = total_counts(counts)
    # a spot without any count has no logarithm
    values = np.maximum(totals, 1.0)
    norm = LogNorm(*count_limits(values), clip=True)
    add_points(
        axes,
        Points(section.coords, size, square),
        backdrop.mpp,
        array=values,
        norm=norm,
        cmap=COUNTS_MAP,
    )
    add_colour_bar(bar, norm, mpl.colormaps[COUNTS_MAP], "total counts per spot", extend="both")
