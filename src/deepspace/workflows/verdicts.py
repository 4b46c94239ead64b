"""Which genes and clusters may be believed, and what an evaluation says in plain words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, fisher_exact, norm
from scipy.stats import t as student_t
from sklearn.metrics import f1_score, matthews_corrcoef

from deepspace.core.classification import most_probable
from deepspace.models.registry import ORACLE
from deepspace.workflows.chance import p_values
from deepspace.workflows.cluster_scoring import pooled
from deepspace.workflows.expression_scoring import CEILING

FloatArray = NDArray[np.float64]

# predictable is what has this held-out correlation, at this false discovery rate
LEAST_SCORE = 0.2
FDR = 0.05
LEVEL = 0.95
PREDICTABLE, WEAK, NO = "predictable", "weak", "no"
COLUMNS = ("gene", "score", "low", "high", "ceiling", "p_value", "q_value", "verdict")


def gene_verdicts(
    scores: pd.DataFrame, held_out: Mapping[str, Any], model: str, nulls: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Held-out score and verdict of every gene under one model.

    ``predictable``: the mean held-out Pearson correlation is above what moved labels reach
    (`deepspace.workflows.chance`; with several nulls the largest p counts) at a false discovery
    rate of 5 % (Benjamini & Hochberg 1995), at least 0.2, and the gene was scored in every
    held-out section. ``weak``: above chance, but not all of that. ``no``: not above chance. All
    of it holds for such spots as were held out: of sections left out, for sections of these
    patients.

    Without nulls p comes from Fisher's z, which takes spots as independent: it flatters.

    Returns
    -------
    DataFrame
        `COLUMNS` after `model`; `low` and `high` are a 95 % t interval over sections, NaN with
        one section.
    """
    chosen = scores[scores["model"] == model]
    by_gene = chosen.groupby("gene", sort=False)["pearson"]
    score, seen = by_gene.mean(), by_gene.count()
    half = by_gene.std() / np.sqrt(seen) * student_t.ppf((1 + LEVEL) / 2, np.maximum(seen - 1, 1))
    values = score.to_numpy()
    if not nulls:
        degrees = (chosen["spots"] - 3).groupby(chosen["gene"], sort=False).sum().clip(lower=1)
        z = np.arctanh(np.clip(np.nan_to_num(values), -0.999, 0.999)) * np.sqrt(degrees.to_numpy())
        p = np.where(np.isnan(values), 1.0, norm.sf(z))
    else:
        p = np.max([p_values(values, n.reindex(score.index).to_numpy()) for n in nulls], axis=0)
    q = false_discovery_control(p)
    above = (q <= FDR) & (values > 0)
    good = above & (values >= LEAST_SCORE) & (seen.to_numpy() == chosen["section"].nunique())
    return pd.DataFrame(
        {
            "model": model,
            "gene": score.index,
            "score": values,
            "low": (score - half).clip(lower=-1.0).to_numpy(),
            "high": (score + half).clip(upper=1.0).to_numpy(),
            "ceiling": chosen.groupby("gene", sort=False)[CEILING].mean().to_numpy(),
            "p_value": p,
            "q_value": q,
            "verdict": np.select([good, above], [PREDICTABLE, WEAK], NO),
        }
    )


