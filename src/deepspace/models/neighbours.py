"""Kriging within one block: exact for some thousand spots, by nearest neighbours past that.

Past the limit a spot is conditioned on its nearest spots among those before it in a random order
(Vecchia 1988, Datta et al. 2016), and a point on its nearest spots.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from deepspace.models.covariance import LEVEL, Covariance, FloatArray

IntArray = NDArray[np.int64]

# section of a point whose level nobody measured
NOWHERE = -1
# pairs of spots worked on at once: what a processor's cache holds
PAIRS = 150_000


@dataclass(frozen=True)
class Places:
    """Points of one block.

    Attributes
    ----------
    xyz : ndarray, shape (points, 3)
        Common um, and depth.
    home : ndarray of int, shape (points,)
        Section whose level a point shares, `NOWHERE` where it is not known.
    """

    xyz: FloatArray
    home: IntArray

    def __len__(self) -> int:
        return len(self.xyz)

    def __getitem__(self, rows: slice | IntArray) -> Places:
        return Places(self.xyz[rows], self.home[rows])


@dataclass(frozen=True)
class Weights:
    """How points are put together from spots.

    Attributes
    ----------
    rows : ndarray of int, shape (points, m), or slice
        Spots that count; all of them where it is a slice.
    weights : ndarray, shape (points, m)
        Of these spots.
    variance : ndarray, shape (points,)
        What the spots leave unknown of the spatial terms and of the level, if that was measured.
    reach : ndarray, shape (points,)
        Largest correlation with a spot.
    """

    rows: IntArray | slice
    weights: FloatArray
    variance: FloatArray
    reach: FloatArray

    def of(self, values: FloatArray) -> FloatArray:
        """Weighted sums of the spots' values (spots, k), shape (points, k)."""
        if isinstance(self.rows, slice):
            return np.asarray(self.weights @ values, dtype=np.float64)
        return np.asarray(np.einsum("qm,qmk->qk", self.weights, values[self.rows]))


class Solver(Protocol):
    """Spots of a block, ready to be solved for."""

    def whiten(self, values: FloatArray) -> FloatArray:
        """Values (spots, k) in units in which spots are independent and of unit variance."""
        ...

    def weights(self, points: Places) -> Weights:
        """Weights of the spots at some points; each depends on its own point alone."""
        ...


def _prior(covariance: Covariance, points: Places) -> FloatArray:
    known: FloatArray = (points.home != NOWHERE).astype(np.float64)
    return covariance.sill + LEVEL * known


class Exact:
    """Every spot counts (Cholesky)."""

    def __init__(self, spots: Places, noise: FloatArray, covariance: Covariance) -> None:
        self.spots, self.covariance = spots, covariance
        total = self._between(spots)[1]
        total[np.diag_indices_from(total)] += noise
        self.factor = cholesky(total, lower=True, overwrite_a=True, check_finite=False)

    def _between(self, points: Places) -> tuple[FloatArray, FloatArray]:
        plane = cdist(points.xyz[:, :2], self.spots.xyz[:, :2])
        depth = np.abs(points.xyz[:, 2, None] - self.spots.xyz[:, 2])
        spatial = self.covariance.spatial(plane, depth)
        return spatial, spatial + LEVEL * (points.home[:, None] == self.spots.home)

    def whiten(self, values: FloatArray) -> FloatArray:
        """See `Solver`."""
        white: FloatArray = solve_triangular(self.factor, values, lower=True, check_finite=False)
        return white

    def weights(self, points: Places) -> Weights:
        """See `Solver`."""
        spatial, total = self._between(points)
        weights = cho_solve((self.factor, True), total.T, check_finite=False).T
        variance = _prior(self.covariance, points) - (weights * total).sum(axis=1)
        reach = spatial.max(axis=1) / self.covariance.sill
        return Weights(slice(None), weights, np.maximum(variance, 0.0), reach)


class Nearest:
    """Only the nearest spots count.

    Parameters
    ----------
    spots, noise, covariance
        Of the block.
    m : int
        How many neighbours.
    seed : int
        Of the order of the spots.
    """

    def __init__(
        self, spots: Places, noise: FloatArray, covariance: Covariance, *, m: int, seed: int = 0
    ) -> None:
        self.spots, self.noise, self.covariance, self.m = spots, noise, covariance, m
        across, down = covariance.ranges_um
        self.scale = np.array([1.0 / across, 1.0 / across, 1.0 / down])
        self.order = np.random.default_rng(seed).permutation(len(spots))
        self.tree = cKDTree(spots.xyz * self.scale)

    def whiten(self, values: FloatArray) -> FloatArray:
        """See `Solver`."""
        white = np.empty_like(values)
        for rows, before in self._before():
            found, own = self._solve(self.spots[rows], before)
            left = values[rows] - found.of(values)
            white[rows] = left / np.sqrt(own + self.noise[rows])[:, None]
        return white

    def weights(self, points: Places) -> Weights:
        """See `Solver`."""
        m = min(self.m, len(self.spots))
        parts = []
        for rows in _chunks(len(points), m):
            near = self.tree.query(points.xyz[rows] * self.scale, k=m)[1].reshape(-1, m)
            parts.append(self._solve(points[rows], near)[0])
        names = ("rows", "weights", "variance", "reach")
        return Weights(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))

    def _before(self) -> Iterator[tuple[IntArray, IntArray]]:
        """Spots in groups of doubling size, and the nearest ones of the groups before each.

        The first group is small enough to be conditioned on nothing but a few of its own.
        """
        done = 0
        while done < len(self.order):
            size = min(max(done, 1), len(self.order) - done)
            rows, known = self.order[done : done + size], self.order[:done]
            m = min(self.m, done)
            if m == 0:
                yield rows, np.empty((size, 0), dtype=np.int64)
            else:
                tree = cKDTree(self.spots.xyz[known] * self.scale)
                for part in _chunks(size, m):
                    chosen = rows[part]
                    near = tree.query(self.spots.xyz[chosen] * self.scale, k=m)[1]
                    yield chosen, known[near.reshape(-1, m)]
            done += size

    def _solve(self, points: Places, near: IntArray) -> tuple[Weights, FloatArray]:
        """Weights of the spots `near` (points, m) each point, and the variance they leave."""
        own = _prior(self.covariance, points)
        if near.shape[1] == 0:
            nothing = np.zeros((len(points), 0))
            return Weights(near, nothing, own, np.zeros(len(points))), own
        # axes first, so that each is in one piece
        around, home = self.spots.xyz.T[:, near], self.spots.home[near]
        among = self._covariance(around[:, :, :, None], around[:, :, None])
        among += LEVEL * (home[:, :, None] == home[:, None])
        diagonal = np.arange(near.shape[1])
        among[:, diagonal, diagonal] += self.noise[near]
        spatial = self._covariance(points.xyz.T[:, :, None], around)
        total = spatial + LEVEL * (points.home[:, None] == home)
        weights = np.linalg.solve(among, total[..., None])[..., 0]
        variance = np.maximum(own - (weights * total).sum(axis=1), 0.0)
        reach = spatial.max(axis=1) / self.covariance.sill
        return Weights(near, weights, variance, reach), variance

    def _covariance(self, one: FloatArray, other: FloatArray) -> FloatArray:
        """Of the spatial terms, between places (3, ...)."""
        x, y, z = (a - b for a, b in zip(one, other, strict=True))
        x *= x
        y *= y
        x += y
        return self.covariance.spatial(np.sqrt(x, out=x), np.abs(z, out=z))


def _chunks(rows: int, m: int) -> Iterator[slice]:
    step = max(1, PAIRS // (m * m))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))
