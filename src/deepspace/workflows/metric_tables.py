"""The field's metrics of held-out predictions in two tables: per gene, and per section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from deepspace.core.metrics import PATTERN_METRICS, VALUE_METRICS, Array, within_folds
from deepspace.core.spatial_metrics import (
    cluster_agreement,
    expression_clusters,
    gene_correlation_error,
    moran_agreement,
    morans_i,
    neighbour_graph,
    smoothed,
    ssim_map,
    svg_recovery,
)
from deepspace.workflows.cluster_scoring import POOLED
from deepspace.workflows.expression_scoring import HeldOut

FloatArray = NDArray[np.float64]

RAW, SMOOTHED = "raw", "smoothed"
SSIM_MAP = "ssim_map"
MORAN = ("moran_measured", "moran_predicted")
GENE_COLUMNS = (*PATTERN_METRICS, *VALUE_METRICS, SSIM_MAP, *MORAN)
SECTION_COLUMNS = (
    "moran_pearson",
    "moran_error",
    "svg_auroc",
    "svg_overlap",
    "gene_correlation_mae",
    "gene_correlation_rmse",
    "cluster_ari",
    "cluster_nmi",
)


@dataclass(frozen=True)
class Maps:
    """Measured and predicted values of one section, or of all sections one under the other.

    `values` are the pair as it is, `patterns` the pair minus its means in each fold of each
    section, all (spots, genes); `coords` is None for all sections together.
    """

    genes: NDArray[np.str_]
    values: tuple[FloatArray, FloatArray]
    patterns: tuple[FloatArray, FloatArray]
    graph: sp.csr_matrix
    coords: FloatArray | None


def metric_tables(
    held_out: Mapping[str, HeldOut],
    models: Sequence[str] | None = None,
    *,
    clusters: int = 6,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every metric of the field, for every model, section and gene that was predicted at all spots.

    ``values`` says what was compared: ``raw`` spots, or ``smoothed`` ones, where the measurement
    and the prediction are both averaged over a spot and its ring of neighbours in the section.
    Section ``all sections`` has the spots of all sections together, over the genes that they
    share. `PATTERN_METRICS`, Moran's I, correlations between genes and clusters are those of
    values minus their mean in each fold of each section (`within_folds`): neither differences
    between sections nor those between training sets count. `VALUE_METRICS` and ``ssim_map`` are
    those of the values as they are.

    Parameters
    ----------
    held_out : mapping of str to HeldOut
        By section id.
    models : sequence of str, optional
        Names in the tables of predictions; all of them, baselines too, if not given.
    clusters : int
        Number of k-means clusters that measured and predicted expression are divided into.
    seed : int
        Of k-means.

    Returns
    -------
    tuple of DataFrame
        Per gene: `model`, `section`, `values`, `gene`, `spots` and `GENE_COLUMNS`; ``ssim_map``
        is NaN for all sections together, which are no map. Per section: `model`, `section`,
        `values`, `spots`, `genes` and `SECTION_COLUMNS`.
    """
    per_gene, per_section = [], []
    known: dict[tuple[Any, ...], NDArray[np.int64]] = {}
    graphs = {name: neighbour_graph(slot.section.coords) for name, slot in held_out.items()}
    for model in _models(held_out, models):
        for section, kind, maps in _compared(held_out, graphs, model):
            about: dict[str, Any] = {"model": model, "section": section, "values": kind}
            spots = {"spots": len(maps.values[0])}
            scores = _gene_scores(maps)
            per_gene.append(pd.DataFrame(about | {"gene": maps.genes} | spots | scores))
            # the measurement is the same for every model that predicted the same genes
            key = (section, kind, tuple(maps.genes))
            if key not in known:
                known[key] = expression_clusters(maps.patterns[0], clusters, seed)
            found = expression_clusters(maps.patterns[1], clusters, seed)
            per_section.append(
                about
                | spots
                | {"genes": len(maps.genes)}
                | _section_scores(maps, *(scores[name] for name in MORAN))
                | cluster_agreement(known[key], found)
            )
    return (
        pd.concat(per_gene, ignore_index=True) if per_gene else _empty("gene", GENE_COLUMNS),
        pd.DataFrame(per_section) if per_section else _empty("genes", SECTION_COLUMNS),
    )


