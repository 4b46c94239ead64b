"""Picture of a completed block: a row of planes, from the first section to the last.

What is completed within a section is drawn by `deepspace.output.maps.expression_maps`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from deepspace.output.canvas import (
    Box,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
)
from deepspace.output.maps import (
    EXPRESSION_MAP,
    PANEL_IN,
    SD_MAP,
    UNIT,
    GeneMap,
    label_row,
    outline_pt,
    panel_grid,
    robust_limits,
)
from deepspace.output.volume import VolumeGrid

MEASURED: Final = "measured"
UNMEASURED: Final = "not measured"
BETWEEN: Final = "between sections"
# colour and width of a panel's frame, so that the kinds are told apart at a glance
FRAMES: Final[dict[str, tuple[str, float]]] = {
    MEASURED: ("black", 1.6),
    UNMEASURED: ("#d55e00", 1.6),
    BETWEEN: ("0.6", 0.5),
}
ROW_IN: Final = 18.0
SMALLEST_IN: Final = 1.25
GLASS: Final = "0.95"


@dataclass(frozen=True)
class PlaneMap:
    """One gene in one plane of a volume.

    Attributes
    ----------
    z_um : float
        Depth.
    mean : array, shape (y, x)
        Predicted log1p of counts per 10,000; NaN outside the tissue.
    sd : array, shape (y, x), or None
        Predictive standard deviation.
    section : str
        The section that lies here; empty between sections.
    image : uint8 array, shape (height, width, 3), or None
        Its H&E, moved into the frame of the volume and covering the same area.
    spots : Points or None
        Measured spots in um of the volume's frame; None where nothing was measured.
    values : array or None
        What they measured, one value a spot.
    """

    z_um: float
    mean: FloatArray
    sd: FloatArray | None = None
    section: str = ""
    image: NDArray[np.uint8] | None = None
    spots: Points | None = None
    values: FloatArray | None = None

    @property
    def kind(self) -> str:
        """Key of `FRAMES`."""
        if self.spots is not None:
            return MEASURED
        return UNMEASURED if self.section else BETWEEN


def shown_planes(z_um: FloatArray, sections_um: Sequence[float], most: int = 11) -> NDArray[Any]:
    """Choose planes for a picture: those nearest to sections first, then evenly among the rest.

    Parameters
    ----------
    z_um
        Depth of every plane.
    sections_um
        Depths of the sections.
    most
        How many there is room for; every section gets its plane even so.

    Returns
    -------
    ndarray of int
        Numbers of the chosen planes, ascending.

    Examples
    --------
    >>> shown_planes(np.arange(0.0, 41.0, 2.0), [0, 16, 40], most=6).tolist()
    [0, 4, 8, 11, 14, 20]
    """
    depths = np.asarray(z_um, np.float64)
    chosen = {int(np.abs(depths - z).argmin()) for z in sections_um}
    while len(chosen) < min(most, len(depths)):
        # the plane farthest from all that are shown
        shown = depths[sorted(chosen)] if chosen else depths[:1] - np.inf
        apart = np.abs(depths[:, None] - shown).min(axis=1)
        chosen.add(int(apart.argmax()))
    return np.array(sorted(chosen))


@dataclass(frozen=True)
class _Row:
    """One picture a plane, in the same colours."""

    label: str
    pictures: list[Any]
    style: dict[str, Any]
    bar: str = ""
    with_spots: bool = False


def volume_planes(
    grid: VolumeGrid,
    planes: Sequence[PlaneMap],
    gene: str,
    *,
    score: float | None = None,
    title: str = "",
    unit: str = UNIT,
) -> Figure:
    """Draw planes of a volume side by side, in the order of their depth.

    All planes share their colours, which come from the measured spots where there are any. Spots
    are drawn outlined on the planes where they were measured. A heavy black frame is a measured
    section, an orange one a section without counts.

    Parameters
    ----------
    grid : VolumeGrid
        Where the voxels lie.
    planes : sequence of PlaneMap
        Those to show.
    gene : str
        Its symbol.
    score : float, optional
        Held-out Pearson correlation, written beside the gene.
    title, unit : str
        Heading of the picture, and what the values are.

    Returns
    -------
    Figure
        Rows: the sections' H&E where any is given, the prediction, its sd where known.
    """
    planes = sorted(planes, key=lambda plane: plane.z_um)
    rows = _rows(planes, gene, unit)
    box = _box(grid, planes)
    aspect = (box[3] - box[1]) / (box[2] - box[0])
    width = float(np.clip(ROW_IN / len(planes), SMALLEST_IN, PANEL_IN))
    bars_after = [False] * (len(planes) - 1) + [True]
    sheet = panel_grid(len(rows), bars_after, aspect, width)
    for row, panels, (bar,) in zip(rows, sheet.panels, sheet.bars, strict=True):
        for plane, picture, axes in zip(planes, row.pictures, panels, strict=True):
            _draw(axes, row, picture, plane, (_extent(grid), box))
        known, font = (score, "italic") if row.with_spots else (None, "normal")
        label_row(panels[0], GeneMap(row.label, np.empty(0), score=known), font=font)
        if row.bar:
            style = row.style
            add_colour_bar(bar, style["norm"], style["cmap"], row.bar, extend="both")
        else:
            bar.set_axis_off()
    for axes, plane in zip(sheet.panels[0], planes, strict=True):
        axes.set_title(f"z = {round(plane.z_um, 1):g} µm\n{_name(plane)}", fontsize=8, pad=4)
    add_scale_bar(sheet.panels[0][0], box, 1.0)
    height = sheet.figure.get_figheight()
    sheet.figure.text(0.15 / sheet.figure.get_figwidth(), 1 - 0.15 / height, title, va="center")
    return sheet.figure


def _rows(planes: Sequence[PlaneMap], gene: str, unit: str) -> list[_Row]:
    images = [plane.image for plane in planes]
    sds = [plane.sd for plane in planes if plane.sd is not None]
    measured = [plane.values for plane in planes if plane.values is not None]
    # colours must not depend on how many planes were predicted
    shown = _joined(measured) if measured else _joined([plane.mean for plane in planes])
    style = {"norm": Normalize(*robust_limits(shown), clip=True), "cmap": _map(EXPRESSION_MAP)}
    rows = [_Row(gene, [plane.mean for plane in planes], style, unit, with_spots=True)]
    if any(image is not None for image in images):
        rows.insert(0, _Row("H&E", images, {}))
    if len(sds) == len(planes):
        style = {"norm": Normalize(*robust_limits(_joined(sds)), clip=True), "cmap": _map(SD_MAP)}
        rows.append(_Row("sd", list(sds), style, f"sd of {unit}"))
    return rows


def _joined(arrays: Sequence[FloatArray]) -> FloatArray:
    return np.concatenate([np.asarray(array, np.float64).ravel() for array in arrays])


def _map(name: str) -> Colormap:
    """Colour map that shows nothing outside the tissue."""
    return mpl.colormaps[name].with_extremes(bad=(1.0, 1.0, 1.0, 0.0))


def _extent(grid: VolumeGrid) -> Box:
    """Outer edges of the voxels of a plane: x0, y0, x1, y1, um."""
    (_, rows, columns), (_, dy, dx), (_, y, x) = grid.shape, grid.step_um, grid.origin_um
    return x - dx / 2, y - dy / 2, x + (columns - 0.5) * dx, y + (rows - 0.5) * dy


def _box(grid: VolumeGrid, planes: Sequence[PlaneMap]) -> Box:
    """Part of the planes where there is tissue, a little wider."""
    x0, y0, x1, y1 = _extent(grid)
    tissue = np.any([np.isfinite(plane.mean) for plane in planes], axis=0)
    if not tissue.any():
        return x0, y0, x1, y1
    (_, dy, dx) = grid.step_um
    rows, columns = (np.flatnonzero(tissue.any(axis=axis)) for axis in (1, 0))
    margin = 0.04 * max(np.ptp(rows) * dy, np.ptp(columns) * dx)
    return (
        max(x0, x0 + columns[0] * dx - margin),
        max(y0, y0 + rows[0] * dy - margin),
        min(x1, x0 + (columns[-1] + 1) * dx + margin),
        min(y1, y0 + (rows[-1] + 1) * dy + margin),
    )


def _draw(axes: Axes, row: _Row, picture: Any, plane: PlaneMap, where: tuple[Box, Box]) -> None:
    """One panel; `where` is the area of the picture and the part that is shown."""
    (x0, y0, x1, y1), box = where
    axes.set(xticks=[], yticks=[])
    if picture is None:
        axes.spines[:].set_visible(False)
        axes.text(
            0.5,
            0.5,
            "no section",
            ha="center",
            va="center",
            fontsize=7,
            color="0.6",
            transform=axes.transAxes,
        )
    else:
        axes.set_facecolor(GLASS)
        colour, width = FRAMES[plane.kind]
        axes.spines[:].set(color=colour, linewidth=width)
        axes.imshow(picture, extent=(x0, x1, y1, y0), interpolation="nearest", **row.style)
    axes.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]))
    if row.with_spots and plane.spots is not None:
        edge = outline_pt(axes, plane.spots.size_um)
        style = {"array": plane.values, "edgecolors": "black", "linewidths": edge}
        add_points(axes, plane.spots, 1.0, **row.style, **style)


def _name(plane: PlaneMap) -> str:
    return f"{plane.section}, {plane.kind}" if plane.section else plane.kind
