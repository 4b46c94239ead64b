"""Held-out scores of predicted clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core.classification import (
    CLASS_METRICS,
    Labels,
    class_scores,
    label_order,
    most_probable,
    recall_matrix,
)
from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.clusters import NONE, ClusterTarget
from deepspace.data.splits import LEAK_WARNING, Fold
from deepspace.io.section import Section
from deepspace.models.base import Predictor
from deepspace.models.registry import CLUSTER_BASELINES

FloatArray = NDArray[np.float64]

# rows of the table over the spots of all sections together
POOLED = "all sections"


@dataclass
class HeldOutClusters:
    """Clusters of one section, put together from the folds that held its spots out.

    Attributes
    ----------
    section : Section
    names : list of str
        Clusters that any fold learnt: the columns.
    truth : ndarray of object, shape (spots,)
        True cluster; empty where a spot has none.
    fold : ndarray, shape (spots,)
    predicted : dict of str to ndarray, shape (spots, names)
        Probabilities by model; NaN where it does not apply.
    """

    section: Section
    names: list[str]
    truth: NDArray[np.object_]
    fold: NDArray[np.int64]
    predicted: dict[str, FloatArray] = field(default_factory=dict)

    def emptied(self) -> HeldOutClusters:
        """The same slot before anything was predicted."""
        truth = np.full(len(self.truth), NONE, dtype=object)
        return HeldOutClusters(self.section, list(self.names), truth, np.zeros_like(self.fold))


def named_alike(
    target: ClusterTarget, first: ClusterTarget, training: Sequence[Section]
) -> ClusterTarget:
    """A fold's clusters under the names of the first fold's, so that they can be pooled."""
    return target.named_like(first, training)


def empty_clusters(
    section: Section, target: ClusterTarget, config: Config, fold: NDArray[np.int64]
) -> HeldOutClusters:
    """Slot for a section's held-out clusters."""
    spots = len(section.coords)
    truth = np.full(spots, NONE, dtype=object)
    return HeldOutClusters(section, list(target.names), truth, np.zeros(spots, dtype=np.int64))


def fill_clusters(
    slot: HeldOutClusters, name: str, predictor: Predictor, fold: Fold, target: ClusterTarget
) -> None:
    """Enter one fold's probabilities."""
    section = slot.section
    rows = np.arange(len(slot.truth))[fold.test[section.section]]  # the fold may have a mask
    new = [cluster for cluster in target.names if cluster not in slot.names]
    slot.names += new
    for model, table in slot.predicted.items():
        slot.predicted[model] = np.pad(table, ((0, 0), (0, len(new))))
    if name not in slot.predicted:
        slot.predicted[name] = np.full((len(slot.truth), len(slot.names)), np.nan)
    found = target.decode(predictor.predict(section.slide, section.coords[rows]).mean)
    wide = np.zeros((len(rows), len(slot.names)))
    wide[:, [slot.names.index(cluster) for cluster in target.names]] = found
    slot.predicted[name][rows] = wide
    if not slot.truth[rows].any():
        slot.truth[rows] = target.labels(section.require_counts())[rows]
        _say_unknown(slot.truth[rows], target, section.section)


def _say_unknown(truth: NDArray[np.object_], target: ClusterTarget, section: str) -> None:
    """Spots whose cluster the fold's training data do not have can only be wrong."""
    strange = [label for label in truth if label != NONE and label not in target.names]
    if strange:
        log.info(
            "section %s: %d spots are of clusters that were not learnt (%s): they count as wrong",
            section,
            len(strange),
            ", ".join(label_order(strange)),
        )


def better_clusters(slot: HeldOutClusters, model: str, other: str) -> FloatArray | None:
    """Where `model` names the cluster rightly and `other` does not: 1, 0 or -1, shape (spots,).

    NaN at spots without a label; None where one of the two does not apply.
    """
    hits = []
    for name in (model, other):
        if name not in slot.predicted or np.isnan(slot.predicted[name]).any():
            return None
        called = most_probable(slot.predicted[name], slot.names)
        hits.append((called == slot.truth).astype(np.float64))
    return np.where(slot.truth == NONE, np.nan, hits[0] - hits[1])


