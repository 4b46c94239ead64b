"""How well genes agree with a stain: correlations, their null, and what that means in words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import stats

from deepspace.core import keys
from deepspace.data.ihc import StainMap
from deepspace.data.shift_null import MovedMaps, correlations, p_values, rank_correlations

FloatArray = NDArray[np.float64]

ALPHA = 0.05
TOP = 0.1


def all_genes(table: AnnData, points: pd.DataFrame, moved: dict[str, MovedMaps]) -> pd.DataFrame:
    """Correlation of every predicted gene with the stain, best first."""
    used = points["used"].to_numpy()
    values = np.asarray(table.X, np.float64)[used]
    dab = moved["dab"]
    there = correlations(values, dab.there[:, None])[:, 0]
    after = correlations(values, dab.moved)
    p = p_values(there, int(used.sum()), after, np.isfinite(dab.moved).sum(axis=0))
    ranked = stats.rankdata(values, axis=0)
    frame = pd.DataFrame(
        {
            "gene": table.var_names.astype(str),
            "pearson": there,
            "spearman": correlations(ranked, stats.rankdata(dab.there)[:, None])[:, 0],
            "p_value": p,
            "score": table.var[keys.SCORE].to_numpy() if keys.SCORE in table.var else np.nan,
        }
    )
    known = frame["p_value"].notna()
    frame["q_value"] = np.nan
    frame.loc[known, "q_value"] = stats.false_discovery_control(frame.loc[known, "p_value"])
    frame = frame.sort_values("pearson", ascending=False, na_position="last", kind="stable")
    frame.insert(0, "rank", np.arange(1, len(frame) + 1))
    return frame.reset_index(drop=True)


def summarise(
    gene: str,
    genes: pd.DataFrame,
    points: pd.DataFrame,
    moved: dict[str, MovedMaps],
    stain: StainMap,
) -> tuple[dict[str, Any], FloatArray]:
    """All numbers of one gene, and its Pearson correlations after the moves."""
    used = points[points["used"]]
    values = used["predicted"].to_numpy()
    pearson, positive = (
        correlations(values[:, None], np.column_stack([m.there, m.moved]))[0]
        for m in (moved["dab"], moved["positive"])
    )
    spearman = rank_correlations(values, np.column_stack([moved["dab"].there, moved["dab"].moved]))
    known = np.isfinite(moved["dab"].moved).sum(axis=0)
    rank = int(genes.index[genes["gene"] == gene][0]) + 1
    scores = {
        "pearson": _against_null(pearson, len(used), known),
        "spearman": _against_null(spearman, len(used), known),
        "positive": _against_null(positive, len(used), known),
    }
    naive = stats.pearsonr(values, moved["dab"].there, alternative="greater").pvalue
    summary: dict[str, Any] = {
        "gene": gene,
        "verdict": verdict(gene, scores["pearson"], rank, len(genes)),
        "points": len(points),
        "used": len(used),
        **scores,
        "p_if_points_were_independent": float(naive),
        "rank": {"place": rank, "of": len(genes)},
        "null": {
            "moves": len(known),
            "drawn_again": moved["dab"].refused,
            "least_overlap": float(moved["dab"].overlap.min()),
            "median_overlap": float(np.median(moved["dab"].overlap)),
        },
        "stain": {
            "disc_um": stain.diameter_um,
            "positive_from_density": stain.threshold,
            "brown_share": stain.brown,
            "glass": list(stain.glass),
            "median_density": float(used["dab"].median()),
            "positive_share": float(used["positive"].mean()),
        },
    }
    return summary, pearson[1:]


def _against_null(found: FloatArray, count: int, counts: NDArray[np.integer]) -> dict[str, Any]:
    """Correlation in place against those after the moves; None where the stain is constant."""
    if not np.isfinite(found[0]):
        return {"r": None, "p": None}
    p = p_values(found[:1], count, found[None, 1:], counts.astype(np.float64))
    # as if it were of as many points as in place, as `p_values` compares
    null = found[1:] * np.sqrt(counts / count)
    low, high = np.nanpercentile(null, [2.5, 97.5])
    spread = float(np.nanstd(null))
    return {
        "r": float(found[0]),
        "p": float(p[0]),
        "null_mean": float(np.nanmean(null)),
        "null_sd": spread,
        "null_95": [float(low), float(high)],
        "independent_values": float(1.0 + 1.0 / max(spread, 1e-6) ** 2),
    }


def verdict(gene: str, score: dict[str, Any], rank: int, genes: int) -> str:
    """Say in words what the comparison shows.

    Examples
    --------
    >>> verdict("ESR1", {"r": 0.61, "p": 0.001}, 2, 250)
    'The stain supports the prediction of ESR1 (r = 0.61, p = 0.001); it ranks 2 of 250 genes'

    >>> verdict("ESR1", {"r": 0.3, "p": 0.01}, 120, 250).split(", but ")[1]
    'better with others (it ranks 120 of 250 genes): the density of the tissue alone may explain it'
    """
    if score["r"] is None:
        return f"The stain is the same everywhere: nothing can be said of {gene}"
    numbers = f"(r = {score['r']:.2f}, p = {score['p']:.2g})"
    place = f"it ranks {rank} of {genes} genes"
    if score["p"] > ALPHA:
        text = f"The stain does not support the prediction of {gene} beyond chance {numbers}"
        return text if genes == 1 else f"{text}; {place}"
    if genes == 1:
        text = f"The stain agrees with the prediction of {gene} {numbers}"
        return f"{text}; no other gene was predicted to compare with"
    if rank <= max(1, round(TOP * genes)):
        return f"The stain supports the prediction of {gene} {numbers}; {place}"
    return (
        f"The stain agrees with the prediction of {gene} {numbers}, but better with "
        f"others ({place}): the density of the tissue alone may explain it"
    )


def format_ihc(summary: dict[str, Any]) -> str:
    """Summary of a check as text for the terminal."""
    lines = [summary["verdict"]]
    for name, label in (("pearson", "Pearson"), ("spearman", "Spearman"), ("positive", "positive")):
        score = summary[name]
        if score["r"] is None:
            continue
        low, high = score["null_95"]
        lines.append(
            f"  {label:<9}{score['r']:6.2f}  p {score['p']:.2g}  (chance: {low:.2f} to {high:.2f})"
        )
    stain, used = summary["stain"], f"{summary['used']} of {summary['points']} points"
    lines.append(f"  {used} on both sections, DAB averaged over {stain['disc_um']:.0f} um")
    lines.append(f"  registration: {summary['registration']['reason']}")
    lines.append(f"  H&E: {summary['he_slide']}")
    return "\n".join(lines)
