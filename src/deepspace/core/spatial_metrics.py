"""Scores of predicted maps: what places, neighbours, pairs of genes and regions say.

Values are (spots, genes); a graph of neighbours is a sparse matrix (spots, spots).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from deepspace.core.metrics import Array, centred_columns, pearson, ssim

FloatArray = NDArray[np.float64]

# in pitches: a square lattice has its diagonals at 1.41, a hexagonal one its second ring at 1.73
RING = 1.55
# half of SSIM's window in pitches: 3 to each side, and the half steps of a hexagonal lattice out
WINDOW = 3.25
# genes in a chunk, so that a window's moments of many spots fit into memory
CHUNK = 64
TOP_GENES = 50
PAIRED_GENES = 200
COMPONENTS = 10
KMEANS_STARTS = 4


def spot_pitch(coords: FloatArray) -> float:
    """Median distance of a spot to its four nearest neighbours, in the unit of `coords`.

    The nearest alone would be too near where spots lie a little off their lattice.
    """
    if len(coords) < 2:
        return 0.0
    apart = cKDTree(coords).query(coords, k=min(5, len(coords)))[0]
    return float(np.median(apart[:, 1:]))


def neighbour_graph(coords: FloatArray) -> sp.csr_matrix:
    """Neighbours within 1.55 pitches: 8 of a square lattice, 6 of a hexagonal one.

    Parameters
    ----------
    coords : ndarray, shape (spots, 2)
        Of one section.

    Returns
    -------
    csr_matrix, shape (spots, spots)
        1 between neighbours, symmetric, nothing on the diagonal.

    Examples
    --------
    >>> square = np.stack(np.meshgrid(range(3), range(3)), axis=-1).reshape(-1, 2) * 100.0
    >>> neighbour_graph(square).sum(axis=1).A1.astype(int).tolist()
    [3, 5, 3, 5, 8, 5, 3, 5, 3]
    """
    n = len(coords)
    near = cKDTree(coords).query_pairs(RING * spot_pitch(coords), output_type="ndarray")
    rows, cols = np.concatenate([near, near[:, ::-1]]).T if len(near) else np.empty((2, 0), int)
    return sp.csr_matrix((np.ones(len(rows)), (rows, cols)), shape=(n, n))


def row_normalised(graph: sp.csr_matrix) -> sp.csr_matrix:
    """Weights of each spot's neighbours summing to 1; a spot without any keeps an empty row."""
    degree = np.asarray(graph.sum(axis=1)).ravel()
    return sp.csr_matrix(sp.diags(1.0 / np.where(degree > 0, degree, 1.0)) @ graph)


def smoothed(values: FloatArray, graph: sp.csr_matrix) -> FloatArray:
    """Mean over a spot and its neighbours, shape (spots, genes).

    Examples
    --------
    >>> line = neighbour_graph(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))
    >>> smoothed(np.array([[0.0], [3.0], [6.0]]), line).T
    array([[1.5, 3. , 4.5]])
    """
    ring = sp.csr_matrix(graph + sp.identity(graph.shape[0]))
    found: FloatArray = row_normalised(ring) @ np.asarray(values, dtype=np.float64)
    return found


def morans_i(values: FloatArray, graph: sp.csr_matrix) -> FloatArray:
    """Moran's I per gene, with row-normalised weights, shape (genes,).

    ``n / S0 * sum_ij w_ij z_i z_j / sum_i z_i^2`` (Moran, Biometrika 37:17, 1950): about 0
    without a pattern, towards 1 with a coarse one. Equal to ``squidpy.gr.spatial_autocorr`` and
    ``scanpy.metrics.morans_i`` on the same weights. NaN where a gene is constant or no spot has
    a neighbour.
    """
    weights = row_normalised(graph)
    centred, norm = centred_columns(values)
    total = weights.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (centred * (weights @ centred)).sum(axis=0) * (len(centred) / total) / norm**2
    return np.where((norm == 0) | (total == 0), np.nan, found)


