"""Scores of predictions against measurements, per gene. Pure numpy.

All functions take ``measured`` and ``predicted`` of shape (spots, genes) and return (genes,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.floating]

# half the width of a 90 % interval of the normal distribution, in standard deviations
NORMAL_90 = 1.6448536269514722
# spread below which a column counts as constant, relative to its magnitude
_CONSTANT = 1e-9


def _centred(values: Array) -> tuple[Array, Array]:
    """Columns minus their means, and their norms (0 for a constant column)."""
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    scale = np.abs(values).max(axis=0, initial=0.0) * np.sqrt(len(values))
    return centred, np.where(norm <= _CONSTANT * scale, 0.0, norm)


def pearson(measured: Array, predicted: Array) -> Array:
    """Pearson correlation per gene.

    A constant prediction scores 0 (it says nothing about where the gene is); a gene whose
    measurement is constant has no score (NaN), because no prediction could be right.

    Examples
    --------
    >>> y = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> pearson(y, y * 3 + 1)
    array([ 1., nan])
    """
    a, norm_a = _centred(measured)
    b, norm_b = _centred(predicted)
    product = norm_a * norm_b
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((a * b).sum(axis=0) / product, -1.0, 1.0)
    return np.where(norm_a == 0, np.nan, np.where(norm_b == 0, 0.0, r))


def correlation_shares(measured: Array, predicted: Array) -> NDArray[np.float64]:
    """What each spot adds to the mean Pearson correlation over genes, shape (spots,).

    Their mean is that correlation, so that two models can be compared spot by spot. Genes whose
    measurement is constant are left out.

    Examples
    --------
    >>> y = np.array([[0.0], [1.0], [2.0]])
    >>> correlation_shares(y, 3 * y)
    array([1.5, 0. , 1.5])
    """
    a, norm_a = _centred(measured)
    b, norm_b = _centred(predicted)
    known = norm_a > 0
    product = np.where(norm_a * norm_b > 0, norm_a * norm_b, np.inf)[known]
    if not known.any():
        return np.zeros(len(a))
    shares: NDArray[np.float64] = len(a) * (a[:, known] * b[:, known] / product).mean(axis=1)
    return shares


def spearman(measured: Array, predicted: Array) -> Array:
    """Spearman rank correlation per gene; ties get mean ranks, conventions as in `pearson`."""
    flat = _centred(predicted)[1] == 0
    r = pearson(rankdata(measured, axis=0), rankdata(predicted, axis=0))
    return np.where(flat & ~np.isnan(r), 0.0, r)


def rmse(measured: Array, predicted: Array) -> Array:
    """Root mean squared error per gene, in the unit of the target."""
    error = np.asarray(measured, dtype=np.float64) - predicted
    root: Array = np.sqrt((error**2).mean(axis=0))
    return root


def r2(measured: Array, predicted: Array) -> Array:
    """Coefficient of determination per gene: 1 - SSE / SST; NaN where the gene is constant.

    Negative when the prediction is worse than the mean of the *test* data itself.
    """
    residual = ((np.asarray(measured, dtype=np.float64) - predicted) ** 2).sum(axis=0)
    _, norm = _centred(measured)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm == 0, np.nan, 1.0 - residual / norm**2)


def coverage(measured: Array, predicted: Array, sd: Array) -> Array:
    """Share of measurements inside the 90 % interval ``predicted +- 1.645 sd``, per gene.

    Examples
    --------
    >>> coverage(np.array([[0.0], [2.0]]), np.zeros((2, 1)), np.ones((2, 1)))
    array([0.5])
    """
    inside = np.abs(np.asarray(measured, dtype=np.float64) - predicted) <= NORMAL_90 * sd
    share: Array = inside.mean(axis=0)
    return share


METRICS: dict[str, Callable[[Array, Array], Array]] = {
    "pearson": pearson,
    "spearman": spearman,
    "rmse": rmse,
    "r2": r2,
}


def mean_of_best(scores: Array, n: int) -> float:
    """Mean of the `n` highest scores, NaN left out (the field's 'top-50 genes').

    Examples
    --------
    >>> mean_of_best(np.array([0.1, np.nan, 0.5, 0.3]), 2)
    0.4
    """
    known = np.sort(scores[~np.isnan(scores)])
    return float(known[-n:].mean()) if known.size else float("nan")
