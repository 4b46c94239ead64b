"""How well any method could score: the noise of the counts themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core.metrics import pearson

if TYPE_CHECKING:
    from deepspace.data.targets import Target

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Reliability:
    """What binomial thinning says of one section.

    Attributes
    ----------
    ceiling : ndarray, shape (genes,)
        Highest Pearson correlation with these noisy measurements that the true expression
        itself would reach.
    noise_variance : ndarray, shape (genes,)
        Variance of the measurement noise, in squared units of the target.
    """

    ceiling: FloatArray
    noise_variance: FloatArray


def reliability(counts: AnnData, target: Target, *, seed: int = 0, repeats: int = 5) -> Reliability:
    """Noise ceiling and noise variance per gene by binomial thinning.

    Each count is split into two halves, ``a ~ Binomial(x, 1/2)`` and ``x - a``, which for
    Poisson sampling are independent measurements at half the depth (Neufeld et al.,
    Biostatistics 25:270, 2024). The halves' correlation `r` gives the reliability of the full
    measurement, ``2r / (1 + r)`` (Spearman 1910; Brown 1910), and its square root is the
    correlation of the true expression with the measurement. Averaged over `repeats` splits.
    Noise beyond Poisson sampling is the same in both halves and counts as expression: the
    ceiling is an upper bound.
    """
    rng = np.random.default_rng(seed)
    X = sp.csr_matrix(counts.X)
    whole = X.data.astype(np.int64)
    correlation = np.zeros(len(target.names))
    for _ in range(repeats):
        half = rng.binomial(whole, 0.5)
        first, second = (
            target.encode(_with_data(counts, X, data)) for data in (half, whole - half)
        )
        correlation += np.nan_to_num(pearson(first, second)) / repeats
    r = np.clip(correlation, 0.0, 1.0)
    reliable = 2 * r / (1 + r)
    variance = target.encode(counts).var(axis=0)
    return Reliability(np.sqrt(reliable), (1.0 - reliable) * variance)


def _with_data(counts: AnnData, X: sp.csr_matrix, data: NDArray[np.int64]) -> AnnData:
    thinned = sp.csr_matrix((data.astype(np.float64), X.indices, X.indptr), shape=X.shape)
    return AnnData(thinned, var=counts.var[[]])
