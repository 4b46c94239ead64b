"""Features of a point pooled from a map that is a function of the slide alone.

Overlapping crops show a network the same tissue again and again. Here the slide, resampled to the
resolution of the patches, is cut once into windows that are anchored at its origin; the encoder's
map of each window is summed up (summed-area tables, Crow 1984), and every point gets the mean and
standard deviation of the map over its field of view from a few entries of the tables. The cost
therefore hardly depends on how densely the points lie.

A point adds up the windows that its own field of view touches, in a fixed order, so that its
features never depend on the other points, to the byte; windows that no field touches are not read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from deepspace.core.ahead import ahead
from deepspace.core.progress import counter
from deepspace.data.patches import PatchSpec, check_coords
from deepspace.data.stain import StainNormaliser
from deepspace.io.slide import Slide
from deepspace.io.source import Image, threads
from deepspace.models.field_sums import FieldSums, MapLayer, Moments

FloatArray = NDArray[np.float64]


class Maps(Protocol):
    """An encoder's map of a slide, computed window by window.

    Attributes
    ----------
    core_px
        Side of the part of a window that counts.
    halo_px
        What is read besides on each side: beyond it nothing reaches the core.
    step_px
        Cores of any multiple of this side can be computed, too.
    names
        Of the features, one per column that `finish` gives.
    threaded
        Whether several windows may be computed at once.
    """

    core_px: int
    halo_px: int
    step_px: int
    threaded: bool
    names: tuple[str, ...]

    def identity(self) -> dict[str, Any]:
        """Everything that changes the features, as JSON values."""
        ...

    def __call__(self, window: Image) -> list[MapLayer]:
        """Map of the core of a square window (core + 2 halos, the same, 3) of uint8 RGB."""
        ...

    def finish(self, moments: Sequence[Moments]) -> FloatArray:
        """Features (points, features) from the moments of every layer."""
        ...


@dataclass(frozen=True)
class _Raster:
    """The slide at the resolution of the patches.

    Attributes
    ----------
    step
        Full-resolution pixels per pixel.
    side
        Of the field of view in pixels.
    """

    slide: Slide
    step: float
    side: float

    @classmethod
    def of(cls, slide: Slide, spec: PatchSpec, window: int) -> _Raster:
        step = spec.um_per_px / slide.require_mpp()
        stored = slide.levels[slide.level_for(step)].downsample
        # a level that is as good as the wanted resolution is taken as it is, so that neighbouring
        # windows lie on its own pixels
        if abs(step / stored - 1) * window < 0.5:
            step = stored
        return cls(slide, step, spec.fov_um / slide.require_mpp() / step)

    def corners(self, coords: FloatArray) -> FloatArray:
        """Top-left corners of the fields of view, shape (points, 2)."""
        return coords / self.step - self.side / 2

    def read(self, x: int, y: int, side: int) -> Image:
        """Window whose top-left pixel is x, y."""
        size = (side * self.step, side * self.step)
        return self.slide.resample((x * self.step, y * self.step), size, (side, side))


@dataclass(frozen=True)
class _Window:
    """One window and the points whose fields of view touch its core."""

    column: int
    row: int
    points: NDArray[np.int64]


def dense_features(
    slide: Slide,
    coords: FloatArray,
    spec: PatchSpec,
    maps: Maps,
    *,
    normaliser: StainNormaliser | None = None,
    label: str = "features",
) -> NDArray[np.float32]:
    """Features at points of a slide from the encoder's map.

    Parameters
    ----------
    slide
        Where to read; it must know its mpp.
    coords
        Centres x, y in full-resolution pixels, shape (points, 2).
    spec
        Field of view, and resolution at which the slide is seen.
    maps
        The encoder's map.
    normaliser
        Brings the stains of this section to the reference.
    label
        What the progress bar says.

    Returns
    -------
    ndarray
        (points, features) float32. A point's row depends on the slide and that point alone.

    Raises
    ------
    InputError
        If the mpp is unknown, coordinates are wrong, or a tile is damaged.

    Notes
    -----
    In memory are one window and, for every point, the sums of every channel: ask for many points
    in compact groups, see `compact_groups`.
    """
    points = check_coords(coords)
    if not len(points):
        return np.empty((0, len(maps.names)), np.float32)
    raster = _Raster.of(slide, spec, maps.core_px + 2 * maps.halo_px)
    corners = raster.corners(points)
    windows = _windows(corners, raster.side, maps.core_px)
    sums = FieldSums(len(points), raster.side)
    with counter(len(windows), label) as bar:
        for window, layers in _computed(raster, windows, maps, normaliser):
            origin = np.array([window.column, window.row]) * maps.core_px
            sums.add(layers, window.points, corners[window.points] - origin)
            bar.update(1)
    return maps.finish(sums.moments()).astype(np.float32)


def compact_groups(coords: FloatArray, at_most: int) -> list[NDArray[np.int64]]:
    """Split points into compact groups: rows of `coords`, each of at most `at_most`.

    Neighbouring groups compute the windows at their border twice, so compact groups cost least.

    Parameters
    ----------
    coords
        Points (n, 2).
    at_most
        Points of a group, at least 1.

    Examples
    --------
    >>> points = np.array([[0.0, 0], [9, 0], [1, 0], [8, 0]])
    >>> [group.tolist() for group in compact_groups(points, 2)]
    [[0, 2], [1, 3]]
    """
    done: list[NDArray[np.int64]] = []
    waiting = [np.arange(len(coords))]
    while waiting:
        group = waiting.pop()
        if len(group) <= at_most:
            done.append(np.sort(group))
            continue
        here = coords[group]
        axis = int(np.ptp(here[:, 0]) < np.ptp(here[:, 1]))
        order = group[np.lexsort((group, here[:, 1 - axis], here[:, axis]))]
        # the first part holds as many full groups as it can
        half = at_most * math.ceil(len(group) / at_most / 2)
        waiting += [order[half:], order[:half]]
    return [group for group in done if len(group)]


def embed(patches: NDArray[np.uint8], maps: Maps) -> NDArray[np.float32]:
    """Features (b, d) of patches (b, s, s, 3) whose surroundings are unknown: mirrored.

    These are what `dense_features` gives where the surroundings happen to be so; attributions,
    which change single patches, look at patches in this way.
    """
    side, halo = patches.shape[1], maps.halo_px
    extra = -side % maps.step_px
    pads = ((halo, halo + extra), (halo, halo + extra), (0, 0))
    features = np.empty((len(patches), len(maps.names)), np.float32)
    for row, patch in enumerate(patches):
        sums = FieldSums(1, side)
        sums.add(maps(np.pad(patch, pads, "symmetric")), np.arange(1), np.zeros((1, 2)))
        features[row] = maps.finish(sums.moments())[0]
    return features


def _windows(corners: FloatArray, side: float, core_px: int) -> list[_Window]:
    """Windows that fields of view touch, row by row, with their points in ascending order."""
    first = np.floor(corners / core_px).astype(np.int64)
    last = np.maximum(np.ceil((corners + side) / core_px).astype(np.int64) - 1, first)
    reach = (last - first).max(axis=0) + 1
    pairs = []
    for dx in range(reach[0]):
        for dy in range(reach[1]):
            at = first + np.array([dx, dy])
            touching = np.flatnonzero((at <= last).all(axis=1))
            pairs.append(np.column_stack([at[touching], touching]))
    table = np.concatenate(pairs)
    table = table[np.lexsort((table[:, 2], table[:, 0], table[:, 1]))]
    starts = np.flatnonzero(np.diff(table[:, :2], axis=0).any(axis=1)) + 1
    return [
        _Window(int(part[0, 0]), int(part[0, 1]), part[:, 2]) for part in np.split(table, starts)
    ]


def _computed(
    raster: _Raster,
    windows: Sequence[_Window],
    maps: Maps,
    normaliser: StainNormaliser | None,
) -> Iterator[tuple[_Window, list[MapLayer]]]:
    """Windows with their maps, in the order given; reading goes ahead of computing."""
    core, halo = maps.core_px, maps.halo_px

    def read(window: _Window) -> Image:
        x, y = window.column * core - halo, window.row * core - halo
        seen = raster.read(x, y, core + 2 * halo)
        return seen if normaliser is None else normaliser.apply(seen)

    def compute(window: _Window) -> list[MapLayer]:
        return maps(read(window))

    workers = threads()
    with ThreadPoolExecutor(workers) as pool:
        if maps.threaded:
            yield from ahead(pool, compute, windows, workers)
            return
        for window, seen in ahead(pool, read, windows, workers):
            yield window, maps(seen)
