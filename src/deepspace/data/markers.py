"""Marker genes of groups of points, the gene sets among them, and names from these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from deepspace.core.progress import log, track

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# a group, or the rest of the points, with fewer points has no markers
LEAST_POINTS = 5
UNNAMED = "not named: no set is enriched"


@dataclass(frozen=True)
class MarkerRule:
    """Which genes mark a group, and which sets name it.

    Attributes
    ----------
    least_difference
        Difference of means, inside minus outside, in sd of the true expression over the points.
    fdr
        Benjamini-Hochberg q up to which a difference or an enrichment counts.
    most
        Markers of a group at most, those of the largest difference.
    least_shared
        Genes of a set among the markers, for the set to name the group.
    """

    least_difference: float = 0.3
    fdr: float = 0.05
    least_shared: int = 2


def marker_table(
    values: FloatArray,
    unit: FloatArray,
    genes: Sequence[str],
    groups: Mapping[str, BoolArray],
    rule: MarkerRule,
) -> pd.DataFrame:
    """Compare every gene inside each group of points with the rest of the points.

    Parameters
    ----------
    values : ndarray, shape (points, genes)
        Predicted expression; no gene is constant.
    unit : ndarray, shape (genes,)
        Sd of the true expression over the points, `deepspace.data.modules.expected_sd`.
    genes : sequence of str
    groups : mapping of str to ndarray of bool, shape (points,)
        Points of each group; they may overlap. One with fewer than `LEAST_POINTS` points inside or
        outside is left out, and the log says so.
    rule : MarkerRule

    Returns
    -------
    DataFrame
        One row per group and gene, the largest difference first: `group`, `gene`, `difference`
        (sd units), `mean_inside`, `mean_outside`, `auc` (probability that a point inside has more
        than one outside), `p_separation` (two-sided Wilcoxon rank-sum), `q_separation`
        (Benjamini-Hochberg over all groups and genes) and `marker`.

    Notes
    -----
    The points are predictions that depend on each other, and clusters are made from the values
    that are compared: these p-values tell how well a gene separates the group, not how sure it is
    that the tissue differs.
    """
    parts = []
    large = {name: inside for name, inside in groups.items() if _large(name, inside)}
    for name, inside in track(large.items(), total=len(large), text="markers"):
        within, without = values[inside], values[~inside]
        found = stats.mannwhitneyu(within, without, axis=0, method="asymptotic")
        means = within.mean(axis=0), without.mean(axis=0)
        part = pd.DataFrame(
            {
                "group": name,
                "gene": np.asarray(genes, dtype=object),
                "difference": (means[0] - means[1]) / unit,
                "mean_inside": means[0],
                "mean_outside": means[1],
                "auc": found.statistic / (len(within) * len(without)),
                "p_separation": found.pvalue,
            }
        )
        # genes of equal difference by name: never by their order in the file
        parts.append(part.sort_values(["difference", "gene"], ascending=[False, True]))
    if not parts:
        return pd.DataFrame(columns=[*MARKER_COLUMNS])
    table = pd.concat(parts, ignore_index=True)
    table["q_separation"] = stats.false_discovery_control(table["p_separation"])
    separates = table["q_separation"] <= rule.fdr
    table["marker"] = separates & (table["difference"] >= rule.least_difference)
    return table


MARKER_COLUMNS = (
    "group",
    "gene",
    "difference",
    "mean_inside",
    "mean_outside",
    "auc",
    "p_separation",
    "q_separation",
    "marker",
)


def _large(name: str, inside: BoolArray) -> bool:
    fewest = min(int(inside.sum()), int((~inside).sum()))
    if fewest < LEAST_POINTS:
        where = "inside" if inside.sum() == fewest else "outside"
        log.info("%s: %d points %s, too few for marker genes", name, fewest, where)
    return fewest >= LEAST_POINTS


def markers_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Markers of each group of a `marker_table`, the largest difference first."""
    return {
        str(group): list(part.loc[part["marker"].astype(bool), "gene"])
        for group, part in table.groupby("group", sort=False)
    }


