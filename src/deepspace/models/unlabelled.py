"""Tiles that nobody measured: where they lie, and which are neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.spatial import cKDTree

from deepspace.data.coords import grid
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.base import FloatArray

# cells of this many lattice steps are kept or left out whole, so that tiles keep neighbours
CELL = 4


@dataclass(frozen=True)
class Unlabelled:
    """Tiles without measurement: a slide and coordinates (tiles, 2), x and y in pixels."""

    slide: Slide
    coords: FloatArray


def pitch_um(section: Section) -> float:
    """Distance between neighbouring spots, from the platform or from the spots themselves."""
    if section.spot_pitch_um is not None:
        return section.spot_pitch_um
    spots = _all_spots(section)
    distance, _ = cKDTree(spots).query(spots, k=2)
    return float(np.median(distance[:, 1])) * section.slide.require_mpp()


def gap_points(section: Section, *, tiles: int, seed: int) -> FloatArray:
    """Points of the tissue between the spots, shape (points, 2).

    A square lattice of half the spot pitch, without the points nearer than half a spot
    diameter to any spot of the slide, and without those farther than one pitch from every
    measured spot: no tile lies in a part of the section that was left out. The lattice belongs
    to the slide, so that without the limit of `tiles` fewer spots give a subset of the points.

    Parameters
    ----------
    section : Section
        Measured section, perhaps reduced to training spots.
    tiles : int
        At most so many points; compact cells are chosen by `seed`, whole.
    seed : int
        Which cells.
    """
    mpp, pitch = section.slide.require_mpp(), pitch_um(section)
    step = pitch / 2 / mpp
    low, high = section.coords.min(axis=0) - pitch / mpp, section.coords.max(axis=0) + pitch / mpp
    axes = [
        np.arange(max(np.floor(a / step), 0.0), np.ceil(min(b, size) / step)) * step + step / 2
        for a, b, size in zip(low, high, (section.slide.width, section.slide.height), strict=True)
    ]
    points = np.stack(np.meshgrid(*axes), axis=-1).reshape(-1, 2)
    far = distance_to(section.coords, points) > pitch / mpp
    diameter = section.spot_diameter_um or pitch / 2
    on_spot = distance_to(_all_spots(section), points) < diameter / 2 / mpp
    points = points[~far & ~on_spot]
    return thinned(points[tissue_mask(section.slide).contains(points)], step, tiles, seed)


def _all_spots(section: Section) -> FloatArray:
    """Places of all spots of the slide, those without a measurement too, (spots, 2)."""
    if section.spots is None:
        return section.coords
    return section.spots[["x", "y"]].to_numpy(np.float64)


def tissue_points(slide: Slide, step_um: float, *, tiles: int, seed: int) -> FloatArray:
    """Points of the tissue of an unmeasured slide, shape (points, 2), at most `tiles`.

    Parameters
    ----------
    slide : Slide
        It must know its mpp.
    step_um : float
        Distance of neighbouring points; half the spot pitch of the measured sections.
    tiles, seed : int
        At most so many points; compact cells are chosen by `seed`, whole.
    """
    points = grid(slide, tissue_mask(slide), step_um)
    return thinned(points, step_um / slide.require_mpp(), tiles, seed)


def distance_to(spots: FloatArray, points: FloatArray) -> FloatArray:
    """Distance of each point to the nearest spot, shape (points,)."""
    distance: FloatArray = cKDTree(spots).query(points)[0]
    return distance


def thinned(points: FloatArray, step: float, tiles: int, seed: int) -> FloatArray:
    """At most `tiles` points, in whole cells, so that most keep their neighbours."""
    if len(points) <= tiles:
        return points
    cells = np.floor(points / (CELL * step)).astype(np.int64)
    _, label = np.unique(cells, axis=0, return_inverse=True)
    order = np.random.default_rng(seed).permutation(label.max() + 1)
    rank = np.argsort(order)[label]
    kept = np.argsort(rank, kind="stable")[:tiles]
    return points[np.sort(kept)]


@dataclass(frozen=True)
class Tiles:
    """Unlabelled tiles of one slide.

    Attributes
    ----------
    x : ndarray, shape (tiles, features)
        Centred features.
    near : sparse matrix, shape (tiles, tiles)
        Averages over each tile's neighbours, itself not among them.
    coords : ndarray, shape (tiles, 2)
        x, y in full-resolution pixels.
    section : str or None
        The training section whose gaps they are.
    """

    x: FloatArray
    near: sp.csr_matrix
    coords: FloatArray
    section: str | None = None

    @classmethod
    def of(
        cls, x: FloatArray, coords: FloatArray, reach: float, section: str | None = None
    ) -> Tiles | None:
        """Tiles that have a neighbour within `reach` pixels; None where there is none."""
        pairs = cKDTree(coords).query_pairs(reach, output_type="ndarray")
        if not len(pairs):
            return None
        kept = np.unique(pairs)
        pairs = np.searchsorted(kept, pairs)
        both = np.concatenate([pairs, pairs[:, ::-1]])
        adjacent = sp.csr_matrix((np.ones(len(both)), both.T), shape=(len(kept), len(kept)))
        near = sp.csr_matrix(sp.diags(1.0 / np.asarray(adjacent.sum(axis=1)).ravel()) @ adjacent)
        x = x[kept]
        return cls(x - x.mean(axis=0), near, coords[kept], section)
