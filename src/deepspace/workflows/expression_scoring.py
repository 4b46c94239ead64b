"""Held-out scores of predicted expression."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.metrics import (
    METRICS,
    correlation_shares,
    coverage,
    mean_of_best,
    within_folds,
)
from deepspace.core.progress import log
from deepspace.data.ceiling import reliability
from deepspace.data.splits import LEAK_WARNING, Fold
from deepspace.data.targets import ExpressionTarget
from deepspace.io.section import Section
from deepspace.models.base import Predictor
from deepspace.models.registry import BASELINES

FloatArray = NDArray[np.float64]

BEST = 50
CEILING = "ceiling"
COVERAGE = "coverage_90"
RELATIVE = ("pearson", "spearman")


@dataclass
class HeldOut:
    """Values of one section, put together from the folds that held its spots out.

    `measured` and each entry of `predicted` and `sd` have shape (spots, genes), NaN where a fold
    did not choose the gene; `ceiling` has shape (genes,) and `fold` (spots,). `sd` is that of a
    measurement of the spot's own depth.
    """

    section: Section
    genes: list[str]
    measured: FloatArray
    ceiling: FloatArray
    fold: NDArray[np.int64]
    predicted: dict[str, FloatArray] = field(default_factory=dict)
    sd: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def emptied(self) -> HeldOut:
        """The same slot before anything was predicted."""
        nothing = np.full(self.measured.shape, np.nan)
        return HeldOut(self.section, self.genes, nothing, self.ceiling, np.zeros_like(self.fold))


def empty_expression(
    section: Section, target: ExpressionTarget, config: Config, fold: NDArray[np.int64]
) -> HeldOut:
    """Slot for a section's held-out values, with the genes that are measured there."""
    counts = section.require_counts()
    here = target.subset([gene for gene in target.names if gene in counts.var_names])
    absent = len(target.names) - len(here.names)
    if absent:
        log.info("section %s: %d chosen genes are not in its counts", section.section, absent)
    return HeldOut(
        section=section,
        genes=list(here.names),
        measured=np.full((len(section.coords), len(here.names)), np.nan),
        ceiling=reliability(counts, here, seed=config.seed, fold=fold).ceiling,
        fold=np.zeros(len(section.coords), dtype=np.int64),
    )


def fill_expression(
    slot: HeldOut, name: str, predictor: Predictor, fold: Fold, target: ExpressionTarget
) -> None:
    """Enter one fold's predictions; genes that another fold did not choose stay out."""
    section = slot.section
    rows = fold.test[section.section]
    column = {gene: j for j, gene in enumerate(target.names)}
    here = np.array([k for k, gene in enumerate(slot.genes) if gene in column], dtype=np.int64)
    names = [slot.genes[k] for k in here]
    counts = section.require_counts()
    found = predictor.predict(section.slide, section.coords[rows])
    chosen = [column[gene] for gene in names]
    table = slot.predicted.setdefault(name, np.full(slot.measured.shape, np.nan))
    table[np.ix_(rows, here)] = found.mean[:, chosen]
    doubt = slot.sd.setdefault(name, np.full(slot.measured.shape, np.nan, np.float32))
    # how far a measurement lies off depends on its own depth, which says nothing of its genes
    doubt[np.ix_(rows, here)] = found.sd_at(target.thinness(counts)[rows])[:, chosen]
    measured = target.subset(names).encode(counts)
    slot.measured[np.ix_(rows, here)] = measured[rows]


def score_table(held_out: dict[str, HeldOut], how: str) -> pd.DataFrame:
    """Tidy scores of every model, section and gene that was predicted at every spot.

    Correlations are taken within folds (`within_folds`); errors are those of the values.
    """
    parts = []
    for name, slot in held_out.items():
        for model, predicted in slot.predicted.items():
            whole = ~(np.isnan(predicted) | np.isnan(slot.measured)).any(axis=0)
            if not whole.any():
                continue
            pair = slot.measured[:, whole], predicted[:, whole]
            centred = tuple(within_folds(values, slot.fold) for values in pair)
            parts.append(
                pd.DataFrame(
                    {
                        "model": model,
                        "split": how,
                        "section": name,
                        "gene": np.array(slot.genes)[whole],
                        "spots": len(slot.fold),
                        **{m: f(*(centred if m in RELATIVE else pair)) for m, f in METRICS.items()},
                        CEILING: slot.ceiling[whole],
                        COVERAGE: coverage(*pair, slot.sd[model][:, whole]),
                    }
                )
            )
    if not parts:
        raise InputError("no gene was chosen in every fold; name the genes, or use more of them")
    return pd.concat(parts, ignore_index=True)


def better_expression(slot: HeldOut, model: str, other: str) -> FloatArray | None:
    """What each spot adds to the mean correlation of `model` more than to `other`'s, (spots,).

    Over the genes that both predicted at every spot; None where there are none.
    """
    pair = [slot.predicted[name] for name in (model, other) if name in slot.predicted]
    if len(pair) < 2:
        return None
    known = ~np.isnan(slot.measured).any(axis=0)
    for values in pair:
        known &= ~np.isnan(values).any(axis=0)
    if not known.any():
        return None
    measured = within_folds(slot.measured[:, known], slot.fold)
    own, theirs = (
        correlation_shares(measured, within_folds(values[:, known], slot.fold)) for values in pair
    )
    difference: FloatArray = own - theirs
    return difference


def gene_means(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """Mean over sections of every gene's scores for one model, indexed by gene."""
    chosen = scores[scores["model"] == model]
    return chosen.groupby("gene", sort=False)[[*METRICS, CEILING, COVERAGE]].mean()


def summarise_expression(
    scores: pd.DataFrame, config: Config, how: str, folds: int
) -> dict[str, Any]:
    """Summary of a tidy table as JSON values."""
    models: dict[str, Any] = {}
    for model in scores["model"].unique():
        means = gene_means(scores, model)
        per_section = scores[scores["model"] == model].groupby("section", sort=False)
        models[model] = {
            "mean_pearson": _rounded(means["pearson"].mean()),
            "best50_pearson": _rounded(mean_of_best(means["pearson"].to_numpy(), BEST)),
            "mean_spearman": _rounded(means["spearman"].mean()),
            "mean_rmse": _rounded(means["rmse"].mean()),
            "mean_r2": _rounded(means["r2"].mean()),
            "coverage_90": _rounded(means[COVERAGE].mean()),
            "genes": len(means),
            "sections": {k: _rounded(v) for k, v in per_section["pearson"].mean().items()},
        }
    ceiling = gene_means(scores, scores["model"].iloc[0])[CEILING]
    summary: dict[str, Any] = {
        "target": "expression",
        "not_applicable": [name for name in BASELINES if name not in models],
        "split": how,
        "folds": folds,
        "genes": config.target.genes,
        "transform": config.target.transform,
        "models": models,
        "ceiling": {
            "mean_pearson": _rounded(ceiling.mean()),
            "best50_pearson": _rounded(mean_of_best(ceiling.to_numpy(), BEST)),
        },
    }
    if how == "spot":
        summary["warning"] = LEAK_WARNING
    return summary


def _rounded(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)
