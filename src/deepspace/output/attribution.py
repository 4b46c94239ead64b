"""Pictures of what drives a prediction: maps over tiles, bars of features, maps over a section."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy import ndimage
from skimage.transform import resize

from deepspace.output.canvas import (
    Backdrop,
    FloatArray,
    Points,
    add_colour_bar,
    add_points,
    add_scale_bar,
    new_figure,
)
from deepspace.output.maps import HEAD_IN, PALE, GeneMap, label_row, panel_grid

# red raises the prediction, blue lowers it
DIVERGING = "RdBu_r"
RAISES, LOWERS = "#b2182b", "#2166ac"
TILE_IN = 2.1
# a scale that one extreme cell would set shows nothing else
QUANTILE = 99.5
LEAST_LIMIT = 1e-3
HALO = [withStroke(linewidth=2.5, foreground="white")]

FILL_TEXT = {"mean": "the tile's mean colour", "blur": "a blurred copy"}


@dataclass(frozen=True)
class Heading:
    """What a picture says of itself.

    Attributes
    ----------
    title : str
        Section and model.
    unit : str
        Of what is drawn.
    font : str
        Style of the names: genes are written in italics.
    """

    title: str
    unit: str
    font: str = "italic"


@dataclass(frozen=True)
class Tile:
    """One tile that is explained.

    Attributes
    ----------
    image : uint8 array
        (side, side, 3) H&E over the widest field of view.
    side_um : float
        Its side.
    name : str
        Why it was chosen, or where it lies.
    predicted : float
        Prediction there.
    inner_um : tuple of float
        Sides of the narrower fields of view, drawn as dashed squares.
    """

    image: NDArray[np.uint8]
    side_um: float
    name: str
    predicted: float
    inner_um: tuple[float, ...] = ()

    def draw(self, axes: Axes, image: NDArray[np.uint8] | FloatArray | None = None) -> None:
        """Show the tile, or another image of it, in micrometres."""
        shown = self.image if image is None else image
        side = self.side_um
        axes.imshow(shown, extent=(0, side, side, 0), interpolation="antialiased", rasterized=True)
        axes.set(xlim=(0, side), ylim=(side, 0), xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.5, color="0.6")
        for inner in self.inner_um:
            corner = ((side - inner) / 2,) * 2
            axes.add_patch(
                Rectangle(corner, inner, inner, fill=False, linewidth=0.8, linestyle="--")
            )

    def write(self, axes: Axes, text: str) -> None:
        """Write into the upper left corner."""
        axes.text(
            0.03, 0.97, text, transform=axes.transAxes, va="top", fontsize=8, path_effects=HALO
        )


@dataclass(frozen=True)
class MapRow:
    """Maps of one gene.

    Attributes
    ----------
    gene : str
        Its symbol.
    tiles : sequence of Tile
        Tiles, in this order.
    maps : array
        (tiles, n, n), over the whole of each tile.
    references : array
        (tiles,) prediction of each tile covered everywhere.
    score : float or None
        Held-out correlation of the gene.
    """

    gene: str
    tiles: Sequence[Tile]
    maps: FloatArray
    references: FloatArray
    score: float | None = None

    def limit(self, smooth: float) -> float:
        """End of the colour scale, the same for all tiles of the gene."""
        shown = np.abs(smoothed(self.maps, smooth))
        return float(max(np.percentile(shown, QUANTILE), LEAST_LIMIT))


@dataclass(frozen=True)
class MapStyle:
    """How a kind of map is drawn.

    Attributes
    ----------
    smooth : float
        Gaussian over so many cells before it is shown.
    label : str
        Of the colour bar; `unit` and `cell` are filled in.
    text : str
        What is seen, under the heading; `window` and `fill` are filled in.
    """

    smooth: float
    label: str
    text: str


STYLES: dict[str, MapStyle] = {
    "occlusion": MapStyle(
        0.0,
        "lost when covered ({unit})",
        "A {window:g} µm window is covered by {fill}. Red: tissue that raises the prediction; "
        "blue: tissue that lowers it.",
    ),
    "gradients": MapStyle(
        1.0,
        "{unit} per ({cell:.0f} µm)²",
        "Integrated gradients from {fill}: the whole map adds up to the difference it makes. "
        "Red: tissue that raises the prediction; blue: tissue that lowers it.",
    ),
}


def smoothed(maps: FloatArray, cells: float) -> FloatArray:
    """Maps (tiles, n, n) without the noise between neighbouring cells."""
    if not cells:
        return maps
    found: FloatArray = ndimage.gaussian_filter(maps, (0, cells, cells), mode="constant")
    return found


def tinted(
    image: NDArray[np.uint8], values: FloatArray, norm: Normalize, cmap: Colormap
) -> FloatArray:
    """Tile in grey, tinted by a map (n, n): white in the colour map leaves the tissue as it is.

    Examples
    --------
    >>> tile = np.full((4, 4, 3), 255, np.uint8)
    >>> out = tinted(tile, np.zeros((2, 2)), Normalize(-1, 1), mpl.colormaps["RdBu_r"])
    >>> out.shape, bool((out > 0.95).all())
    ((4, 4, 3), True)
    """
    grey = image.mean(axis=-1, keepdims=True) / 255
    fine = resize(values, image.shape[:2], order=1, mode="edge")  # type: ignore[no-untyped-call]
    colour: FloatArray = cmap(norm(fine))[..., :3] * (0.35 + 0.65 * grey)
    return colour


def attribution_maps(
    rows: Sequence[MapRow], heading: Heading, *, method: str, window_um: float, fill: str
) -> Figure:
    """Draw a row a gene: for each tile its H&E, and the tile in grey tinted by the map.

    The colours mean the same in all tiles of a gene. Dashed squares are the narrower fields of
    view.

    Parameters
    ----------
    rows : sequence of MapRow
        Rows, in this order; all have as many tiles.
    heading : Heading
        Title and unit.
    method : str
        Key of `STYLES`.
    window_um, fill : float, str
        What covered the tile.

    Returns
    -------
    Figure
    """
    style = STYLES[method]
    columns = max(len(row.tiles) for row in rows)
    grid = panel_grid(len(rows), [False] * (2 * columns - 1) + [True], 1.0, TILE_IN)
    cmap = mpl.colormaps[DIVERGING]
    for row, panels, bars in zip(rows, grid.panels, grid.bars, strict=True):
        limit = row.limit(style.smooth)
        norm = Normalize(-limit, limit, clip=True)
        shown = smoothed(row.maps, style.smooth)
        for k, tile in enumerate(row.tiles):
            tile.draw(panels[2 * k])
            tile.write(panels[2 * k], f"predicted {tile.predicted:.2f}")
            tile.write(panels[2 * k + 1], f"covered everywhere {row.references[k]:.2f}")
            tile.draw(panels[2 * k + 1], tinted(tile.image, shown[k], norm, cmap))
        for axes in panels[2 * len(row.tiles) :]:
            axes.set_axis_off()
        named = GeneMap(row.gene, row.maps.ravel(), score=row.score)
        label_row(panels[0], named, font=heading.font)
        cell = row.tiles[0].side_um / row.maps.shape[-1]
        label = style.label.format(unit=heading.unit, cell=cell)
        add_colour_bar(bars[0], norm, cmap, label, extend="both")
    for k, tile in enumerate(max(rows, key=lambda row: len(row.tiles)).tiles):
        grid.panels[0][2 * k].set_title(tile.name, fontsize=10, pad=5)
    side = rows[0].tiles[0].side_um
    add_scale_bar(grid.panels[0][0], (0.0, 0.0, side, side), 1.0)
    told = style.text.format(window=window_um, fill=FILL_TEXT[fill])
    _head(grid.figure, f"{heading.title}: {method}", told)
    return grid.figure


def _head(figure: Figure, title: str, text: str) -> None:
    """Heading and one line under it."""
    height = figure.get_figheight()
    figure.text(0.012, 1 - 0.14 / height, title, fontsize=12, va="center")
    figure.text(0.012, 1 - 0.34 / height, text, fontsize=8, color="0.3", va="center")


@dataclass(frozen=True)
class BarRow:
    """Contributions to one prediction.

    Attributes
    ----------
    gene : str
        Its symbol.
    tile : Tile
        Where.
    table : DataFrame
        Columns field, group, contribution.
    base : float
        Prediction without any contribution.
    """

    gene: str
    tile: Tile
    table: pd.DataFrame
    base: float


LABELS_IN, BARS_IN, SMALL_TILE_IN, ROW_IN, BELOW_IN = 1.0, 1.75, 1.35, 1.9, 0.6
LEFT_IN = 0.5


def attribution_bars(rows: Sequence[BarRow], heading: Heading) -> Figure:
    """Draw contributions of groups of features: a row a gene, its tiles side by side.

    Bars of one gene have one scale. A group has a bar for each field of view.

    Parameters
    ----------
    rows : sequence of BarRow
        Cases; those of one gene stand together.
    heading : Heading
        Title and unit.

    Returns
    -------
    Figure
    """
    genes = list(dict.fromkeys(row.gene for row in rows))
    columns = max(sum(row.gene == gene for row in rows) for gene in genes)
    step = SMALL_TILE_IN + LABELS_IN + BARS_IN + 0.25
    size = LEFT_IN + columns * step, HEAD_IN + 0.2 + len(genes) * (ROW_IN + BELOW_IN)
    figure = new_figure(*size)

    def place(left: float, bottom: float, width: float, height: float) -> Axes:
        return figure.add_axes(
            (left / size[0], bottom / size[1], width / size[0], height / size[1])
        )

    for number, gene in enumerate(genes):
        own = [row for row in rows if row.gene == gene]
        reach = 1.08 * max(LEAST_LIMIT, *(row.table["contribution"].abs().max() for row in own))
        bottom = size[1] - HEAD_IN - 0.2 - number * (ROW_IN + BELOW_IN) - ROW_IN
        for k, row in enumerate(own):
            left = LEFT_IN + k * step
            tile = place(left, bottom + (ROW_IN - SMALL_TILE_IN) / 2, SMALL_TILE_IN, SMALL_TILE_IN)
            row.tile.draw(tile)
            tile.set_title(f"{row.tile.name}\npredicted {row.tile.predicted:.2f}", fontsize=8)
            bars = place(left + SMALL_TILE_IN + LABELS_IN, bottom, BARS_IN, ROW_IN)
            _bars(bars, row, reach)
            bars.set_xlabel(heading.unit, fontsize=7, labelpad=1)
            if k == 0:
                side = row.tile.side_um
                add_scale_bar(tile, (0.12 * side, 0.0, side, side), 1.0)
                tile.set_ylabel(gene, labelpad=8, fontsize=12, fontstyle=heading.font)
    told = (
        "What the image features add to the mean of the training sections; all of them together "
        "are the prediction. Pale bars: narrow field of view (dashed); dark bars: wide."
    )
    _head(figure, f"{heading.title}: contributions", told)
    return figure


def _bars(axes: Axes, row: BarRow, reach: float) -> None:
    """Bars of one case, the first group on top; fields of view side by side, widest darkest."""
    groups = list(dict.fromkeys(row.table["group"]))
    fields = sorted(dict.fromkeys(row.table["field"]), key=lambda f: float(f.split()[0]))
    thick = 0.8 / len(fields)
    for k, name in enumerate(fields):
        table = row.table[row.table["field"] == name].set_index("group")["contribution"]
        values = table.reindex(groups).fillna(0.0).to_numpy()
        places = np.arange(len(groups)) + (k - (len(fields) - 1) / 2) * thick
        colours = [RAISES if value > 0 else LOWERS for value in values]
        strength = 0.45 + 0.55 * (k + 1) / len(fields)
        axes.barh(places, values, thick, color=colours, alpha=strength)
    axes.axvline(0, color="0.3", linewidth=0.6)
    axes.set_yticks(range(len(groups)), groups)
    axes.set(xlim=(-reach, reach), ylim=(len(groups) - 0.5, -0.5))
    axes.tick_params(labelsize=7, width=0.5, length=2)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[["top", "right", "left"]].set_visible(False)
    total = row.table["contribution"].sum()
    sign = "+" if total >= 0 else "\N{MINUS SIGN}"
    text = f"mean {row.base:.2f} {sign} {abs(total):.2f} = {row.base + total:.2f}"
    axes.set_title(text, fontsize=8)


def group_maps(backdrop: Backdrop, table: pd.DataFrame, at: Points, heading: Heading) -> Figure:
    """Draw what each group of features contributes at every spot: a row a gene.

    Parameters
    ----------
    backdrop : Backdrop
        The slide.
    table : DataFrame
        Columns gene, group, contribution; for each gene and group the points in one order.
    at : Points
        These points.
    heading : Heading
        Title and unit.

    Returns
    -------
    Figure
    """
    genes, groups = (list(dict.fromkeys(table[name])) for name in ("gene", "group"))
    box = backdrop.crop(at.coords, 1.5 * at.size_um)
    aspect = (box[3] - box[1]) / (box[2] - box[0])
    grid = panel_grid(len(genes), [False] * len(groups) + [True], aspect, TILE_IN)
    cmap = mpl.colormaps[DIVERGING]
    for gene, panels, bars in zip(genes, grid.panels, grid.bars, strict=True):
        own = table[table["gene"] == gene]
        limit = float(max(np.percentile(own["contribution"].abs(), QUANTILE), LEAST_LIMIT))
        norm = Normalize(-limit, limit, clip=True)
        backdrop.draw(panels[0], box)
        for axes, group in zip(panels[1:], groups, strict=True):
            values = own.loc[own["group"] == group, "contribution"].to_numpy(np.float64)
            backdrop.draw(axes, box, strength=PALE)
            add_points(axes, at, backdrop.mpp, array=values, norm=norm, cmap=DIVERGING)
        named = GeneMap(gene, own["contribution"].to_numpy(np.float64))
        label_row(panels[0], named, font=heading.font)
        add_colour_bar(bars[0], norm, cmap, heading.unit, extend="both")
    for axes, name in zip(grid.panels[0], ["H&E", *groups], strict=True):
        axes.set_title(name, fontsize=10, pad=5)
    add_scale_bar(grid.panels[0][0], box, backdrop.mpp)
    told = "Red: these features raise the prediction above the training mean; blue: they lower it."
    _head(grid.figure, f"{heading.title}: contributions of feature groups", told)
    return grid.figure
