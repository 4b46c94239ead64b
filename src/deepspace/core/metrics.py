"""Scores of predictions against measurements, per gene. Pure numpy and scipy.

All functions take ``measured`` and ``predicted`` of shape (spots, genes) and return (genes,). A
gene whose measurement is constant has no score (NaN) but an error; a constant prediction scores
what a prediction scores that says nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr
from scipy.stats import rankdata

Array = NDArray[np.floating]

# half the width of a 90 % interval of the normal distribution, in standard deviations
NORMAL_90 = 1.6448536269514722
# spread below which a column counts as constant, relative to its magnitude
_CONSTANT = 1e-9
# of mutual information: a chance excess of about (bins - 1)^2 / (2 spots) nats
MUTUAL_BINS = 5
# a spot is high in a gene where the gene is above this quantile of its own
AUC_QUANTILES = (0.5, 0.75, 0.9)
# constants of SSIM (Wang et al., IEEE Trans. Image Process. 13:600, 2004)
SSIM_K = (0.01, 0.03)


def within_folds(values: NDArray[np.float64], fold: NDArray[np.int64]) -> NDArray[np.float64]:
    """Values minus their mean in each fold.

    Where a section is held out piece by piece, each piece's training mean is high where the piece
    itself is low: pooled as they are, even the gene mean would correlate (negatively).
    """
    centred = np.empty_like(values)
    for number in np.unique(fold):
        rows = fold == number
        part = values[rows]
        # rounding must not turn a constant into a pattern: correlation has no scale
        centred[rows] = np.where(np.ptp(part, axis=0) == 0, 0.0, part - part.mean(axis=0))
    return centred


def centred_columns(values: Array) -> tuple[Array, Array]:
    """Columns minus their means, and their norms (0 for a constant column)."""
    values = np.asarray(values, dtype=np.float64)
    centred = values - values.mean(axis=0)
    norm = np.sqrt((centred**2).sum(axis=0))
    scale = np.abs(values).max(axis=0, initial=0.0) * np.sqrt(len(values))
    return centred, np.where(norm <= _CONSTANT * scale, 0.0, norm)


class Columns:
    """Values (spots, genes), with what several scores need of them worked out once.

    Scores of the pattern take it in place of the values. Ranks are most of their work.

    Parameters
    ----------
    values : ndarray, shape (spots, genes)
    """

    def __init__(self, values: Array) -> None:
        self.values: NDArray[np.float64] = np.asarray(values, dtype=np.float64)

    @classmethod
    def of(cls, values: Array | Columns) -> Columns:
        """These values; what is known of them stays."""
        return values if isinstance(values, Columns) else cls(values)

    @cached_property
    def centred(self) -> tuple[Array, Array]:
        """See `centred_columns`."""
        return centred_columns(self.values)

    @cached_property
    def ranks(self) -> Columns:
        """Ranks from 1 within each column; ties get mean ranks."""
        return Columns(rankdata(self.values, axis=0))


def pearson(measured: Array | Columns, predicted: Array | Columns) -> Array:
    """Pearson correlation per gene.

    A constant prediction scores 0 (it says nothing about where the gene is); a gene whose
    measurement is constant has no score (NaN), because no prediction could be right.

    Examples
    --------
    >>> y = np.array([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    >>> pearson(y, y * 3 + 1)
    array([ 1., nan])
    """
    a, norm_a = Columns.of(measured).centred
    b, norm_b = Columns.of(predicted).centred
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
    a, norm_a = centred_columns(measured)
    b, norm_b = centred_columns(predicted)
    known = norm_a > 0
    product = np.where(norm_a * norm_b > 0, norm_a * norm_b, np.inf)[known]
    if not known.any():
        return np.zeros(len(a))
    shares: NDArray[np.float64] = len(a) * (a[:, known] * b[:, known] / product).mean(axis=1)
    return shares


def spearman(measured: Array | Columns, predicted: Array | Columns) -> Array:
    """Spearman rank correlation per gene; ties get mean ranks, conventions as in `pearson`."""
    measured, predicted = Columns.of(measured), Columns.of(predicted)
    flat = predicted.centred[1] == 0
    r = pearson(measured.ranks, predicted.ranks)
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
    _, norm = centred_columns(measured)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norm == 0, np.nan, 1.0 - residual / norm**2)


def nrmse_range(measured: Array, predicted: Array) -> Array:
    """RMSE over the range (maximum minus minimum) of the measurement, per gene.

    Examples
    --------
    >>> nrmse_range(np.array([[0.0], [4.0]]), np.array([[1.0], [3.0]]))
    array([0.25])
    """
    measured = np.asarray(measured, dtype=np.float64)
    return _share_of(rmse(measured, predicted), np.ptp(measured, axis=0), measured)


def nrmse_sd(measured: Array, predicted: Array) -> Array:
    """RMSE over the (population) standard deviation of the measurement, per gene.

    1 is the error of the mean of the test data; ``r2 = 1 - nrmse_sd ** 2``.

    Examples
    --------
    >>> nrmse_sd(np.array([[0.0], [4.0]]), np.array([[1.0], [3.0]]))
    array([0.5])
    """
    measured = np.asarray(measured, dtype=np.float64)
    return _share_of(rmse(measured, predicted), measured.std(axis=0), measured)


def _share_of(error: Array, spread: Array, measured: Array) -> Array:
    flat = centred_columns(measured)[1] == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, error / spread)


def rank_bins(values: Array | Columns, bins: int = MUTUAL_BINS) -> NDArray[np.int64]:
    """Number of the equally filled bin of each value among its column, 0 to `bins` - 1.

    Equal values share their mean rank, and so a bin.

    Examples
    --------
    >>> rank_bins(np.array([[0.0], [0.0], [0.0], [7.0]]), 4).T
    array([[1, 1, 1, 3]])
    """
    ranks = Columns.of(values).ranks.values
    share = (ranks - 0.5) / max(len(ranks), 1)
    found: NDArray[np.int64] = np.minimum((share * bins).astype(np.int64), bins - 1)
    return found


def mutual_information(measured: Array | Columns, predicted: Array | Columns) -> Array:
    """Mutual information in nats, per gene, of values put into 5 equally filled bins each.

    The plug-in estimate (that of ``sklearn.metrics.mutual_info_score``) on `rank_bins`. It
    ignores any rising change of either side, sees falling relations too, and is at most log 5.
    Unrelated values do not reach 0 but about ``8 / spots``; compare with a baseline, not with 0.

    Examples
    --------
    >>> y = np.arange(10.0)[:, None]
    >>> mutual_information(y, -(y**3)).round(3)
    array([1.609])
    """
    measured = Columns.of(measured)
    flat = measured.centred[1] == 0
    genes, bins = len(flat), MUTUAL_BINS
    cell = rank_bins(measured) * bins + rank_bins(predicted) + np.arange(genes) * bins**2
    joint = np.bincount(cell.ravel(), minlength=genes * bins**2).reshape(genes, bins, bins)
    share = joint / max(len(cell), 1)
    alone = share.sum(axis=2, keepdims=True) * share.sum(axis=1, keepdims=True)
    ratio = np.divide(share, alone, out=np.ones_like(share), where=share > 0)
    found = np.maximum((share * np.log(ratio)).sum(axis=(1, 2)), 0.0)
    return np.where(flat, np.nan, found)


def jensen_shannon(measured: Array, predicted: Array) -> Array:
    """Jensen-Shannon divergence of the two maps, per gene: 0 the same, 1 nowhere together.

    Each map is divided by its sum over the spots, so that it is a distribution over the places;
    ``JSD(p, q) = (KL(p | m) + KL(q | m)) / 2`` with ``m = (p + q) / 2`` and logarithms to base 2,
    which is ``scipy.spatial.distance.jensenshannon(p, q, base=2) ** 2``. How far apart two
    places are does not count. A prediction below 0 counts as 0; one that is 0
    everywhere counts as evenly spread. NaN where a measurement is below 0 (a target such as
    residuals is no amount) or 0 everywhere.

    References
    ----------
    Li et al., Nature Methods 19:662 (2022); Wang et al., Nature Communications 16:1544 (2025).

    Examples
    --------
    >>> jensen_shannon(np.array([[1.0], [0.0]]), np.array([[0.0], [3.0]]))
    array([1.])
    """
    p, q = np.asarray(measured, dtype=np.float64), _amount(predicted)
    known = _is_amount(p)
    p = p / np.where(known, p.sum(axis=0), 1.0)
    total = q.sum(axis=0)
    q = np.where(total > 0, q / np.where(total > 0, total, 1.0), 1.0 / max(len(q), 1))
    middle = (p + q) / 2
    with np.errstate(invalid="ignore"):
        found = (rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=0) / (2 * np.log(2))
    return np.where(known, np.clip(found, 0.0, 1.0), np.nan)


def _amount(values: Array) -> Array:
    return np.maximum(np.asarray(values, dtype=np.float64), 0.0)


def _is_amount(values: Array) -> NDArray[np.bool_]:
    """Whether a column has no value below 0, and some above."""
    return np.asarray((values >= 0).all(axis=0) & (values > 0).any(axis=0))


def auc_above(measured: Array | Columns, predicted: Array | Columns, q: float) -> Array:
    """Area under the ROC curve, per gene, for finding the spots that are high in the gene.

    A spot is high where the measurement is above its own `q` quantile over these spots (linear
    interpolation). That of ``sklearn.metrics.roc_auc_score``; ties count half, so that a
    constant prediction scores 0.5. NaN where no spot is above.

    Examples
    --------
    >>> y = np.array([[0.0], [1.0], [2.0], [3.0]])
    >>> auc_above(y, np.array([[0.0], [2.0], [1.0], [3.0]]), 0.5)
    array([0.75])
    """
    measured = Columns.of(measured)
    high = measured.values > np.quantile(measured.values, q, axis=0)
    yes = high.sum(axis=0)
    ranks = (Columns.of(predicted).ranks.values * high).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        area = (ranks - yes * (yes + 1) / 2) / (yes * (len(high) - yes))
    # where all spots are about the same, what lies above the quantile is rounding
    return np.where((yes == 0) | (measured.centred[1] == 0), np.nan, area)


def ssim_global(measured: Array, predicted: Array) -> Array:
    """SSIM over all spots as one window, per gene. It ignores places: see `ssim_map` for a map.

    The variant of the field's benchmarks. Each side is divided by its own maximum; then, with
    C1 = 0.01^2 and C2 = 0.03^2,
    ``(2 m1 m2 + C1) (2 cov + C2) / ((m1^2 + m2^2 + C1) (var1 + var2 + C2))``
    of means, (population) variances and covariance over the spots. Putting both sides' spots
    into any other order changes nothing. A prediction below 0 counts as 0. NaN where a
    measurement is below 0, constant, or 0 everywhere.

    References
    ----------
    Li et al., Nature Methods 19:662 (2022); Wang et al., Nature Communications 16:1544 (2025).

    Examples
    --------
    >>> y = np.array([[0.0], [1.0], [2.0]])
    >>> ssim_global(y, 7 * y)
    array([1.])
    """
    x, y = np.asarray(measured, dtype=np.float64), _amount(predicted)
    known = _is_amount(x) & (centred_columns(x)[1] > 0)
    x = x / np.where(known, x.max(axis=0, initial=0.0), 1.0)
    top = y.max(axis=0, initial=0.0)
    y = y / np.where(top > 0, top, 1.0)
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    both = ((x - mean_x) * (y - mean_y)).mean(axis=0)
    found = ssim((mean_x, mean_y), (x.var(axis=0), y.var(axis=0)), both)
    return np.where(known, found, np.nan)


def ssim(
    means: tuple[Array, Array],
    variances: tuple[Array, Array],
    covariance: Array,
    extent: Array | float = 1.0,
) -> Array:
    """Structural similarity from the moments of windows; `extent` is the range of the values."""
    c1, c2 = ((k * extent) ** 2 for k in SSIM_K)
    level = (2 * means[0] * means[1] + c1) / (means[0] ** 2 + means[1] ** 2 + c1)
    found: Array = level * (2 * covariance + c2) / (variances[0] + variances[1] + c2)
    return found


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
# of the values: an error, or a share of an amount
VALUE_METRICS: dict[str, Callable[[Array, Array], Array]] = {
    "rmse": rmse,
    "nrmse_range": nrmse_range,
    "nrmse_sd": nrmse_sd,
    "r2": r2,
    "jensen_shannon": jensen_shannon,
    "ssim_global": ssim_global,
}
# of the pattern: no level and no scale
PATTERN_METRICS: dict[str, Callable[[Array | Columns, Array | Columns], Array]] = {
    "pearson": pearson,
    "spearman": spearman,
    "mutual_information": mutual_information,
    **{f"auc_above_q{q * 100:.0f}": partial(auc_above, q=q) for q in AUC_QUANTILES},
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