def cluster_verdicts(
    scores: pd.DataFrame, held_out: Mapping[str, Any], model: str, nulls: Sequence[pd.DataFrame]
) -> pd.DataFrame:
    """Held-out F1 score and verdict of every cluster.

    A cluster is predictable if being called it and being it are correlated (phi coefficient) by at
    least 0.2 over all held-out spots, and that is above 0 by Fisher's exact test with
    Benjamini-Hochberg at 5 %; weak if only the latter. The test takes spots as independent, which
    neighbouring spots are not: it is a filter against chance in small cohorts, not a guaranteed
    false discovery rate.
    """
    found = pooled(held_out, model)
    if found is None:
        names = list(next(iter(held_out.values())).names)
        nothing = {"model": model, "gene": names, "verdict": NO}
        return pd.DataFrame(nothing).reindex(columns=["model", *COLUMNS])
    truth, probabilities, names = found
    called = most_probable(probabilities, names)
    pairs = [(truth == name, called == name) for name in names]
    tables = [[[np.sum((a == x) & (b == y)) for y in (1, 0)] for x in (1, 0)] for a, b in pairs]
    p = np.array([fisher_exact(table, alternative="greater").pvalue for table in tables])
    q = false_discovery_control(p)
    phi = np.array([matthews_corrcoef(a, b) for a, b in pairs])
    above = q <= FDR
    f1 = [f1_score(a, b, zero_division=0.0) if a.any() else np.nan for a, b in pairs]
    table = {
        "model": model,
        "gene": list(names),
        "score": f1,
        "p_value": p,
        "q_value": q,
        "verdict": np.select([above & (phi >= LEAST_SCORE), above], [PREDICTABLE, WEAK], NO),
    }
    return pd.DataFrame(table).reindex(columns=["model", *COLUMNS])


Verdicts = Callable[[pd.DataFrame, Mapping[str, Any], str, Sequence[pd.DataFrame]], pd.DataFrame]
VERDICTS: dict[str, Verdicts] = {"expression": gene_verdicts, "clusters": cluster_verdicts}


def count_verdicts(verdicts: pd.DataFrame, model: str) -> dict[str, int]:
    """How many genes have each verdict."""
    found = verdicts.loc[verdicts["model"] == model, "verdict"].value_counts()
    return {name: int(found.get(name, 0)) for name in (PREDICTABLE, WEAK, NO)}


def in_plain_words(summary: Mapping[str, Any], model: str) -> list[str]:
    """What the summary of an evaluation says of one model; the first line is the verdict."""
    lines = [_against_baselines(summary, model)]
    counts = summary["verdicts"]
    noun = NOUNS[summary["target"]]
    total = sum(counts.values())
    lines.append(
        f"{counts[PREDICTABLE]} of {total} {noun} are predictable, {counts[WEAK]} weakly; "
        f"{counts[NO]} are not told from chance."
    )
    lines.append(SPLIT_WORDS[summary["split"]])
    lines += _intervals(summary, model)
    return lines


def _against_baselines(summary: Mapping[str, Any], model: str) -> str:
    rows = [row for row in summary["comparisons"] if row["model"] == model]
    lost = [row["against"] for row in rows if not row["beats"]]
    score = SCORE_WORDS[summary["target"]](summary["models"][model])
    if not rows:
        return f"{model}: {score}; no baseline applies."
    if not lost:
        return f"{model} is better than every baseline ({score})."
    words = [
        f"{name} (it looks at the held-out spots)" if name == ORACLE else name for name in lost
    ]
    return f"{model} is NOT shown to be better than: {', '.join(words)} ({score})."


def _intervals(summary: Mapping[str, Any], model: str) -> list[str]:
    share = summary["models"][model].get("coverage_90")
    if share is None:
        return []
    return [f"{100 * share:.0f} % of the held-out measurements lie inside their 90 % intervals."]


NOUNS = {"expression": "genes", "clusters": "clusters"}
SCORE_WORDS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "expression": lambda found: f"mean held-out correlation {found['mean_pearson']:.3f}",
    "clusters": lambda found: f"held-out accuracy {found['accuracy']:.3f}",
}
SPLIT_WORDS = {
    "patient": "Scored on patients left out: what to expect of a new patient.",
    "section": "Scored on sections left out: what to expect of a new section of these patients, "
    "not of a new patient.",
    "block": "Scored on regions left out of single sections: what to expect of other parts of "
    "this tissue, not of a new patient.",
    "blob": "Scored on regions blanked inside measured sections: what to expect where spots "
    "failed, not of a new section.",
    "alternate": "Scored on every second spot: what to expect between the spots, not of a new "
    "section.",
    "spot": "Scored on random spots, whose neighbours were known: TOO GOOD TO BE TRUE for a new "
    "section.",
}
