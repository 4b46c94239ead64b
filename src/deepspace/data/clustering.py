"""Unsupervised clusterings of spots in a few dimensions."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.neighbors import kneighbors_graph

from deepspace.core.config import TargetConfig
from deepspace.core.errors import InputError

FloatArray = NDArray[np.float64]

NEIGHBOURS = 15
# clusters are the question, not the answer: they stay the same whatever the seed of a model
SEED = 0


def by_size(numbers: NDArray[np.int64]) -> NDArray[np.str_]:
    """Numbers 1, 2, ... from the largest cluster to the smallest."""
    spots = np.bincount(numbers)
    rank = np.argsort(np.argsort(-spots, kind="stable"), kind="stable") + 1
    return rank[numbers].astype(np.str_)


def _kmeans(scores: FloatArray, config: TargetConfig) -> NDArray[np.int64]:
    means = KMeans(config.n_clusters, n_init=10, random_state=SEED)
    return np.asarray(means.fit_predict(scores), dtype=np.int64)


def _leiden(scores: FloatArray, config: TargetConfig) -> NDArray[np.int64]:
    """Leiden communities of the graph of neighbours (Traag et al., Sci. Rep. 9:5233, 2019)."""
    try:
        import igraph  # noqa: PLC0415 - an extra
    except ImportError:
        raise InputError(
            "[target] clusters = leiden needs igraph; run: pip install 'deepspace[leiden]', or "
            "use clusters = kmeans"
        ) from None
    near = kneighbors_graph(scores, min(NEIGHBOURS, len(scores) - 1)).tocoo()
    edges = {
        (min(a, b), max(a, b)) for a, b in zip(near.row.tolist(), near.col.tolist(), strict=True)
    }
    graph = igraph.Graph(len(scores), edges=sorted(edges))
    igraph.set_random_number_generator(random.Random(SEED))
    try:
        found = graph.community_leiden(
            objective_function="modularity", resolution=config.resolution, n_iterations=-1
        )
    finally:
        igraph.set_random_number_generator(random)  # its default
    return np.asarray(found.membership, dtype=np.int64)


CLUSTERINGS: dict[str, Callable[[FloatArray, TargetConfig], NDArray[np.int64]]] = {
    "kmeans": _kmeans,
    "leiden": _leiden,
}
