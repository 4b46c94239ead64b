r"""A fine prediction and the spots it lies in: means over spots, and fields that keep them.

A spot measures the sum over its area. A prediction :math:`f` at points finer than the spots, on
the linear scale, is made to agree with the estimates :math:`v_s` of the spots by a factor,

.. math::  f'(p) = f(p) \exp \phi(p), \qquad
           \frac{1}{|D_s|} \sum_{p \in D_s} f'(p) = v_s \quad \text{for every spot } s,

where :math:`D_s` are the points in the disc of spot s. :math:`\phi` is linear on the Delaunay
triangles of the spots' centres and continuous everywhere, so that no factor steps at the edge of a
spot. Its values at the centres are found by iterating
:math:`\phi_s \leftarrow \phi_s + \log(v_s / \bar f'_s)`, which contracts because the discs do not
overlap: a centre weighs most in its own disc. This is areal interpolation that preserves
volumes (Tobler 1979), with factors in place of increments, so that nothing becomes negative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import Delaunay, KDTree

FloatArray = NDArray[np.float64]

# a factor between the spots stays within 1/100 and 100; inside a spot it is what it must be
LARGEST_LOG: Final = float(np.log(100.0))
ROUNDS: Final = 60
TOLERANCE: Final = 1e-10
# values worked on together; bounds memory
BLOCK: Final = 4_000_000
# stand-ins for spots far outside, so that there is no hull to leave
GHOSTS: Final = 16


@dataclass(frozen=True)
class Constrained:
    """A fine prediction that agrees with the spots.

    Attributes
    ----------
    values : ndarray, shape (points, names)
        Of the dtype that was given.
    missed : ndarray of bool, shape (spots,)
        Spots that constrain nothing: no point lies in them, or they have no estimate.
    """

    values: NDArray[np.floating]
    missed: NDArray[np.bool_]


def to_spots(
    fine: ArrayLike, points: ArrayLike, spots: ArrayLike, diameter_um: float
) -> FloatArray:
    """Mean of a fine prediction over the area of every spot.

    Parameters
    ----------
    fine
        (points, names), on the linear scale: counts per 10,000, not their logarithm.
    points, spots
        Places, (n, 2), um. A point in two discs counts for the nearer centre.
    diameter_um
        Of a spot.

    Returns
    -------
    ndarray, shape (spots, names)
        NaN for spots that hold no point.

    Examples
    --------
    >>> to_spots([[1.0], [3.0], [9.0]], [[0, 0], [9, 0], [50, 0]], [[5, 0], [200, 0]], 20.0)
    array([[ 2.],
           [nan]])
    """
    owner = _owner(points, spots, diameter_um)
    spots = np.asarray(spots).reshape(-1, 2)
    means: FloatArray = _averaging(owner, len(spots)) @ np.asarray(fine, np.float64)
    means[~np.isin(np.arange(len(spots)), owner)] = np.nan
    return means


def constrained(
    fine: ArrayLike,
    points: ArrayLike,
    spots: ArrayLike,
    spot_values: ArrayLike,
    diameter_um: float,
) -> Constrained:
    r"""Fine prediction whose mean over each spot is the spot's estimate, exactly.

    See the module for the formula. Where a spot's estimate is 0 its points become 0; where the
    prediction is 0 all over a spot that has some, no factor helps and the spot's points take
    its estimate. Only there, and where a factor beyond 100 would be needed, is there a step at
    the edge of a spot.

    Parameters
    ----------
    fine
        (points, names), not negative, on the linear scale: counts per 10,000.
    points, spots
        Places, (n, 2), um. A point in two discs counts for the nearer centre.
    spot_values
        (spots, names), not negative, on the same scale; a row with NaN is no estimate.
    diameter_um
        Of a spot.

    Returns
    -------
    Constrained

    Raises
    ------
    ValueError
        If a value is negative, or the shapes do not fit.

    References
    ----------
    Tobler, W. Smooth pycnophylactic interpolation for geographical regions. JASA 74, 519-530
    (1979).

    Examples
    --------
    >>> points = [[0.0, 0.0], [10.0, 0.0], [100.0, 0.0]]
    >>> found = constrained([[1.0], [3.0], [5.0]], points, [[5.0, 0.0]], [[8.0]], 20.0)
    >>> found.values.round(3).ravel().tolist()
    [4.0, 12.0, 20.0]
    """
    field = np.asarray(fine)
    if not np.issubdtype(field.dtype, np.floating):
        field = field.astype(np.float64)
    wanted = np.asarray(spot_values, np.float64)
    places, centres = (np.asarray(a, np.float64).reshape(-1, 2) for a in (points, spots))
    _check(field, wanted, places, centres)
    owner = _owner(places, centres, diameter_um)
    used = np.isin(np.arange(len(centres)), owner) & ~np.isnan(wanted).any(axis=1)
    if not used.any():
        return Constrained(field.copy(), ~used)
    # number of a spot among those that are used, -1 for points of none
    number = np.append(np.where(used, np.cumsum(used) - 1, -1), -1)
    owner = number[owner]
    weights = _interpolation(places, centres[used])
    result = np.empty_like(field)
    step = max(1, BLOCK // max(1, len(places)))
    for start in range(0, field.shape[1], step):
        part = slice(start, start + step)
        values = field[:, part].astype(np.float64)
        result[:, part] = _scaled(values, owner, wanted[used, part], weights)
    return Constrained(result, ~used)


def _check(field: NDArray[np.floating], wanted: FloatArray, *places: FloatArray) -> None:
    if field.ndim != 2 or wanted.ndim != 2 or field.shape[1] != wanted.shape[1]:
        raise ValueError(f"fine {field.shape} and spot_values {wanted.shape} do not fit together")
    for name, array, where in zip(("fine", "spot_values"), (field, wanted), places, strict=True):
        if len(array) != len(where):
            raise ValueError(f"{name} has {len(array)} rows for {len(where)} places")
        if (array < 0).any():
            raise ValueError(f"{name} has negative values: give the linear scale, clipped at 0")


def _owner(points: ArrayLike, spots: ArrayLike, diameter_um: float) -> NDArray[np.intp]:
    """Spot in whose disc a point lies, the nearest one; -1 for none; shape (points,)."""
    places, centres = (np.asarray(a, np.float64).reshape(-1, 2) for a in (points, spots))
    if not len(centres):
        return np.full(len(places), -1)
    distance, nearest = KDTree(centres).query(places)
    # points exactly on the edge belong to the spot, also after rounding
    owner: NDArray[np.intp] = np.where(distance <= diameter_um / 2 * (1 + 1e-9), nearest, -1)
    return owner


def _averaging(owner: NDArray[np.intp], spots: int) -> sp.csr_matrix:
    """Matrix (spots, points) that takes the mean over the points of each spot."""
    inside = np.flatnonzero(owner >= 0)
    share = 1.0 / np.bincount(owner[inside], minlength=spots)[owner[inside]]
    return sp.csr_matrix((share, (owner[inside], inside)), shape=(spots, len(owner)))


def _interpolation(points: FloatArray, centres: FloatArray) -> sp.csr_matrix:
    """Matrix (points, spots) of a function that is linear between the centres.

    Ghosts on a wide circle carry the value of the spot nearest to them, so that the function
    goes on continuously outside the spots, for any number and arrangement of spots.
    """
    every = np.concatenate([points, centres])
    middle = (every.min(axis=0) + every.max(axis=0)) / 2
    radius = 4.0 * max(float(np.ptp(every, axis=0).max()), 1.0)
    angle = 2 * np.pi * (np.arange(GHOSTS) + 0.5) / GHOSTS
    ghosts = middle + radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    _, copied = KDTree(centres).query(ghosts)
    # around the middle: the triangulation loses digits far from the origin
    mesh = Delaunay((np.concatenate([centres, ghosts]) - middle) / radius)
    triangle = mesh.find_simplex((points - middle) / radius)
    affine = mesh.transform[triangle]
    first = np.einsum("nij,nj->ni", affine[:, :2], (points - middle) / radius - affine[:, 2])
    weights = np.column_stack([first, 1 - first.sum(axis=1)])
    corner = np.concatenate([np.arange(len(centres)), copied])[mesh.simplices[triangle]]
    rows = np.repeat(np.arange(len(points)), 3)
    return sp.csr_matrix((weights.ravel(), (rows, corner.ravel())), (len(points), len(centres)))


def _scaled(
    field: FloatArray, owner: NDArray[np.intp], wanted: FloatArray, weights: sp.csr_matrix
) -> FloatArray:
    """`field` (points, names) times the factor that gives every spot the mean `wanted`."""
    inside = np.flatnonzero(owner >= 0)
    average = _averaging(owner[inside], len(wanted))
    within, near = field[inside], weights[inside]
    factor = np.zeros_like(wanted)
    for _ in range(ROUNDS):
        means = average @ (within * np.exp(near @ factor))
        # a spot without any, predicted or wanted, asks for no factor
        change = np.log(np.divide(wanted, means, out=np.ones_like(means), where=means > 0) + 1e-300)
        before = factor
        factor = np.clip(factor + change, -LARGEST_LOG, LARGEST_LOG)
        if np.abs(factor - before).max() < TOLERANCE:
            break
    result: FloatArray = field * np.exp(weights @ factor)
    means = average @ result[inside]
    rest = np.divide(wanted, means, out=np.ones_like(means), where=means > 0)
    result[inside] *= rest[owner[inside]]
    empty = (means == 0)[owner[inside]]
    result[inside] = np.where(empty, wanted[owner[inside]], result[inside])
    return result
