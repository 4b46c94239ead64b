"""Measured values beside predictions, and predictions that add up to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.progress import log
from deepspace.data.aggregation import constrained
from deepspace.data.failed import FAILED, REASON
from deepspace.data.transforms import log1p_cp10k, total_counts
from deepspace.io.section import Section
from deepspace.models.base import SavablePredictor
from deepspace.output.plot import spot_size_um
from deepspace.workflows.points import points_at
from deepspace.workflows.pointwise import predict_at


def beside_measured(prediction: AnnData, section: Section, failed: pd.DataFrame) -> None:
    """Put what was measured beside a prediction at the spots of a section; nothing is replaced.

    Adds ``layers['measured']``, log1p of counts per 10,000 and NaN where there are no counts or
    the gene was not measured, ``obs['failed']`` and ``obs['reason']``. Predictions of clusters
    get no layer: their measured label is not an expression.

    Parameters
    ----------
    prediction : AnnData
        At the spots of `section`, its obs names are barcodes.
    section : Section
        As read, with the counts of failed spots too.
    failed : DataFrame
        From `deepspace.data.failed.find_failed`.
    """
    table = failed.reindex(prediction.obs_names)
    prediction.obs[FAILED] = table[FAILED].fillna(False).to_numpy(dtype=bool)
    prediction.obs[REASON] = pd.Categorical(table[REASON].astype(str).to_numpy())
    counts = section.require_counts()
    genes = [name for name in prediction.var_names if name in counts.var_names]
    if not genes:
        return
    shared = counts.obs_names.intersection(prediction.obs_names)
    X = sp.csr_matrix(counts[shared].X)
    own = X[:, counts.var_names.get_indexer(genes)].toarray().astype(np.float64)
    values = np.full(prediction.shape, np.nan, np.float32)
    rows = prediction.obs_names.get_indexer(shared)
    columns = prediction.var_names.get_indexer(genes)
    values[np.ix_(rows, columns)] = log1p_cp10k(own, total_counts(counts[shared]))
    prediction.layers[keys.MEASURED] = values


def sum_to_spots(prediction: AnnData, section: Section, predictor: SavablePredictor) -> None:
    """Scale a prediction finer than the spots so that it adds up to the estimate of each spot.

    See `deepspace.data.aggregation`; on counts per 10,000, not their logarithm. The estimate is
    the prediction at the spot, which has taken in what was measured there and around. The sd
    stays as it is.
    """
    spots = points_at(section, "spots").coords
    mpp = section.slide.require_mpp()
    names = list(predictor.target.names)
    columns = [names.index(name) for name in prediction.var_names]
    estimate = np.expm1(predict_at(predictor, section.slide, spots).mean[:, columns])
    found = constrained(
        np.maximum(np.expm1(prediction.X), 0.0),
        prediction.obsm[keys.SPATIAL] * mpp,
        spots * mpp,
        np.maximum(estimate, 0.0),
        spot_size_um(section),
    )
    if found.missed.any():
        log.info(
            "%s: %d of %d spots hold no point of the prediction and constrain nothing",
            section.section,
            int(found.missed.sum()),
            len(spots),
        )
    prediction.X = np.log1p(found.values).astype(np.float32)