def scored(slot: HeldOutClusters, model: str) -> tuple[Labels, FloatArray] | None:
    """True clusters and probabilities of the labelled spots; None where a model does not apply."""
    rows = slot.truth != NONE
    found = slot.predicted[model][rows]
    if not rows.any() or np.isnan(found).any():
        return None
    return slot.truth[rows].astype(np.str_), found


def pooled(
    held_out: Mapping[str, HeldOutClusters], model: str
) -> tuple[Labels, FloatArray, list[str]] | None:
    """The same of all sections together, with the clusters of the columns."""
    names = label_order(name for slot in held_out.values() for name in slot.names)
    truth, parts = [], []
    for slot in held_out.values():
        found = scored(slot, model)
        if found is not None:
            wide = np.zeros((len(found[0]), len(names)))
            wide[:, [names.index(name) for name in slot.names]] = found[1]
            truth.append(found[0])
            parts.append(wide)
    return (np.concatenate(truth), np.concatenate(parts), names) if parts else None


def cluster_table(held_out: Mapping[str, HeldOutClusters], how: str) -> pd.DataFrame:
    """Scores of every model in each section, and over the spots of all sections together.

    Returns
    -------
    DataFrame
        Columns `model`, `split`, `section` (``all sections`` for all spots together), `spots`,
        `clusters` (number that occur), `accuracy`, `macro_f1`, `balanced_accuracy`, `log_loss`.
    """
    rows: list[dict[str, Any]] = []
    for model in next(iter(held_out.values())).predicted:
        parts = {
            name: (*found, slot.names)
            for name, slot in held_out.items()
            if (found := scored(slot, model)) is not None
        }
        together = pooled(held_out, model)
        if together is not None:
            parts[POOLED] = together
        for section, (truth, probabilities, names) in parts.items():
            about = {"model": model, "split": how, "section": section, "spots": len(truth)}
            about["clusters"] = len(set(truth))
            rows.append(about | class_scores(truth, probabilities, names))
    if not rows:
        raise InputError("no spot with a cluster label was held out; look at the labels")
    return pd.DataFrame(rows)


def recall_table(held_out: Mapping[str, HeldOutClusters], model: str) -> pd.DataFrame:
    """Recall matrix of one model over all held-out spots.

    Returns
    -------
    DataFrame
        Index `cluster` (true), column `spots` with their number, and one column for each
        predicted cluster with the share of the true cluster's spots that were called it.
    """
    found = pooled(held_out, model)
    if found is None:
        raise ValueError(f"{model} predicted no labelled spot")
    truth, probabilities, names = found
    every = label_order([*names, *truth])
    recall, spots = recall_matrix(truth, most_probable(probabilities, names), every)
    table = pd.DataFrame(recall, index=pd.Index(every, name="cluster"), columns=every)
    table.insert(0, "spots", spots, allow_duplicates=True)
    return table[spots > 0]


def summarise_clusters(
    scores: pd.DataFrame, config: Config, how: str, folds: int
) -> dict[str, Any]:
    """Summary of `cluster_table` as JSON values."""
    models: dict[str, Any] = {}
    for model in scores["model"].unique():
        table = scores[scores["model"] == model].set_index("section")
        total = table.loc[POOLED]
        sections = table.drop(index=POOLED)
        models[model] = {
            **{metric: round(float(total[metric]), 4) for metric in CLASS_METRICS},
            "sections": {
                name: {metric: round(float(row[metric]), 4) for metric in CLASS_METRICS}
                for name, row in sections.iterrows()
            },
        }
    summary: dict[str, Any] = {
        "target": "clusters",
        "labels": config.target.clusters,
        "clusters": int(scores["clusters"].max()),
        "spots": int(scores["spots"].max()),
        "not_applicable": [name for name in CLUSTER_BASELINES if name not in models],
        "split": how,
        "folds": folds,
        "models": models,
    }
    if how == "spot":
        summary["warning"] = LEAK_WARNING
    return summary
