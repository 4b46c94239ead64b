"""Which pictures a result comes with. Genes are chosen by rule, never by eye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.classification import label_order, most_probable
from deepspace.data.clusters import NONE
from deepspace.data.transforms import log1p_cp10k, total_counts
from deepspace.io.section import Section
from deepspace.models.registry import BASELINES, CLUSTER_BASELINES
from deepspace.models.store import ModelCard
from deepspace.output.history import training_history
from deepspace.output.plot import (
    Backdrop,
    ClusterMap,
    GeneMap,
    Points,
    cluster_maps,
    cluster_scores,
    expression_maps,
    gene_scores,
    recall_picture,
    save,
    score_summary,
    spot_size_um,
)
from deepspace.output.scores import split_text
from deepspace.output.uncertainty import error_and_sd
from deepspace.output.write import write_json, write_table
from deepspace.workflows.cluster_scoring import POOLED, HeldOutClusters, recall_table
from deepspace.workflows.expression_scoring import CEILING, HeldOut, gene_means
from deepspace.workflows.metric_tables import metric_tables
from deepspace.workflows.scoring import Evaluation

UNITS = {"log1p_cp10k": "log1p CP10k", "pearson_residuals": "Pearson residual"}


def typical_genes(means: pd.DataFrame) -> list[str]:
    """Genes to show: the two best, the middle one and the worst by held-out correlation."""
    ranked = means["pearson"].dropna().sort_values(ascending=False, kind="stable").index
    wanted = [0, 1, len(ranked) // 2, len(ranked) - 1]
    return list(dict.fromkeys(str(ranked[i]) for i in wanted if i < len(ranked)))


def write_history(card: ModelCard, folder: Path) -> None:
    """Table and picture of how a network was trained, where one was."""
    if "history" in card.state:
        history = pd.DataFrame(card.state["history"])
        write_table(history, folder / "history")
        save(training_history(history), folder / "history.png")


def write_evaluation(found: Evaluation, folder: Path) -> None:
    """Tables, JSON summary and pictures of an evaluation."""
    write_table(found.scores, folder / "scores")
    write_json(found.summary, folder / "summary.json")
    write_table(found.verdicts, folder / "genes")
    if "leak_gap" in found.summary:
        write_table(pd.DataFrame(found.summary["leak_gap"]), folder / "leak_gap")
    WRITERS[found.summary["target"]](found, folder)


def _write_expression(found: Evaluation, folder: Path) -> None:
    model = str(found.scores["model"].iloc[0])
    others = [*found.summary.get("controls", []), *BASELINES]
    save(score_summary(found.scores, others), folder / "scores.png")
    per_gene, per_section = metric_tables(found.held_out)
    write_table(per_gene, folder / "metrics")
    write_table(per_section, folder / "section_metrics")
    save(gene_scores(found.scores, model, others), folder / "genes.png")
    slots = {name: slot for name, slot in found.held_out.items() if model in slot.predicted}
    error = {name: slot.measured - slot.predicted[model] for name, slot in slots.items()}
    sd = {name: slot.sd[model] for name, slot in slots.items()}
    heading = model + split_text(found.scores)
    save(error_and_sd(error, sd, title=heading), folder / "uncertainty.png")
    means = gene_means(found.scores, model)
    unit = UNITS[found.summary["transform"]]
    for name, slot in found.held_out.items():
        path = folder / f"maps-{name}.png"
        if set(typical_genes(means)) & set(slot.genes):
            draw_held_out(slot, model, means, path, split=found.summary["split"], unit=unit)


def _write_clusters(found: Evaluation, folder: Path) -> None:
    model = str(found.scores["model"].iloc[0])
    recall = recall_table(found.held_out, model)
    write_table(
        recall.add_prefix("predicted ").rename(columns=SPOTS).reset_index(), folder / "recall"
    )
    others = [*found.summary.get("controls", []), *CLUSTER_BASELINES]
    figure = cluster_scores(found.scores, others, POOLED, MAJORITY)
    save(figure, folder / "scores.png")
    heading = model + split_text(found.scores)
    save(recall_picture(recall, heading), folder / "recall.png")
    names = label_order([*recall.index, *recall.columns[1:]])
    for name, slot in found.held_out.items():
        draw_held_out_clusters(slot, model, names, folder / f"maps-{name}.png", heading)


WRITERS: dict[str, Callable[[Evaluation, Path], None]] = {
    "expression": _write_expression,
    "clusters": _write_clusters,
}
MAJORITY = next(iter(CLUSTER_BASELINES))
SPOTS = {"predicted spots": "spots"}


def draw_held_out_clusters(
    slot: HeldOutClusters, model: str, names: list[str], path: Path, heading: str
) -> None:
    """Maps of true and predicted clusters of one held-out section."""
    section, values = slot.section, slot.predicted[model]
    rows = np.flatnonzero(~np.isnan(values).any(axis=1))
    square = section.platform == "visium_hd"
    spots = Points(section.coords[rows], spot_size_um(section), square=square)
    truth = slot.truth[rows].astype(np.str_)
    called = most_probable(values[rows], slot.names)
    wrong = (truth != NONE) & (truth != called)
    maps = [
        ClusterMap("true clusters", spots, truth),
        ClusterMap("predicted clusters", spots, called, values[rows].max(axis=1), wrong),
    ]
    title = f"Section {section.section}, held out: {heading}"
    save(cluster_maps(Backdrop.of(section.slide), maps, names, title=title), path)


def draw_held_out(
    slot: HeldOut, model: str, means: pd.DataFrame, path: Path, *, split: str, unit: str
) -> None:
    """Maps of measured, predicted and both for the typical genes of one held-out section."""
    section, values = slot.section, slot.predicted[model]
    genes = [g for g in typical_genes(means) if g in slot.genes]
    columns = [slot.genes.index(gene) for gene in genes]
    # a spot that no fold predicted completely has nothing to compare
    rows = np.flatnonzero(~np.isnan(values[:, columns]).any(axis=1))
    square = section.platform == "visium_hd"
    spots = Points(section.coords[rows], spot_size_um(section), square=square)
    maps = [
        GeneMap(
            gene,
            predicted=values[rows, j],
            measured=slot.measured[rows, j],
            score=float(means["pearson"][gene]),
            ceiling=float(means[CEILING][gene]),
        )
        for gene, j in zip(genes, columns, strict=True)
    ]
    title = f"Section {section.section}, held out: {model}, split by {split}"
    backdrop = Backdrop.of(section.slide)
    figure = expression_maps(backdrop, maps, spots, spots, title=title, unit=unit)
    save(figure, path)


def draw_prediction(
    prediction: AnnData, section: Section, path: Path, *, kind: str, side_um: float = 0.0
) -> None:
    """Picture of a prediction of this kind of target.

    Points of a grid are drawn as squares of `side_um`; 0 means spots.
    """
    size = side_um or spot_size_um(section)
    points = Points(prediction.obsm[keys.SPATIAL], size, square=side_um > 0)
    DRAWERS[kind](prediction, section, points, path)


def draw_completed(
    prediction: AnnData, section: Section, path: Path, *, side_um: float = 0.0
) -> None:
    """Picture of a completed section: measured, predicted and both, with the sd.

    `section` has the counts of the spots that did not fail. Clusters, and sections without
    counts, are drawn as predicted.
    """
    size = side_um or spot_size_um(section)
    points = Points(prediction.obsm[keys.SPATIAL], size, square=side_um > 0)
    counts = section.counts
    clusters = keys.CLUSTER in prediction.obs
    if counts is None or clusters:
        drawer = DRAWERS["clusters" if clusters else "expression"]
        drawer(prediction, section, points, path)
        return
    genes, columns = _best(prediction, [g for g in prediction.var_names if g in counts.var_names])
    own = np.asarray(counts[:, genes].X.todense(), dtype=np.float64)
    maps = [
        replace(_gene_map(prediction, gene, j), measured=values)
        for gene, j, values in zip(
            genes, columns, log1p_cp10k(own, total_counts(counts)).T, strict=True
        )
    ]
    square = section.platform == "visium_hd"
    spots = Points(section.coords, spot_size_um(section), square=square)
    title = f"Section {section.section}, completed"
    backdrop = Backdrop.of(section.slide)
    save(expression_maps(backdrop, maps, points, spots, title=title), path)


def _best(prediction: AnnData, names: list[str], *, genes: int = 3) -> tuple[list[str], list[int]]:
    """The genes with the best held-out scores, and their columns."""
    score = prediction.var.loc[names, keys.SCORE].fillna(-1.0)
    best = list(score.sort_values(ascending=False, kind="stable").index[:genes])
    return best, list(prediction.var_names.get_indexer(best))


def _gene_map(prediction: AnnData, gene: str, column: int) -> GeneMap:
    score = float(prediction.var[keys.SCORE].iloc[column])
    return GeneMap(
        gene,
        predicted=np.asarray(prediction.X[:, column]),
        sd=np.asarray(prediction.layers[keys.SD_LATENT][:, column]),
        score=None if np.isnan(score) else score,
    )


def _draw_clusters(prediction: AnnData, section: Section, points: Points, path: Path) -> None:
    """Most probable clusters over the H&E."""
    labels = prediction.obs[keys.CLUSTER].to_numpy().astype(np.str_)
    certainty = prediction.obs[keys.CLUSTER_PROBABILITY].to_numpy(dtype=np.float64)
    title = f"Section {section.section}, predicted"
    maps = [ClusterMap("predicted clusters", points, labels, certainty)]
    backdrop = Backdrop.of(section.slide)
    save(cluster_maps(backdrop, maps, list(prediction.var_names), title=title), path)


def _draw_genes(prediction: AnnData, section: Section, points: Points, path: Path) -> None:
    """Maps of the best genes of a prediction with their uncertainty."""
    genes, columns = _best(prediction, list(prediction.var_names))
    maps = [_gene_map(prediction, g, j) for g, j in zip(genes, columns, strict=True)]
    title = f"Section {section.section}, predicted"
    save(expression_maps(Backdrop.of(section.slide), maps, points, title=title), path)


DRAWERS: dict[str, Callable[[AnnData, Section, Points, Path], None]] = {
    "expression": _draw_genes,
    "clusters": _draw_clusters,
}
