"""The field's metrics of held-out predictions in two tables: per gene, and per section."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from numpy.typing import NDArray

from deepspace.core.metrics import PATTERN_METRICS, VALUE_METRICS, Array, Columns, within_folds
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
    """Measured and predicted values of one section, or of several one under the other.

    `sections` are the ids of those that a model predicted. `values` are the pair as it is,
    `patterns` the pair minus its means in each fold of each section, all (spots, genes); `coords`
    is None for all sections together.
    """

    sections: tuple[str, ...]
    genes: NDArray[np.str_]
    values: tuple[FloatArray, FloatArray]
    patterns: tuple[Columns, Columns]
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
    graphs = {name: neighbour_graph(slot.section.coords) for name, slot in held_out.items()}
    names = _models(held_out, models)
    found: list[_Scored] = []
    for kind in (RAW, SMOOTHED):
        for section in [*held_out, POOLED] if len(held_out) > 1 else held_out:
            named = ((model, _compared(held_out, graphs, model, section, kind)) for model in names)
            found += _scored(named, section, kind, clusters, seed)
    if len(held_out) == 1:
        found += [one.as_all_sections() for one in found]
    found.sort(key=lambda one: (names.index(one.about["model"]), one.about["values"]))
    if not found:
        return _empty("gene", GENE_COLUMNS), _empty("genes", SECTION_COLUMNS)
    per_gene = [pd.DataFrame(one.about | one.genes) for one in found]
    per_section = [one.about | one.whole for one in found]
    return pd.concat(per_gene, ignore_index=True), pd.DataFrame(per_section)


@dataclass(frozen=True)
class _Scored:
    """Scores of one model on one section (or all together): of every gene, and of the whole."""

    about: dict[str, Any]
    genes: dict[str, Any]
    whole: dict[str, Any]

    def as_all_sections(self) -> _Scored:
        """The same where the section is the only one: together they are no map."""
        return _Scored(
            self.about | {"section": POOLED},
            self.genes | {SSIM_MAP: np.full(len(self.genes[SSIM_MAP]), np.nan)},
            self.whole,
        )


def _scored(
    named: Iterable[tuple[str, Maps | None]], section: str, kind: str, clusters: int, seed: int
) -> Iterator[_Scored]:
    """Scores of one model after the other on the same spots."""
    # the measurement is the same for every model that predicted the same genes there
    known: dict[tuple[tuple[str, ...], ...], tuple[Columns, NDArray[np.int64]]] = {}
    for model, maps in named:
        if maps is None:
            continue
        key = maps.sections, tuple(maps.genes)
        if key not in known:
            own = expression_clusters(maps.patterns[0].values, clusters, seed)
            known[key] = maps.patterns[0], own
        measured, labels = known[key]
        pair = replace(maps, patterns=(measured, maps.patterns[1]))
        scores = _gene_scores(pair)
        predicted = expression_clusters(pair.patterns[1].values, clusters, seed)
        spots = {"spots": len(pair.values[0])}
        yield _Scored(
            {"model": model, "section": section, "values": kind},
            {"gene": maps.genes} | spots | scores,
            spots
            | {"genes": len(maps.genes)}
            | _section_scores(pair, *(scores[name] for name in MORAN))
            | cluster_agreement(labels, predicted),
        )


def _models(held_out: Mapping[str, HeldOut], wished: Sequence[str] | None) -> list[str]:
    """Names in the order of the tables, each once."""
    every = dict.fromkeys(name for slot in held_out.values() for name in slot.predicted)
    return [name for name in every if wished is None or name in wished]


def _empty(last: str, columns: Sequence[str]) -> pd.DataFrame:
    return pd.DataFrame(columns=["model", "section", "values", last, "spots", *columns])


def _compared(
    held_out: Mapping[str, HeldOut],
    graphs: Mapping[str, sp.csr_matrix],
    model: str,
    section: str,
    kind: str,
) -> Maps | None:
    """What a model is compared on: a section, or all together."""
    if section != POOLED:
        return _maps(held_out[section], graphs[section], model, kind)
    parts = (_maps(slot, graphs[name], model, kind) for name, slot in held_out.items())
    return _pooled([maps for maps in parts if maps is not None])


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
    return Maps(
        (slot.section.section,),
        np.array(slot.genes)[whole],
        values,
        (Columns(patterns[0]), Columns(patterns[1])),
        graph,
        slot.section.coords,
    )


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

    def stacked(tables: Iterable[Array]) -> FloatArray:
        return np.concatenate([table[:, k] for table, k in zip(tables, columns, strict=True)])

    return Maps(
        tuple(name for maps in parts for name in maps.sections),
        genes,
        (stacked(m.values[0] for m in parts), stacked(m.values[1] for m in parts)),
        (
            Columns(stacked(m.patterns[0].values for m in parts)),
            Columns(stacked(m.patterns[1].values for m in parts)),
        ),
        sp.block_diag([maps.graph for maps in parts], format="csr"),
        None,
    )


def _gene_scores(maps: Maps) -> dict[str, Array]:
    nothing = np.full(len(maps.genes), np.nan)
    return {
        **{name: score(*maps.patterns) for name, score in PATTERN_METRICS.items()},
        **{name: score(*maps.values) for name, score in VALUE_METRICS.items()},
        SSIM_MAP: nothing if maps.coords is None else ssim_map(*maps.values, maps.coords),
        **{n: morans_i(v.values, maps.graph) for n, v in zip(MORAN, maps.patterns, strict=True)},
    }


def _section_scores(maps: Maps, measured: Array, predicted: Array) -> dict[str, float]:
    return (
        moran_agreement(measured, predicted)
        | svg_recovery(measured, predicted)
        | gene_correlation_error(maps.patterns[0].values, maps.patterns[1].values)
    )