def _models(held_out: Mapping[str, HeldOut], wished: Sequence[str] | None) -> list[str]:
    """Names in the order of the tables, each once."""
    every = dict.fromkeys(name for slot in held_out.values() for name in slot.predicted)
    return [name for name in every if wished is None or name in wished]


def _empty(last: str, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=["model", "section", "values", last, "spots", *columns])


def _compared(
    held_out: Mapping[str, HeldOut], graphs: Mapping[str, sp.csr_matrix], model: str
) -> Iterator[tuple[str, str, Maps]]:
    """What a model is compared on: each section and all together, raw and smoothed."""
    for kind in (RAW, SMOOTHED):
        parts = []
        for name, slot in held_out.items():
            maps = _maps(slot, graphs[name], model, kind)
            if maps is not None:
                parts.append(maps)
                yield name, kind, maps
        together = _pooled(parts)
        if together is not None:
            yield POOLED, kind, together


def _maps(slot: HeldOut, graph: sp.csr_matrix, model: str, kind: str) -> Maps | None:
    """Values of the genes that a model predicted at every spot; None where there are none."""
    if model not in slot.predicted:
        return None
    predicted = slot.predicted[model]
    whole = ~(np.isnan(predicted) | np.isnan(slot.measured)).any(axis=0)
    if not whole.any():
        return None
    values = slot.measured[:, whole], predicted[:, whole]
    patterns = _centred(values, slot.fold)
    if kind == SMOOTHED:
        values = smoothed(values[0], graph), smoothed(values[1], graph)
        # centred before, or the training mean of the next fold would come in at the border
        smooth = smoothed(patterns[0], graph), smoothed(patterns[1], graph)
        patterns = _centred(smooth, slot.fold)
    return Maps(np.array(slot.genes)[whole], values, patterns, graph, slot.section.coords)


def _centred(
    pair: tuple[FloatArray, FloatArray], fold: NDArray[np.int64]
) -> tuple[FloatArray, FloatArray]:
    return within_folds(pair[0], fold), within_folds(pair[1], fold)


def _pooled(parts: Sequence[Maps]) -> Maps | None:
    """All sections one under the other, over the genes that they share."""
    if not parts:
        return None
    shared = set.intersection(*(set(maps.genes) for maps in parts))
    genes = np.array([gene for gene in parts[0].genes if gene in shared])
    if not len(genes):
        return None
    columns = [pd.Index(maps.genes).get_indexer(pd.Index(genes)) for maps in parts]

    def stacked(name: str, side: int) -> FloatArray:
        tables = (getattr(maps, name)[side][:, k] for maps, k in zip(parts, columns, strict=True))
        return np.concatenate(list(tables))

    return Maps(
        genes,
        (stacked("values", 0), stacked("values", 1)),
        (stacked("patterns", 0), stacked("patterns", 1)),
        sp.block_diag([maps.graph for maps in parts], format="csr"),
        None,
    )


def _gene_scores(maps: Maps) -> dict[str, Array]:
    nothing = np.full(len(maps.genes), np.nan)
    return {
        **{name: score(*maps.patterns) for name, score in PATTERN_METRICS.items()},
        **{name: score(*maps.values) for name, score in VALUE_METRICS.items()},
        SSIM_MAP: nothing if maps.coords is None else ssim_map(*maps.values, maps.coords),
        **{n: morans_i(v, maps.graph) for n, v in zip(MORAN, maps.patterns, strict=True)},
    }


def _section_scores(maps: Maps, measured: Array, predicted: Array) -> dict[str, float]:
    return (
        moran_agreement(measured, predicted)
        | svg_recovery(measured, predicted)
        | gene_correlation_error(*maps.patterns)
    )
