"""Components of expression over a tissue: what features tell, and what the neighbours add."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import randomized_svd

from deepspace.models.covariance import Covariance, FloatArray, Patch, fit_covariance
from deepspace.models.neighbours import Exact, Nearest, Places, Solver

IntArray = NDArray[np.int64]

# where groups of components begin: leading ones have a covariance of their own
EDGES = (0, 1, 2, 3, 5, 8, 13, 22, 40, 80, 128)
# smaller matrices are decomposed in full
FULL_SVD = 1500
# points put together at once
CHUNK = 1024


@dataclass(frozen=True)
class Spots:
    """Measured spots of all blocks.

    Attributes
    ----------
    block : ndarray of int, shape (spots,)
        Blocks are infinitely far apart.
    places : Places
        Where they lie.
    thinness : ndarray, shape (spots,)
        Median depth over the depth of each.
    features : ndarray, shape (spots, features)
        What the image shows, of unit mean squared norm; no columns where it does not take part.
    values : ndarray, shape (spots, components)
        What is kriged.
    """

    block: IntArray
    places: Places
    thinness: FloatArray
    features: FloatArray
    values: FloatArray

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, rows: IntArray) -> Spots:
        return Spots(
            self.block[rows],
            self.places[rows],
            self.thinness[rows],
            self.features[rows],
            self.values[rows],
        )


@dataclass(frozen=True)
class Points:
    """Points of one block, with the features of their image."""

    block: int
    places: Places
    features: FloatArray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, rows: slice) -> Points:
        return Points(self.block, self.places[rows], self.features[rows])


@dataclass(frozen=True)
class Group:
    """Neighbouring components that share a covariance.

    Attributes
    ----------
    columns : slice
        Of the components.
    scale : ndarray, shape (components of the group,)
        Their standard deviations.
    covariance : Covariance
        Of the components in these units.
    """

    columns: slice
    scale: FloatArray
    covariance: Covariance

    @property
    def spatial_variance(self) -> float:
        """Variance of all its components over place and depth."""
        return self.covariance.sill * float((self.scale**2).sum())


@dataclass(frozen=True)
class Solving:
    """When kriging is exact: up to `exact` spots a block; else `neighbours`, ordered by `seed`."""

    exact: int
    neighbours: int
    seed: int = 0

    def solver(self, spots: Places, noise: FloatArray, covariance: Covariance) -> Solver:
        """Solver of one block."""
        if len(spots) <= self.exact:
            return Exact(spots, noise, covariance)
        return Nearest(spots, noise, covariance, m=self.neighbours, seed=self.seed)


@dataclass(frozen=True)
class Estimate:
    """Components at points.

    Attributes
    ----------
    mean, variance : ndarray, shape (points, components)
        Of the component without noise of measurement.
    reach : ndarray, shape (points,)
        Largest correlation with a measured spot, the mean over groups by how much they vary over
        place and depth.
    """

    mean: FloatArray
    variance: FloatArray
    reach: FloatArray


class GroupField:
    """One group of components, solved.

    The weights of the features are those of generalised least squares: neighbours that say the
    same count less (universal kriging; as a Gaussian process, exactly its posterior mean).
    """

    def __init__(self, spots: Spots, group: Group, solving: Solving) -> None:
        self.group = group
        covariance = group.covariance
        values = spots.values[:, group.columns] / group.scale
        width = spots.features.shape[1]
        self.rows = {int(b): np.flatnonzero(spots.block == b) for b in np.unique(spots.block)}
        self.solvers = {
            block: solving.solver(
                spots.places[rows], covariance.noise(spots.thinness[rows]), covariance
            )
            for block, rows in self.rows.items()
        }
        precision = np.eye(width) / covariance.image
        pull = np.zeros((width, values.shape[1]))
        if width:  # else there are no weights to find
            both = np.concatenate([spots.features, values], axis=1)
            for block, rows in self.rows.items():
                white = self.solvers[block].whiten(both[rows])
                precision += white[:, :width].T @ white[:, :width]
                pull += white[:, :width].T @ white[:, width:]
        self.spread = np.linalg.inv(precision)
        self.weights = self.spread @ pull
        self.left = {b: values[r] - spots.features[r] @ self.weights for b, r in self.rows.items()}
        self.features = {b: spots.features[r] for b, r in self.rows.items()}

    def at(self, points: Points) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Mean (points, components), variance and reach (points,) at points of a known block."""
        found = self.solvers[points.block].weights(points.places)
        mean = points.features @ self.weights + found.of(self.left[points.block])
        apart = points.features - found.of(self.features[points.block])
        variance = found.variance + ((apart @ self.spread) * apart).sum(axis=1)
        return mean * self.group.scale, variance, found.reach


class Field:
    """All groups of components."""

    def __init__(self, spots: Spots, groups: Sequence[Group], solving: Solving) -> None:
        self.groups = list(groups)
        self.parts = [GroupField(spots, group, solving) for group in groups]
        told = np.array([group.spatial_variance for group in groups])
        self.shares = told / told.sum()
        self.blocks = {int(block) for block in np.unique(spots.block)}

    def at(self, points: Points) -> Estimate:
        """Components at points of a known block; each depends on its own point alone."""
        width = self.groups[-1].columns.stop
        mean, variance = np.empty((len(points), width)), np.empty((len(points), width))
        reach = np.zeros(len(points))
        for start in range(0, len(points), CHUNK):
            rows = slice(start, start + CHUNK)
            for part, share in zip(self.parts, self.shares, strict=True):
                columns, scale = part.group.columns, part.group.scale
                mean[rows, columns], own, near = part.at(points[rows])
                variance[rows, columns] = own[:, None] * scale**2
                reach[rows] += share * near
        return Estimate(mean, variance, reach)


def principal_directions(centred: FloatArray, most: int, seed: int) -> FloatArray:
    """Leading principal directions of the columns, shape (names, directions)."""
    if min(centred.shape) <= FULL_SVD:
        return np.asarray(np.linalg.svd(centred, full_matrices=False)[2][:most].T)
    found = randomized_svd(centred, most, n_iter=4, random_state=seed)
    return np.asarray(found[2].T)


def group_edges(components: int) -> list[int]:
    """Where groups of so many components begin, and the last one ends."""
    return [*(edge for edge in EDGES if edge < components), components]


def learn_groups(spots: Spots, edges: Sequence[int], patches: Sequence[IntArray]) -> list[Group]:
    """Covariance of every group of components by marginal likelihood.

    Parameters
    ----------
    spots : Spots
        With all components.
    edges : sequence of int
        Where groups begin and end.
    patches : sequence of ndarray of int
        Spots that are looked at together, of one block each.
    """
    shapes = [
        Patch.of(
            spots.places.xyz[rows],
            spots.places.home[rows],
            spots.features[rows],
            spots.thinness[rows],
            spots.values[rows],
        )
        for rows in patches
    ]
    groups: list[Group] = []
    for start, stop in pairwise(edges):
        columns = slice(start, stop)
        scale = np.maximum(spots.values[:, columns].std(axis=0), 1e-9)
        own = [p.only(columns, scale) for p in shapes]
        near = groups[-1].covariance if groups else None
        groups.append(Group(columns, scale, fit_covariance(own, near)))
    return groups
