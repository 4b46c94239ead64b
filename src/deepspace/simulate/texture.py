"""Textures on the working grid: collagen fibres, cell borders, fat cells."""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from deepspace.simulate.fields import Floats, Raster
from deepspace.simulate.tissue import Local, Tissue

_FAT_SPACING_UM = 52.0


def fibre_direction(local: Local, rotation_deg: float) -> Raster:
    """Direction of collagen in the image, radians: wavy, and concentric around ducts and nests."""
    # angles of lines add up as vectors of twice the angle
    twice = 2.0 * (local.angle - np.deg2rad(rotation_deg))
    cos, sin = np.cos(twice), np.sin(twice)
    for level, reach, weight in ((local.duct, 35.0, 3.0), (local.nest, 14.0, 0.8)):
        rows, cols = np.gradient(np.clip(level, -120.0, 60.0))
        tangent = 2.0 * (np.arctan2(rows, cols) + np.pi / 2)
        near = weight * np.exp(-np.square(level / reach))
        cos, sin = cos + near * np.cos(tangent), sin + near * np.sin(tangent)
    cos, sin = (ndimage.gaussian_filter(part, 1.5) for part in (cos, sin))
    angle: Raster = 0.5 * np.arctan2(sin, cos)
    return angle


def fibres(
    angle: Floats | Raster, width: float, doublings: int, rng: np.random.Generator
) -> Raster:
    """White noise smeared along lines of direction: mean 0, variance 1.

    A line integral convolution; each doubling joins two stretches of a line, so that ``k`` of
    them average ``2**k`` pixels.

    Parameters
    ----------
    angle
        (h, w) radians.
    width
        Sigma across the fibres, px.
    doublings
        Base-2 logarithm of the length in px.
    rng
        Source of the noise.
    """
    noise = rng.standard_normal(angle.shape, dtype=np.float32)
    texture = ndimage.gaussian_filter(noise, width) if width > 0 else noise
    # both ways, because a line has no sense and the angle jumps somewhere by pi
    both = _smear(texture, angle, doublings - 1) + _smear(texture, angle + np.pi, doublings - 1)
    scaled: Raster = (both - both.mean()) / both.std()
    return scaled


def _smear(texture: Raster, angle: Floats | Raster, doublings: int) -> Raster:
    """Mean of `texture` over the stretch of the line that starts at each pixel."""
    rows, cols = np.indices(angle.shape, dtype=np.float32)
    step_r, step_c = np.sin(angle), np.cos(angle)
    for k in range(doublings):
        at = np.stack([rows + step_r, cols + step_c])
        texture = 0.5 * (texture + _look(texture, at, 1))
        if k + 1 < doublings:
            next_r, next_c = _look(step_r, at, 0), _look(step_c, at, 0)
            same = np.where(next_r * step_r + next_c * step_c < 0, -1.0, 1.0).astype(np.float32)
            step_r, step_c = step_r + same * next_r, step_c + same * next_c
    return texture


def _look(raster: Raster, at: Raster, order: int) -> Raster:
    values: Raster = ndimage.map_coordinates(raster, at, order=order, mode="reflect")
    return values


def cells(points: Floats, nuclei: Floats) -> tuple[Raster, Raster]:
    """Which cell a point lies in, by the nearest nucleus.

    Parameters
    ----------
    points, nuclei
        (n, 2) and (m, 2), one unit of length.

    Returns
    -------
    border : ndarray
        (n,) distance to the border between the two nearest cells.
    tone : ndarray
        (n,) a standard normal value per cell.
    """
    distance, index = cKDTree(nuclei).query(points, k=2)
    border = (distance[:, 1] - distance[:, 0]) / 2
    # hash of the cell: the same nucleus gives the same tone without a table to carry around
    tone = np.sin(index[:, 0] * 12.9898) * 1.4
    return border.astype(np.float32), tone.astype(np.float32)


class FatCells:
    """Fat cells of the block, shared by its sections: a Voronoi foam with round corners.

    Parameters
    ----------
    tissue
        Gives the box that they fill.
    seed
        Decides where they are.
    """

    def __init__(self, tissue: Tissue, seed: int) -> None:
        rng = np.random.default_rng([seed, 3])
        low, high = tissue.box
        n = np.ceil((high - low) / _FAT_SPACING_UM).astype(int)
        nodes = np.indices(n).reshape(3, -1).T + rng.uniform(-0.42, 0.42, (n.prod(), 3))
        centres = low + nodes * _FAT_SPACING_UM
        # only those near fat are ever asked for
        self._tree = cKDTree(centres[tissue.local(centres).fat > -1.5 * _FAT_SPACING_UM])

    def inside(self, xyz: Floats) -> Raster:
        """Distance to the membrane in um, (n,), for points (n, 3) um."""
        # membranes bulge
        wavy = xyz + 3.5 * np.sin(xyz[:, [1, 0, 0]] / 11.0 + xyz[:, [2, 2, 1]] / 19.0)
        near, index = self._tree.query(wavy, k=3)
        centres = self._tree.data[index]
        walls = []
        for other in (1, 2):
            apart = centres[:, other, :2] - centres[:, 0, :2]
            # distance to the bisecting plane, measured within the section
            gap = np.square(near[:, other]) - np.square(near[:, 0])
            walls.append(gap / (2.0 * np.hypot(*apart.T) + 1e-6))
        wall, corner = walls
        # smooth minimum rounds the corners where three cells meet
        rounded: Raster = (wall + corner - np.hypot(wall, corner)).astype(np.float32)
        return rounded
