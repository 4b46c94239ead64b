"""Where to predict: at the spots, between them, on a grid.

Coordinates are x, y in full-resolution pixels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import Delaunay, QhullError

from deepspace.core.errors import InputError
from deepspace.data.tissue import TissueMask
from deepspace.io.slide import Slide

FloatArray = NDArray[np.float64]

# a denser request is a slip of the keyboard, and would not fit into memory
MOST_POINTS = 50_000_000


def between_spots(coords: FloatArray) -> FloatArray:
    """Centres of the triangles that neighbouring spots form, shape (points, 2).

    Monjo et al. 2022 predict there for super-resolution: on Visium's hexagonal lattice there
    are two triangles a spot, so that spots and centres together have three times the density.
    Triangles come from a Delaunay triangulation; those with an edge longer than 1.65 times the
    median edge span a hole and are left out (on a square lattice the diagonal is 1.41, across
    a missing spot of the hexagonal lattice it is 1.73).

    Examples
    --------
    >>> between_spots(np.array([[0.0, 0.0], [100.0, 0.0], [50.0, 87.0]]))
    array([[50., 29.]])
    """
    if len(coords) < 3:
        raise InputError(f"{len(coords)} spots form no triangle; use --at grid:UM instead")
    try:
        corners = coords[Delaunay(coords).simplices]
    except QhullError as error:
        raise InputError(
            f"{len(coords)} spots form no triangle; use --at grid:UM instead"
        ) from error
    edges = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=2)
    near = edges.max(axis=1) <= 1.65 * np.median(edges)
    centres: FloatArray = corners[near].mean(axis=1)
    return centres[np.lexsort((centres[:, 0], centres[:, 1]))]


def grid(slide: Slide, tissue: TissueMask, stride_um: float) -> FloatArray:
    """Square lattice over the tissue, anchored at the slide's corner, shape (points, 2)."""
    step = stride_um / slide.require_mpp()
    expected = slide.width * slide.height / step**2
    if expected > MOST_POINTS:
        raise InputError(
            f"grid:{stride_um:g} would be {expected:,.0f} points on {slide.path.name}, more than "
            f"{MOST_POINTS:,}; take a larger stride"
        )
    if step > min(slide.width, slide.height):
        raise InputError(f"grid:{stride_um:g} is wider than {slide.path.name}; take a smaller one")
    x = np.arange(step / 2, slide.width, step)
    y = np.arange(step / 2, slide.height, step)
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    return points[tissue.contains(points)]


def reference_points(slide: Slide, tissue: TissueMask, *, at_most: int = 400) -> FloatArray:
    """Points spread evenly over the tissue, that depend on the slide alone.

    Statistics of a section (for standardising its features) are taken here, never over the
    points that happen to be asked for. The stride is the finest of a fixed ladder that gives
    no more than `at_most` points.
    """
    # small slides need a finer lattice than the first step
    stride = min(50.0, slide.require_mpp() * min(slide.width, slide.height) / 20)
    points = grid(slide, tissue, stride)
    while len(points) > at_most:
        stride *= 2**0.25
        points = grid(slide, tissue, stride)
    if len(points) < 2:
        raise InputError(
            f"{slide.path}: almost no tissue found on the slide ({len(points)} points); check "
            "the image and its mpp with `deepspace inspect`"
        )
    return points