def moran_agreement(measured: Array, predicted: Array) -> dict[str, float]:
    """How well Moran's I of predicted genes tells that of measured ones.

    Parameters
    ----------
    measured, predicted : ndarray, shape (genes,)
        Moran's I. A gene that is predicted constant has no pattern: its NaN counts as 0.

    Returns
    -------
    dict
        ``moran_pearson`` over the genes (NaN for fewer than three), and ``moran_error``, the
        mean absolute difference.
    """
    known = ~np.isnan(measured)
    a, b = measured[known], np.nan_to_num(predicted[known])
    return {
        "moran_pearson": float(pearson(a[:, None], b[:, None])[0]) if len(a) > 2 else np.nan,
        "moran_error": float(np.abs(a - b).mean()) if len(a) else np.nan,
    }


def svg_recovery(measured: Array, predicted: Array, top: int = TOP_GENES) -> dict[str, float]:
    """Whether the spatially variable genes of the measurement are those of the prediction.

    Parameters
    ----------
    measured, predicted : ndarray, shape (genes,)
        Moran's I. A gene that is predicted constant has no pattern: its NaN counts as 0.
    top : int
        So many genes with the highest measured Moran's I are the spatially variable ones; at
        most half of the genes.

    Returns
    -------
    dict
        ``svg_auroc`` of predicted Moran's I for finding them, and ``svg_overlap``, their share
        among as many genes with the highest predicted Moran's I (equal values: what a random
        choice among them gives on average).

    Examples
    --------
    >>> svg_recovery(np.array([0.9, 0.8, 0.1, 0.0]), np.array([0.5, 0.2, 0.3, 0.1]))
    {'svg_auroc': 0.75, 'svg_overlap': 0.5}
    """
    known = ~np.isnan(measured)
    a, b = measured[known], np.nan_to_num(predicted[known])
    k = min(top, len(a) // 2)
    if k == 0:
        return {"svg_auroc": np.nan, "svg_overlap": np.nan}
    variable = a >= np.sort(a)[-k]
    if variable.all():
        return {"svg_auroc": np.nan, "svg_overlap": np.nan}
    k = int(variable.sum())
    cut = np.sort(b)[-k]
    above, equal = b > cut, b == cut
    chance = above + equal * (k - above.sum()) / equal.sum()
    return {
        "svg_auroc": float(roc_auc_score(variable, b)),
        "svg_overlap": float(chance[variable].sum() / k),
    }


def gene_correlation_error(
    measured: FloatArray, predicted: FloatArray, most: int = PAIRED_GENES
) -> dict[str, float]:
    """How far the correlations between genes are off, over all pairs of genes.

    Noise of the counts pulls measured correlations towards 0, so that a prediction, which has
    none, is off even where it is right; less so on smoothed values.

    Parameters
    ----------
    measured, predicted : ndarray, shape (spots, genes)
    most : int
        The genes of the largest measured variance are taken; constant ones are left out.

    Returns
    -------
    dict
        ``gene_correlation_mae`` and ``gene_correlation_rmse`` of Pearson correlations off the
        diagonal; a gene that is predicted constant correlates 0 with every other.
    """
    spread = np.asarray(measured, dtype=np.float64).std(axis=0)
    chosen = np.sort(np.argsort(-spread, kind="stable")[:most])
    one, known = _correlations(measured[:, chosen])
    other, _ = _correlations(predicted[:, chosen])
    pairs = np.triu(np.outer(known, known), 1)
    error = (one - other)[pairs]
    return {
        "gene_correlation_mae": float(np.abs(error).mean()) if error.size else np.nan,
        "gene_correlation_rmse": float(np.sqrt((error**2).mean())) if error.size else np.nan,
    }


def _correlations(values: FloatArray) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Correlation matrix of the columns, 0 for constant ones, and which are not."""
    centred, norm = centred_columns(values)
    known = norm > 0
    unit = np.where(known, centred / np.where(known, norm, 1.0), 0.0)
    return unit.T @ unit, known


def expression_clusters(values: FloatArray, clusters: int, seed: int = 0) -> NDArray[np.int64]:
    """Clusters of spots by k-means on at most 10 leading principal components, shape (spots,).

    Spots are put into a fixed order first (along the components), so that their order in the
    table does not matter. There are no more clusters than distinct spots.
    """
    if not centred_columns(values)[1].any():
        return np.zeros(len(values), dtype=np.int64)
    scores = PCA(min(COMPONENTS, *values.shape), random_state=seed).fit_transform(values)
    scores = np.round(scores / np.abs(scores).max(), 9)  # equal spots are equal
    order = np.lexsort(scores.T[::-1])
    distinct = len(np.unique(scores, axis=0))
    means = KMeans(min(clusters, distinct), n_init=KMEANS_STARTS, random_state=seed)
    found = np.empty(len(values), dtype=np.int64)
    found[order] = means.fit_predict(scores[order])
    return found


def cluster_agreement(
    measured: NDArray[np.int64], predicted: NDArray[np.int64]
) -> dict[str, float]:
    """``cluster_ari`` and ``cluster_nmi`` of two clusterings of the same spots."""
    return {
        "cluster_ari": float(adjusted_rand_score(measured, predicted)),
        "cluster_nmi": float(normalized_mutual_info_score(measured, predicted)),
    }


def ssim_values(measured: FloatArray, predicted: FloatArray, coords: FloatArray) -> FloatArray:
    """SSIM of the window around every spot, shape (spots, genes); NaN for a window of one."""
    tree = cKDTree(coords)
    reach = WINDOW * spot_pitch(coords)
    near = tree.sparse_distance_matrix(tree, reach, p=np.inf, output_type="coo_matrix")
    window = sp.csr_matrix((np.ones(near.nnz), (near.row, near.col)), shape=near.shape)
    size = np.asarray(window.sum(axis=1))
    mean = row_normalised(window)
    x, y = (np.asarray(v, dtype=np.float64) for v in (measured, predicted))
    # moments are small differences of large numbers unless the values are near zero
    level = x.mean(axis=0)
    dx, dy = x - level, y - level
    mean_x, mean_y = mean @ dx, mean @ dy
    sample = size / np.maximum(size - 1, 1)
    variances = (
        sample * (mean @ (dx * dx) - mean_x**2),
        sample * (mean @ (dy * dy) - mean_y**2),
    )
    covariance = sample * (mean @ (dx * dy) - mean_x * mean_y)
    extent = np.ptp(x, axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = ssim((mean_x + level, mean_y + level), variances, covariance, extent)
    return np.where(size > 1, found, np.nan)


def ssim_map(measured: FloatArray, predicted: FloatArray, coords: FloatArray) -> FloatArray:
    """Mean structural similarity of the two maps of one section, per gene, shape (genes,).

    Around every spot there is a square window, 7 pitches wide as scikit-image's is 7 pixels, and
    cut at the border of the section; the mean is taken over the spots. K1 = 0.01, K2 = 0.03,
    sample covariance; the range of the data is that of the measurement in this section. On a
    square lattice and away from the border this is ``skimage.metrics.structural_similarity``,
    which cannot leave out what lies outside of a section, and would need the spots of a
    hexagonal lattice resampled to pixels. Values are compared as they are, level and scale
    included. NaN where the measurement is constant.

    References
    ----------
    Wang et al., IEEE Transactions on Image Processing 13:600 (2004).
    """
    flat = centred_columns(measured)[1] == 0
    parts = []
    for start in range(0, measured.shape[1], CHUNK):
        genes = slice(start, start + CHUNK)
        values = ssim_values(measured[:, genes], predicted[:, genes], coords)
        known = ~np.isnan(values)
        total = np.where(known, values, 0.0).sum(axis=0)
        parts.append(np.where(known.any(axis=0), total, np.nan) / np.maximum(known.sum(axis=0), 1))
    found = np.concatenate(parts) if parts else np.empty(0)
    return np.where(flat, np.nan, found)
