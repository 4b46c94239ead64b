"""Transforms of counts to what is regressed, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

# over-dispersion of the null model of analytic Pearson residuals (Lause et al. 2021)
THETA = 100.0


@dataclass(frozen=True)
class Null:
    """Expression without any structure, as the training spots have it.

    Attributes
    ----------
    fractions : ndarray, shape (genes,)
        Share of each gene in all counts.
    depth : float
        Median counts of a spot.
    spots : int
        Number of spots; residuals are clipped at its square root.
    noise_depth : float, optional
        Harmonic mean of the counts of a spot: measurements of this depth are as noisy as the
        spots are on average. The median if it is not known.
    """

    fractions: FloatArray
    depth: float
    spots: int
    noise_depth: float | None = None


@dataclass(frozen=True)
class Transform:
    """A pair of functions: counts to target values, and back to log1p CP10k.

    `noise_power` tells how the variance of the counting noise falls with the counts of a spot:
    ``depth ** -noise_power``.
    """

    encode: Callable[[FloatArray, FloatArray, Null], FloatArray]
    decode: Callable[[FloatArray, Null], FloatArray]
    noise_power: float


def total_counts(counts: AnnData) -> FloatArray:
    """Counts of every spot over all genes, its depth, shape (spots,)."""
    total: FloatArray = np.asarray(counts.X.sum(axis=1), dtype=np.float64).ravel()
    return total


def log1p_cp10k(counts: FloatArray, depth: FloatArray) -> FloatArray:
    """``log(1 + 10,000 * counts / depth)``; a spot without counts gives zeros."""
    return np.log1p(counts * (1e4 / np.maximum(depth, 1.0))[:, None])


def pearson_residuals(counts: FloatArray, depth: FloatArray, null: Null) -> FloatArray:
    """Analytic Pearson residuals (Lause, Berens & Kobak, Genome Biology 22:258, 2021).

    ``(x - mu) / sqrt(mu + mu^2 / theta)`` with ``mu = depth * fraction``, theta = 100, clipped
    to +-sqrt(spots): the closed form of the SCTransform that Monjo et al. used. `null` comes
    from the training data, so that held-out spots are not looked at.
    """
    mu = np.maximum(depth, 1.0)[:, None] * null.fractions
    residual = (counts - mu) / np.sqrt(mu + mu**2 / THETA)
    bound = np.sqrt(null.spots)
    return np.clip(residual, -bound, bound)


def _residuals_to_log1p(values: FloatArray, null: Null) -> FloatArray:
    """Counts that a spot of median training depth has at this residual, per 10,000."""
    mu = null.depth * null.fractions
    counts = np.maximum(mu + values * np.sqrt(mu + mu**2 / THETA), 0.0)
    return np.log1p(counts * (1e4 / null.depth))


TRANSFORMS: dict[str, Transform] = {
    "log1p_cp10k": Transform(
        encode=lambda counts, depth, null: log1p_cp10k(counts, depth),
        decode=lambda values, null: values,
        noise_power=1.0,  # Poisson counts over their total
    ),
    "pearson_residuals": Transform(
        encode=pearson_residuals,
        decode=_residuals_to_log1p,
        noise_power=0.0,  # residuals are in units of their own noise
    ),
}