def enrichment_table(
    markers: Mapping[str, Sequence[str]], sets: Mapping[str, Sequence[str]], universe: Sequence[str]
) -> pd.DataFrame:
    """Over-representation of gene sets among the markers of groups, by the hypergeometric law.

    Parameters
    ----------
    markers : mapping
        Markers of each group.
    sets : mapping
        Genes of each set.
    universe : sequence of str
        All genes that could have been markers; others do not count.

    Returns
    -------
    DataFrame
        One row per group and set: `group`, `set`, `shared` (genes in both), `set_genes`,
        `markers`, `universe` (their numbers), `expected`, `fold`, `p_value` (as many or more by
        chance), `q_value` (Benjamini-Hochberg over all rows) and `genes`.

    Examples
    --------
    Two of two markers are among the three genes of a set, of five genes in all: 3/10 by chance.

    >>> table = enrichment_table({"1": ["a", "b"]}, {"s": ["a", "b", "c"]}, list("abcde"))
    >>> round(float(table.loc[0, "p_value"]), 6)
    0.3
    """
    everything = set(universe)
    rows = []
    for group, own in markers.items():
        chosen = everything.intersection(own)
        for name, genes in sets.items():
            members = everything.intersection(genes)
            shared = [gene for gene in own if gene in members]
            expected = len(chosen) * len(members) / len(everything)
            p = stats.hypergeom.sf(len(shared) - 1, len(everything), len(members), len(chosen))
            rows.append(
                {
                    "group": group,
                    "set": name,
                    "shared": len(shared),
                    "set_genes": len(members),
                    "markers": len(chosen),
                    "universe": len(everything),
                    "expected": expected,
                    "fold": len(shared) / expected if expected else np.nan,
                    "p_value": min(float(p), 1.0),
                    "genes": ";".join(shared),
                }
            )
    table = pd.DataFrame(rows, columns=[*ENRICHMENT_COLUMNS])
    table["q_value"] = stats.false_discovery_control(table["p_value"]) if rows else []
    return table


ENRICHMENT_COLUMNS = (
    "group",
    "set",
    "shared",
    "set_genes",
    "markers",
    "universe",
    "expected",
    "fold",
    "p_value",
    "q_value",
    "genes",
)


def group_names(
    enrichment: pd.DataFrame, groups: Sequence[str], rule: MarkerRule, *, most: int = 2
) -> dict[str, str]:
    """Name of each group by the sets that are enriched among its markers.

    The set of the smallest p comes first; another one joins it, up to `most`, if at least half of
    its genes among the markers are not in those before it. The q told is the largest of them.

    Examples
    --------
    >>> row = {"group": "1", "set": "adipose", "p_value": 1e-5, "q_value": 1e-4, "shared": 3}
    >>> table = pd.DataFrame([row | {"fold": 9.0, "genes": "LEP;ADIPOQ;PLIN1"}])
    >>> group_names(table, ["1", "2"], MarkerRule())
    {'1': 'adipose (q 0.0001)', '2': 'not named: no set is enriched'}
    """
    names = {}
    for group in groups:
        own = enrichment[
            (enrichment["group"] == group)
            & (enrichment["q_value"] <= rule.fdr)
            & (enrichment["shared"] >= rule.least_shared)
        ].sort_values(["p_value", "fold", "set"], ascending=[True, False, True])
        taken: list[str] = []
        known: set[str] = set()
        worst = 0.0
        for row in own.to_dict("records"):
            genes = set(str(row["genes"]).split(";"))
            if len(taken) < most and 2 * len(genes - known) >= len(genes):
                taken.append(str(row["set"]))
                known |= genes
                worst = max(worst, float(row["q_value"]))
        names[group] = f"{' + '.join(taken)} (q {worst:.1g})" if taken else UNNAMED
    return names


def compare_groups(
    regions: Mapping[str, BoolArray],
    clusters: Mapping[str, BoolArray],
    markers: Mapping[str, Sequence[str]],
    others: Mapping[str, Sequence[str]],
    universe: int,
) -> pd.DataFrame:
    """Compare regions with clusters: the points and the marker genes that they share.

    Parameters
    ----------
    regions, clusters : mapping of str to ndarray of bool, shape (points,)
    markers, others : mapping
        Marker genes of the regions and of the clusters; those without may be absent.
    universe : int
        Number of genes that could have been markers.

    Returns
    -------
    DataFrame
        One row per region and cluster: `region`, `cluster`, `points` (in both),
        `share_of_region`, `share_of_cluster`, `jaccard`, `markers` (in both), `marker_jaccard`,
        `marker_p_value` (hypergeometric).
    """
    rows = []
    for region, inside in regions.items():
        for cluster, points in clusters.items():
            both = int((inside & points).sum())
            a, b = set(markers.get(region, ())), set(others.get(cluster, ()))
            shared = len(a & b)
            rows.append(
                {
                    "region": region,
                    "cluster": cluster,
                    "points": both,
                    "share_of_region": _ratio(both, int(inside.sum())),
                    "share_of_cluster": _ratio(both, int(points.sum())),
                    "jaccard": _ratio(both, int((inside | points).sum())),
                    "markers": shared,
                    "marker_jaccard": _ratio(shared, len(a | b)),
                    "marker_p_value": min(
                        1.0, float(stats.hypergeom.sf(shared - 1, universe, len(a), len(b)))
                    ),
                }
            )
    return pd.DataFrame(rows)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
