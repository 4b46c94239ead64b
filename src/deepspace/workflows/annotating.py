"""What `annotate` computes: believable values, clusters, modules, markers, names, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score

from deepspace.core import keys
from deepspace.core.classification import Labels, label_order
from deepspace.core.config import TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.progress import log
from deepspace.data.clustering import CLUSTERINGS, SEED, by_size
from deepspace.data.clusters import COMPONENTS, NONE, Given
from deepspace.data.genesets import MatchedSet
from deepspace.data.markers import (
    LEAST_POINTS,
    UNNAMED,
    MarkerRule,
    enrichment_table,
    group_names,
    marker_table,
    markers_of,
)
from deepspace.data.modules import CONSTANT, expected_sd

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

CLUSTERS = 6


@dataclass(frozen=True)
class Subject:
    """What of a prediction is annotated.

    Attributes
    ----------
    table : AnnData
        The prediction.
    used : ndarray of bool, shape (points,)
        Points on tissue that are like the training images.
    believed : ndarray of bool, shape (genes,)
        Genes that held-out data tell from chance and that differ between the used points.
    values, sd : ndarray, shape (points, believed genes)
        Prediction and ``sd_latent``.
    genes : list of str
        Names of the believed genes.
    facts : dict
        Numbers of points and genes, and why some are left out.
    """

    table: AnnData
    used: BoolArray
    believed: BoolArray
    values: FloatArray
    sd: FloatArray
    genes: list[str]
    facts: dict[str, Any]

    @classmethod
    def of(cls, table: AnnData, name: str) -> Subject:
        """Choose points and genes.

        Raises
        ------
        InputError
            If the prediction lacks its uncertainty or verdicts, or too little of it is left.
        """
        if keys.SD_LATENT not in table.layers:
            raise InputError(f"{name}: has no layer {keys.SD_LATENT}; predict again")
        values = np.asarray(table.X, np.float64)
        sd = np.asarray(table.layers[keys.SD_LATENT], np.float64)
        if not (np.isfinite(values).all() and np.isfinite(sd).all()):
            raise InputError(f"{name}: some predicted values are not numbers; predict again")
        on_tissue, odd = _flag(table, keys.IN_TISSUE, True), _flag(table, keys.OOD, False)
        used = on_tissue & ~odd
        if used.sum() < 2 * LEAST_POINTS:
            raise InputError(
                f"{name}: {int(used.sum())} of {len(used)} points lie on tissue that is like the "
                f"training images; {2 * LEAST_POINTS} are needed, predict at more points"
            )
        told = _told_from_chance(table.var, name)
        varies = values[used].std(axis=0) > CONSTANT
        believed = told & varies
        if believed.sum() < 2:
            raise InputError(
                f"{name}: {int(believed.sum())} of {len(believed)} genes can be believed; two are "
                "needed at the least, learn from more sections or other genes"
            )
        facts = {
            "points": len(used),
            "points_used": int(used.sum()),
            "points_off_tissue": int((~on_tissue).sum()),
            "points_unlike_training": int((on_tissue & odd).sum()),
            "genes": len(told),
            "genes_used": int(believed.sum()),
            "genes_not_told_from_chance": int((~told).sum()),
            "genes_constant": int((told & ~varies).sum()),
        }
        genes = [str(gene) for gene in table.var_names[believed]]
        return cls(table, used, believed, values[:, believed], sd[:, believed], genes, facts)

    @property
    def coords(self) -> FloatArray:
        """Places of all points, shape (points, 2), full-resolution pixels."""
        return np.asarray(self.table.obsm[keys.SPATIAL], np.float64)


def _flag(table: AnnData, name: str, default: bool) -> BoolArray:
    if name not in table.obs:
        return np.full(table.n_obs, default)
    flags: BoolArray = table.obs[name].to_numpy(dtype=bool)
    return flags


def _told_from_chance(var: pd.DataFrame, name: str) -> BoolArray:
    """Genes whose verdict is not ``no``; in older files, which have none, the predictable ones."""
    if keys.VERDICT in var:
        told: BoolArray = var[keys.VERDICT].astype(str).to_numpy(dtype=np.str_) != "no"
        return told
    if keys.PREDICTABLE in var:
        log.info("%s: has no verdicts (an older file); its predictable genes are used", name)
        return var[keys.PREDICTABLE].to_numpy(dtype=bool)
    raise InputError(f"{name}: does not say which genes can be predicted; predict again")


def set_facts(
    subject: Subject, matched: Sequence[MatchedSet], least: int
) -> tuple[dict[str, list[str]], list[dict[str, Any]]]:
    """Believed genes of the sets that have enough of them, and what became of every set.

    Raises
    ------
    InputError
        If no set has `least` believed genes.
    """
    members: dict[str, list[str]] = {}
    facts = []
    for one in matched:
        columns = [c for c in one.columns if subject.believed[c]]
        genes = [str(gene) for gene in subject.table.var_names[columns]]
        enough = len(genes) >= least
        facts.append(
            {
                "set": one.name,
                "description": one.gene_set.description,
                "file": one.gene_set.source,
                "genes": len(one.gene_set.genes),
                "predicted": len(one.columns),
                "believed": len(genes),
                "used": enough,
                "members": genes,
            }
        )
        if enough:
            members[one.name] = genes
    few = [f"{f['set']} ({f['believed']} of {f['genes']})" for f in facts if not f["used"]]
    if not members:
        raise InputError(
            f"no gene set has {least} genes that can be believed: {', '.join(few[:8])}; predict "
            "more genes, give other sets with --gmt, or lower --least-genes"
        )
    if few:
        log.info("sets with fewer than %d believed genes are not used: %s", least, ", ".join(few))
    return members, facts


def cluster_labels(
    subject: Subject, clusters: AnnData | None, count: int | None
) -> tuple[Labels, str]:
    """Cluster of every point, shape (points,), empty where it has none; and where it comes from.

    Those of a cluster prediction of the same points; else, unless a number is given, those that
    the prediction has in ``obs['cluster']``; else k-means.

    Raises
    ------
    InputError
        If the cluster prediction is of other points, or there are too few for so many clusters.
    """
    if clusters is not None:
        labels, how = _labels_of(subject, clusters), "a cluster prediction"
    elif count is None and keys.CLUSTER in subject.table.obs:
        labels, how = Given()(subject.table), "obs['cluster'] of the prediction"
    else:
        count = CLUSTERS if count is None else count
        labels, how = _kmeans(subject, count), "k-means of the predicted expression"
    labels = np.where(subject.used, labels, NONE)
    if len(set(labels.tolist()) - {NONE}) < 2:
        raise InputError(f"{how}: fewer than two clusters among the points; give --n-clusters")
    return labels, how


def _kmeans(subject: Subject, count: int) -> Labels:
    """k-means on principal components; neither points nor genes count by their order."""
    used = np.flatnonzero(subject.used)
    if not 2 <= count <= len(used) // LEAST_POINTS:
        raise InputError(
            f"--n-clusters {count}: {len(used)} points allow 2 to {len(used) // LEAST_POINTS}"
        )
    rows = used[np.lexsort(subject.coords[used].T)]
    values = subject.values[np.ix_(rows, np.argsort(subject.genes))]
    found = PCA(min(COMPONENTS, *values.shape), random_state=SEED).fit_transform(values)
    labels = np.full(subject.table.n_obs, NONE, dtype=np.dtype("<U8"))
    labels[rows] = by_size(CLUSTERINGS["kmeans"](found, TargetConfig(n_clusters=count)))
    return labels


def _labels_of(subject: Subject, clusters: AnnData) -> Labels:
    """Labels of a cluster prediction, by the names of the points."""
    table = subject.table
    if keys.CLUSTER not in clusters.obs or keys.SPATIAL not in clusters.obsm:
        raise InputError(
            "--clusters: has no obs['cluster']; give what predict wrote with a model of "
            "--target clusters"
        )
    places = clusters.obs_names.get_indexer(table.obs_names)
    known = np.flatnonzero(places >= 0)
    theirs = np.asarray(clusters.obsm[keys.SPATIAL], np.float64)[places[known]]
    if not len(known) or not np.allclose(theirs, subject.coords[known], atol=0.5):
        raise InputError(
            "--clusters: is of other points than the prediction; predict both on the same section "
            "with the same --at"
        )
    if len(known) < table.n_obs:
        log.info("--clusters: %d of %d points have no label", table.n_obs - len(known), table.n_obs)
    labels = np.full(table.n_obs, NONE, dtype=object)
    labels[known] = Given()(clusters)[places[known]]
    return np.asarray(labels, dtype=np.str_)


@dataclass(frozen=True)
class Grouping:
    """Groups of points with their markers, enriched sets and names."""

    groups: dict[str, BoolArray]
    markers: pd.DataFrame
    enrichment: pd.DataFrame
    names: dict[str, str]
    top: dict[str, list[str]] = field(default_factory=dict)


def characterise(
    subject: Subject,
    groups: Mapping[str, BoolArray],
    members: Mapping[str, Sequence[str]],
    rule: MarkerRule,
) -> Grouping:
    """Marker genes, enriched sets and name of every group of points, against the other points."""
    used = subject.used
    values, inside = subject.values[used], {name: points[used] for name, points in groups.items()}
    unit = expected_sd(values, subject.sd[used])
    markers = marker_table(values, unit, subject.genes, inside, rule)
    top = markers_of(markers)
    enrichment = enrichment_table(top, members, subject.genes)
    names = group_names(enrichment, list(groups), rule)
    known = subject.table.var[[c for c in (keys.SCORE, keys.VERDICT) if c in subject.table.var]]
    markers = markers.join(known, on="gene")
    return Grouping(dict(groups), markers, enrichment, names, top)


def groups_of(labels: Labels) -> dict[str, BoolArray]:
    """Points of each label, in reading order; the empty label is none."""
    return {name: labels == name for name in label_order(set(labels.tolist()) - {NONE})}


def group_facts(
    grouping: Grouping, modules: pd.DataFrame, rule: MarkerRule
) -> list[dict[str, Any]]:
    """Each group in JSON values: name, points, first markers, enriched sets, mean module scores.

    `modules` has a row for every point and a column for every set.
    """
    facts = []
    enriched = grouping.enrichment[grouping.enrichment["q_value"] <= rule.fdr]
    for group, inside in grouping.groups.items():
        own = enriched[enriched["group"] == group].sort_values(["p_value", "set"])
        markers = grouping.top.get(group, [])
        scores = modules[inside].mean() if inside.any() else pd.Series(dtype=np.float64)
        facts.append(
            {
                "group": group,
                "name": grouping.names[group],
                "points": int(inside.sum()),
                "markers": len(markers),
                "first_markers": markers[:10],
                "sets": [
                    {"set": r["set"], "q": float(r["q_value"]), "genes": r["genes"].split(";")}
                    for r in own.to_dict("records")
                ],
                "module_scores": {str(name): float(value) for name, value in scores.items()},
            }
        )
    return facts


def agreement(labels: Labels, regions: Mapping[str, BoolArray], used: BoolArray) -> float | None:
    """Adjusted Rand index of regions and clusters; None with fewer than two regions of points.

    Over the used points inside a region; one in several counts for the smallest of them.
    """
    drawn = np.full(len(labels), NONE, dtype=object)
    for name in sorted(regions, key=lambda n: (-int(regions[n].sum()), n)):
        drawn[regions[name]] = name
    both = used & (drawn != NONE) & (labels != NONE)
    if len(set(drawn[both].tolist())) < 2:
        return None
    return float(adjusted_rand_score(drawn[both].astype(str), labels[both]))


CAVEATS = (
    "Points are predictions from the image that depend on each other: p_separation and "
    "q_separation say how well a gene separates a group, not how sure it is that the tissue "
    "differs.",
    "Clusters computed from the predicted values are compared on those same values.",
    "The hypergeometric test takes genes as independent; genes of one tissue are predicted "
    "together, so that an enriched set is a hint to a tissue, not the proof of it.",
    "sd of a module score assumes that the errors of its genes go the same way: it is never too "
    "small for calibrated genes.",
)


def format_annotation(summary: Mapping[str, Any]) -> str:
    """Summary of an annotation as text for the terminal."""
    points, genes = summary["points"], summary["genes"]
    lines = [
        f"{summary['section']}: {points['points_used']} of {points['points']} points, "
        f"{genes['genes_used']} of {genes['genes']} genes, {summary['sets_used']} of "
        f"{len(summary['gene_sets'])} gene sets, clusters: {summary['clusters_from']}"
    ]
    for kind in ("clusters", "regions"):
        for group in summary[kind]:
            markers = ", ".join(group["first_markers"][:6]) or "no marker genes"
            label = f"{kind[:-1]} {group['group']}"
            lines.append(f"{label:12} {group['points']:6d} points  {group['name']}  [{markers}]")
    if summary["adjusted_rand"] is not None:
        lines.append(f"regions against clusters: adjusted Rand {summary['adjusted_rand']:.2f}")
    few = [s["set"] for s in summary["gene_sets"] if not s["used"]]
    if few:
        lines.append(f"too few believed genes: {', '.join(few)}")
    return "\n".join(lines)


def named(grouping: Grouping) -> int:
    """How many groups have a name."""
    return sum(name != UNNAMED for name in grouping.names.values())
