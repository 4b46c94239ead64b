"""Covariance between spots: over place and depth, and by what the image shows."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.spatial.distance import pdist, squareform
from threadpoolctl import threadpool_limits

FloatArray = NDArray[np.float64]

# where the search starts, for components of unit variance: noise that counting does not explain,
# noise of counting, weight of the image, then weight, range in plane and range in depth (um) of
# the short and of the long term
NAMES = (
    *("steady", "counting", "image"),
    *("short weight", "short plane um", "short depth um"),
    *("long weight", "long plane um", "long depth um"),
)
START = np.log([0.3, 0.3, 0.1, 0.1, 150.0, 40.0, 0.1, 800.0, 100.0])
# standard deviation of the normal prior of each logarithm
SPREAD = np.array([2.0, 2.0, 2.0, 2.0, 1.0, 1.0, 2.0, 1.0, 1.0])
TERMS = (3, 6)
# variance of the unknown level of a section: that of a whole component, wider than levels differ
LEVEL = 1.0
# keeps matrices invertible
FLOOR = 1e-4


def _fade(q: FloatArray) -> FloatArray:
    """``exp(-q)``, which is most of the work here and three times as fast in torch."""
    faded: FloatArray = torch.exp(torch.from_numpy(-q)).numpy()
    return faded


def _matern(distance: FloatArray, scale: float) -> FloatArray:
    """Matern correlation of smoothness 3/2."""
    q: FloatArray = distance * (np.sqrt(3.0) / scale)
    return (1.0 + q) * _fade(q)


def _matern_slope(distance: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    """The same, and its derivative by the log of the scale."""
    q = distance * (np.sqrt(3.0) / scale)
    fade = _fade(q)
    return (1.0 + q) * fade, q * q * fade


def _exponential(distance: FloatArray, scale: float) -> FloatArray:
    # the spots of one section are all as deep
    return _fade(distance / scale) if distance.any() else np.ones_like(distance)


def _exponential_slope(distance: FloatArray, scale: float) -> tuple[FloatArray, FloatArray]:
    fade = _exponential(distance, scale)
    return fade, distance / scale * fade


@dataclass(frozen=True)
class Covariance:
    """What the likelihood found for a group of components, each of unit variance.

    The covariance of two spots is ``image * <features, features>`` plus, for the short and the
    long term, ``weight * matern(distance in plane) * exp(-distance in depth)``; the noise of a
    spot is ``steady + counting * median depth / its depth``.

    Attributes
    ----------
    log : ndarray, shape (9,)
        Logarithms, in the order of `NAMES`.
    """

    log: FloatArray

    @property
    def image(self) -> float:
        """Prior variance of each weight of the (scaled) features."""
        return float(np.exp(self.log[2]))

    @property
    def sill(self) -> float:
        """Variance of the spatial terms."""
        return float(np.exp(self.log[list(TERMS)]).sum())

    @property
    def ranges_um(self) -> FloatArray:
        """In plane and in depth, of the term that weighs most."""
        most = max(TERMS, key=lambda at: float(self.log[at]))
        ranges: FloatArray = np.exp(self.log[most + 1 : most + 3])
        return ranges

    def noise(self, thinness: FloatArray) -> FloatArray:
        """Noise variance of spots; `thinness` is the median depth over their own."""
        steady, counting = np.exp(self.log[:2])
        variance: FloatArray = steady + counting * thinness + FLOOR
        return variance

    def spatial(self, plane: FloatArray, depth: FloatArray) -> FloatArray:
        """Covariance of the spatial terms at these distances, um."""
        total = np.zeros(np.broadcast(plane, depth).shape)
        for at in TERMS:
            weight, across, down = np.exp(self.log[at : at + 3])
            total += weight * _matern(plane, across) * _exponential(depth, down)
        return total

    def describe(self) -> dict[str, float]:
        """Values by name, for people."""
        return {k: float(f"{v:.3g}") for k, v in zip(NAMES, np.exp(self.log), strict=True)}


@dataclass(frozen=True)
class Patch:
    """Spots that one part of the likelihood looks at; distances as `pdist` gives them.

    Attributes
    ----------
    plane : ndarray, shape (pairs,)
        Distances in um; all spots of a patch are of one block.
    depth : ndarray, shape (pairs,), optional
        Distances in um; None where all spots lie at one depth.
    same : ndarray, shape (pairs,)
        1 where two spots share the level of a section.
    gram : ndarray, shape (pairs,), optional
        Inner products of features, None where there are none; `norms` (spots,) are their
        squared norms.
    thinness : ndarray, shape (spots,)
        Median depth over the depth of each.
    values : ndarray, shape (spots, components)
        Components, of unit variance.
    """

    plane: FloatArray
    depth: FloatArray | None
    same: FloatArray
    gram: FloatArray | None
    norms: FloatArray
    thinness: FloatArray
    values: FloatArray

    @classmethod
    def of(
        cls,
        xyz: FloatArray,
        home: NDArray[np.int64],
        features: FloatArray,
        thinness: FloatArray,
        values: FloatArray,
    ) -> Patch:
        """Patch of spots at `xyz` (spots, 3), of sections `home` (spots,)."""
        shown = features.shape[1] > 0
        return cls(
            plane=pdist(xyz[:, :2]),
            depth=pdist(xyz[:, 2:], "cityblock") if np.ptp(xyz[:, 2]) else None,
            same=(pdist(home[:, None], "cityblock") == 0).astype(np.float64),
            gram=(features @ features.T)[np.triu_indices(len(xyz), 1)] if shown else None,
            norms=(features**2).sum(axis=1),
            thinness=thinness,
            values=values,
        )

    def only(self, columns: slice, scale: FloatArray) -> Patch:
        """The same spots with some of the components, divided by `scale`."""
        return replace(self, values=self.values[:, columns] / scale)


def _over_pairs(log: FloatArray, patch: Patch) -> tuple[FloatArray, dict[int, FloatArray]]:
    """Covariance of every pair of spots, and its derivatives by entries of `log` that it has."""
    slopes: dict[int, FloatArray] = {}
    total = LEVEL * patch.same
    if patch.gram is not None:
        slopes[2] = np.exp(log[2]) * patch.gram
        total += slopes[2]
    for at in TERMS:
        weight, across, down = np.exp(log[at : at + 3])
        near, near_slope = _matern_slope(patch.plane, across)
        near *= weight
        near_slope *= weight
        if patch.depth is not None:
            deep, deep_slope = _exponential_slope(patch.depth, down)
            slopes[at + 2] = near * deep_slope
            near *= deep
            near_slope *= deep
        slopes[at], slopes[at + 1] = near, near_slope
        total += near
    return total, slopes


def misfit(log: FloatArray, patch: Patch) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood, and its gradient by `Covariance.log`."""
    covariance = Covariance(log)
    off, slopes = _over_pairs(log, patch)
    own = LEVEL + covariance.sill + covariance.image * patch.norms
    # symmetric: its transpose is the same matrix in the order that LAPACK works on in place
    total = squareform(off, checks=False).T
    total[np.diag_indices_from(total)] = own + covariance.noise(patch.thinness)
    factor = cho_factor(total, lower=True, overwrite_a=True, check_finite=False)
    k = patch.values.shape[1]
    solved = cho_solve(factor, patch.values, check_finite=False)
    value = 0.5 * float((patch.values * solved).sum())
    value += k * float(np.log(np.diag(factor[0])).sum())
    # the inverse from its factor, a third of the work of solving for every unit vector
    inverse, _ = dpotri(factor[0], lower=True, overwrite_c=True)
    pull = 0.5 * (k * inverse - solved @ solved.T)
    diagonal, pairs = np.diag(pull), 2.0 * squareform(pull.T, checks=False)
    gradient = np.zeros(len(NAMES))
    for at, slope in slopes.items():
        gradient[at] = float(pairs @ slope)
    steady, counting = np.exp(log[:2])
    gradient[0] = steady * diagonal.sum()
    gradient[1] = counting * float(diagonal @ patch.thinness)
    gradient[2] += covariance.image * float(diagonal @ patch.norms)
    gradient[list(TERMS)] += np.exp(log[list(TERMS)]) * diagonal.sum()
    return value, gradient


def fit_covariance(
    patches: Sequence[Patch], near: Covariance | None = None, *, steps: int = 30
) -> Covariance:
    """Most likely covariance of a group of components: composite likelihood over patches.

    Log-normal priors, weak beside some hundred spots, keep ranges near where they start where
    the data say nothing of them. A weight that explains nothing goes to 0. The search starts from
    a covariance that should be `near`.
    """

    def objective(log: FloatArray) -> tuple[float, FloatArray]:
        pulled = (log - START) / SPREAD
        value, gradient = 0.5 * float(pulled @ pulled), pulled / SPREAD
        for more, slope in pool.map(partial(misfit, log), patches):
            value, gradient = value + more, gradient + slope
        return value, gradient

    start = START if near is None else near.log
    bounds = list(zip(START - 3.5 * SPREAD, START + 3.5 * SPREAD, strict=True))
    options = {"maxiter": steps, "ftol": 1e-5}
    # a thread a patch; threads inside a matrix of some hundred rows cost more than they bring
    with threadpool_limits(1, "blas"), ThreadPoolExecutor(len(patches)) as pool:
        found = minimize(
            objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
    return Covariance(np.asarray(found.x, dtype=np.float64))
