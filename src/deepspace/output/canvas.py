"""What every picture here is drawn with: the slide as backdrop, points in true size, scale bars."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection, EllipseCollection, PolyCollection
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree

from deepspace.core.files import atomic_path
from deepspace.io.slide import Slide

FloatArray = NDArray[np.float64]

DPI = 150
# x0, y0, x1, y1 in full-resolution pixels
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Backdrop:
    """Picture of a slide to draw on.

    Attributes
    ----------
    image : uint8 array
        RGB, (height, width, 3).
    downsample : float
        Full-resolution pixels per pixel of `image`.
    mpp : float
        Micrometres per full-resolution pixel.
    """

    image: NDArray[np.uint8]
    downsample: float
    mpp: float

    @classmethod
    def of(cls, slide: Slide, max_px: int = 2000) -> Backdrop:
        """Thumbnail of a slide with at most `max_px` on its longer side.

        Raises
        ------
        InputError
            If the slide does not know its mpp.
        """
        image, downsample = slide.thumbnail(max_px)
        return cls(image, downsample, slide.require_mpp())

    @property
    def box(self) -> Box:
        """The whole slide."""
        height, width = self.image.shape[:2]
        return 0.0, 0.0, width * self.downsample, height * self.downsample

    def crop(self, coords: ArrayLike, margin_um: float) -> Box:
        """Box around points, `margin_um` wider on each side, inside the slide.

        Examples
        --------
        >>> slide = Backdrop(np.zeros((10, 20, 3), np.uint8), downsample=10.0, mpp=0.5)
        >>> slide.crop([[50, 50], [100, 60]], margin_um=10)
        (30.0, 30.0, 120.0, 80.0)
        """
        points = np.asarray(coords, np.float64).reshape(-1, 2)
        if not len(points):
            return self.box
        margin = margin_um / self.mpp
        low = np.maximum(points.min(axis=0) - margin, 0.0)
        high = np.minimum(points.max(axis=0) + margin, self.box[2:])
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    def draw(self, axes: Axes, box: Box, *, strength: float = 1.0) -> None:
        """Show the slide in `box`, paled towards white when `strength` is below one."""
        step = self.downsample
        x0, y0 = (int(edge // step) for edge in box[:2])
        x1, y1 = (int(np.ceil(edge / step)) for edge in box[2:])
        part = self.image[y0:y1, x0:x1].astype(np.float32) / 255.0
        if strength < 1:
            # colour would compete with the colours of the points
            grey = part.mean(axis=-1, keepdims=True)
            part = 1 - strength + strength * (0.65 * grey + 0.35 * part)
        height, width = part.shape[:2]
        extent = (x0 * step, (x0 + width) * step, (y0 + height) * step, y0 * step)
        axes.imshow(part, extent=extent, interpolation="antialiased", rasterized=True)
        axes.set(xlim=(box[0], box[2]), ylim=(box[3], box[1]), xticks=[], yticks=[])
        axes.spines[:].set(linewidth=0.5, color="0.6")


@dataclass(frozen=True)
class Points:
    """Places on a slide and the size they are drawn in.

    Attributes
    ----------
    coords : array
        (n, 2) `x, y`, full-resolution pixels.
    size_um : float
        Diameter of a spot, or side of a square tile, um.
    square : bool
        Tiles that touch instead of round spots.
    """

    coords: FloatArray
    size_um: float
    square: bool = False

    def __getitem__(self, rows: NDArray[Any]) -> Points:
        return Points(self.coords[rows], self.size_um, self.square)


def laid_points(coords: FloatArray, size_um: float, mpp: float) -> Points:
    """Spots in true size; square tiles that touch where points lie closer than that."""
    if len(coords) < 2:
        return Points(coords, size_um)
    near, _ = KDTree(coords).query(coords, k=2)
    pitch_um = float(np.median(near[:, 1])) * mpp
    return Points(coords, min(size_um, pitch_um), square=pitch_um < size_um)


def add_points(axes: Axes, points: Points, mpp: float, **style: Any) -> Collection:
    """Draw points in true size; `style` goes to the matplotlib collection."""
    style = {"linewidths": 0.0, "rasterized": True, **style}
    size = points.size_um / mpp
    shapes: Collection
    if points.square:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * size / 2
        # tiles touch: smoothed edges, and edges moved to pixels, would leave seams
        style = {"antialiaseds": False, "snap": False, **style}
        shapes = PolyCollection(list(points.coords[:, None] + corners), **style)
    else:
        sides = np.full(len(points.coords), size)
        shapes = EllipseCollection(
            sides, sides, 0 * sides, units="xy", offsets=points.coords, **style
        )
        shapes.set_offset_transform(axes.transData)
    axes.add_collection(shapes, autolim=False)
    return shapes


def nice_length(longest: float) -> float:
    """Largest of 1, 2, 5 times a power of ten that is not above `longest`.

    Examples
    --------
    >>> [nice_length(value) for value in (1.0, 730.0, 4999.0)]
    [1.0, 500.0, 2000.0]
    """
    power = 10.0 ** np.floor(np.log10(longest))
    return float(max(step * power for step in (1, 2, 5) if step * power <= longest * (1 + 1e-9)))


def add_scale_bar(axes: Axes, box: Box, mpp: float) -> float:
    """Draw a scale bar at the lower left of `box` and return its length in um."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    length = nice_length(0.3 * width * mpp)
    text = f"{length / 1000:g} mm" if length >= 1000 else f"{length:g} µm"
    left, base = x0 + 0.04 * width, y1 - 0.04 * height
    halo = [withStroke(linewidth=3.5, foreground="white")]
    (bar,) = axes.plot(
        [left, left + length / mpp],
        [base, base],
        color="black",
        linewidth=2.5,
        solid_capstyle="butt",
        path_effects=halo,
        zorder=5,
    )
    bar.set_gid("scale-bar")
    axes.annotate(
        text,
        (left + length / mpp / 2, base),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
        zorder=5,
    )
    return length


def add_colour_bar(
    axes: Axes, norm: Normalize, cmap: Colormap, label: str, *, extend: str = "neither"
) -> None:
    """Fill `axes` with a colour bar."""
    figure = axes.figure
    bar = figure.colorbar(ScalarMappable(norm, cmap), cax=axes, extend=extend)
    bar.set_label(label, fontsize=8)
    bar.outline.set_linewidth(0.5)
    axes.tick_params(labelsize=7, width=0.5, length=2)
    if isinstance(norm, LogNorm):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.locator_params(nbins=5)


def new_figure(width: float, height: float) -> Figure:
    """Empty figure of this size in inches, with a canvas that draws PNG."""
    figure = Figure(figsize=(width, height), dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; the same figure gives the same bytes."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, metadata={"Software": None})
