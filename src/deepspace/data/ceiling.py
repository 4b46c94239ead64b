"""How well any method could score: the noise of the counts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core.metrics import pearson, within_folds

if TYPE_CHECKING:
    from deepspace.data.targets import Target

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """What binomial thinning says of one section.

    Attributes
    ----------
    ceiling : ndarray, shape (genes,)
        About the Pearson correlation with these noisy measurements that the true expression
        itself would reach.
    noise_variance : ndarray, shape (genes,)
        Variance of the measurement noise, in squared units of the target.
    """

    ceiling: FloatArray
    noise_variance: FloatArray


def reliability(
    counts: AnnData,
    target: Target,
    *,
    seed: int = 0,
    repeats: int = 5,
    fold: NDArray[np.int64] | None = None,
) -> Reliability:
    """Noise ceiling and noise variance per gene by binomial thinning.

    Each count is split into two halves, ``a ~ Binomial(x, 1/2)`` and ``x - a``, which for
    Poisson sampling are independent measurements at half the depth (Neufeld et al.,
    Biostatistics 25:270, 2024). The halves' correlation `r` gives the reliability of the full
    measurement, ``2r / (1 + r)`` (Spearman 1910; Brown 1910), and its square root is the
    correlation of the true expression with the measurement. Averaged over `repeats` splits.

    Noise beyond Poisson sampling is the same in both halves and counts as expression, which
    raises the ceiling; a target that is not linear in the counts may move it a little either way.
    Scores that are taken within folds (`fold`, shape (spots,)) have a ceiling within folds.
    """
    fold = np.zeros(counts.n_obs, np.int64) if fold is None else fold
    rng = np.random.default_rng(seed)
    X = sp.csr_matrix(counts.X)
    whole = X.data.astype(np.int64)
    found = []
    for _ in range(repeats):
        half = rng.binomial(whole, 0.5)
        first, second = (
            within_folds(target.encode(_with_data(counts, X, data)), fold)
            for data in (half, whole - half)
        )
        found.append(pearson(first, second))
    told = np.ma.masked_invalid(found)  # a rare gene may have a half without any count
    r = np.clip(told.mean(axis=0).filled(0.0), 0.0, 1.0)
    reliable = 2 * r / (1 + r)
    variance = within_folds(target.encode(counts), fold).var(axis=0)
    return Reliability(np.sqrt(reliable), (1.0 - reliable) * variance)


def _with_data(counts: AnnData, X: sp.csr_matrix, data: NDArray[np.int64]) -> AnnData:
    thinned = sp.csr_matrix((data.astype(np.float64), X.indices, X.indptr), shape=X.shape)
    return AnnData(thinned, var=counts.var[[]])
