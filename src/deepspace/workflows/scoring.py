"""Held-out scores of every model, its baselines and the noise ceiling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from deepspace.core.config import Config, TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.metrics import METRICS, coverage, mean_of_best
from deepspace.core.progress import log
from deepspace.data.ceiling import reliability
from deepspace.data.clusters import ClusterTarget, prepare_clusters
from deepspace.data.splits import LEAK_WARNING, Fold, SplitOptions, make_folds, widest_step
from deepspace.data.targets import ExpressionTarget, Target, fit_target
from deepspace.io.section import Section
from deepspace.models import distributed
from deepspace.models.base import Predictor, SavablePredictor
from deepspace.models.registry import (
    BASELINES,
    CLUSTER_BASELINES,
    MODELS,
    PARTS,
    TEACHERS,
    Workbench,
)
from deepspace.workflows.cluster_scoring import (
    POOLED,
    HeldOutClusters,
    cluster_table,
    empty_clusters,
    fill_clusters,
    named_alike,
    summarise_clusters,
)
from deepspace.workflows.semi import (
    control_label,
    controls,
    is_control,
    paired_gains,
    with_teachers,
)

FloatArray = NDArray[np.float64]
Builder = Callable[[], Predictor]
TargetT = TypeVar("TargetT")
SlotT = TypeVar("SlotT")
Baselines = Mapping[str, Callable[[Workbench], Predictor]]

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


@dataclass(frozen=True)
class FoldModel:
    """A model fitted on one fold's training spots.

    `label` is its name in tables, `model` its key of `MODELS`, `number` that of the fold.
    """

    label: str
    model: str
    bench: Workbench
    number: int
    training: list[Section]
    predictor: SavablePredictor


@dataclass
class Evaluation:
    """What an evaluation found.

    Attributes
    ----------
    scores : DataFrame
        Tidy. Of expression: one row per model, section and gene, with `spots`, `pearson`,
        `spearman`, `rmse`, `r2`, `ceiling` and `coverage_90` (share of
        measurements inside the 90 % intervals). Of clusters: see `cluster_table`.
    summary : dict
        JSON values: per model the mean Pearson over genes and that of the best 50 genes, or
        the scores of clusters.
    held_out : dict
        Per section id, the held-out values themselves: `HeldOut` or `HeldOutClusters`.
    target : Target
        That of the first fold; the columns of the others mean the same.
    fold_models : list of FoldModel
        Empty unless they were to be kept; baselines are not among them.
    """

    scores: pd.DataFrame
    summary: dict[str, Any]
    held_out: dict[str, Any]
    target: Target
    fold_models: list[FoldModel] = field(default_factory=list)


def evaluate_sections(
    sections: Sequence[Section],
    benches: Sequence[Workbench],
    models: Sequence[str] = ("probe",),
    *,
    keep: bool = False,
    compare: bool = True,
) -> Evaluation:
    """Score `models` with every encoder of `benches`, and all baselines, on held-out spots.

    Parameters
    ----------
    sections : sequence of Section
        Measured sections after quality control.
    benches : sequence of Workbench
        One per encoder; they share split, target and seed, which the first one gives.
    models : sequence of str
        Keys of `MODELS`.
    keep : bool
        Whether the models of the folds are given back.
    compare : bool
        Whether students stand beside their teachers and controls.

    Notes
    -----
    Genes are chosen, transforms fitted and penalties selected in each training fold alone.
    """
    for bench in benches:
        bench.check(models)
    scoring = SCORINGS[benches[0].config.target.kind]
    sections, goal = scoring.prepare(sections, benches[0].config.target)
    config = benches[0].config.model_copy(update={"target": goal})
    how = resolved_split(sections, config)
    inner = [bench.bridging(INNER[how]) for bench in benches]
    named, pairs = _named(inner, models, compare=compare)
    builders: dict[str, Builder] = {k: partial(MODELS[m], b) for k, (m, b) in named.items()}
    parts = {name: row for model in models for name, row in PARTS.get(model, {}).items()}
    baselines = {**scoring.baselines, **(parts if compare else {})}
    builders |= {name: partial(row, inner[0]) for name, row in baselines.items()}
    gap_um = _gap_um(benches) if how == "block" else 0.0
    folds = make_folds(sections, how, SplitOptions(config.split.folds, gap_um, config.seed))
    # what is wrong with the target is told before hours of encoding
    first = fit_target(folds[0].training(sections), goal)
    with distributed.main_first():
        remember(sections, benches)
    held_out: dict[str, Any] = {}
    kept: list[FoldModel] = []
    for number, fold in enumerate(folds, start=1):
        training = fold.training(sections)
        target = scoring.align(fit_target(training, goal), first, training)
        log.info("fold %d of %d: %s held out", number, len(folds), fold.name)
        for name, build in builders.items():
            predictor = build().fit(training, target)
            if keep and name in named and not is_control(name):
                fitted = cast(SavablePredictor, predictor)
                kept.append(FoldModel(name, *named[name], number, training, fitted))
            for section in sections:
                if section.section in fold.test:
                    if section.section not in held_out:
                        held_out[section.section] = scoring.empty(section, target, config)
                    slot = held_out[section.section]
                    slot.fold[fold.test[section.section]] = number
                    scoring.fill(slot, name, predictor, fold, target)
    scores = scoring.table(held_out, how)
    summary = scoring.summarise(scores, config, how, len(folds))
    if pairs:
        summary["gains"] = paired_gains(scores[scores["section"] != POOLED], pairs)
        summary["controls"] = [name for name in named if is_control(name)]
    return Evaluation(scores, summary, held_out, first, kept)


def _named(
    benches: Sequence[Workbench], models: Sequence[str], *, compare: bool
) -> tuple[dict[str, tuple[str, Workbench]], list[tuple[str, str]]]:
    """Models by their names in tables, students with teachers and controls; who to compare."""
    named: dict[str, tuple[str, Workbench]] = {}
    pairs = []
    for model in with_teachers(models) if compare else models:
        for bench in benches:
            label = model_label(model, bench.config)
            own = {label: (model, bench)}
            if compare and model in TEACHERS:
                for control, idle in controls(bench).items():
                    own[control_label(label, control)] = (model, idle)
                teacher = model_label(TEACHERS[model], bench.config)
                pairs += [(student, teacher) for student in own]
            named |= own
    return named, pairs


def resolved_split(sections: Sequence[Section], config: Config) -> str:
    """The configured split; ``auto`` is the widest step that the sections allow."""
    how = config.split.how
    return widest_step(sections) if how == "auto" else how


def remember(sections: Sequence[Section], benches: Sequence[Workbench]) -> None:
    """Encode every spot once, so that folds only pick rows."""
    for bench in benches:
        for section in sections:
            bench.extractor(bench.config.encoder).remember(section.slide, section.coords)
            bench.colour.remember(section.slide, section.coords)


def model_label(model: str, config: Config) -> str:
    """Name of a model in tables, its encoder in brackets."""
    return f"{model} ({config.encoder.name})"


# what an inner choice leaves out, so that it bridges the distance of the outer split
INNER = {
    "section": "section",
    "patient": "patient",
    "block": "block",
    "blob": "section",
    "alternate": "section",
    "spot": "section",
}


def _gap_um(benches: Sequence[Workbench]) -> float:
    """Gap of blocks: as configured, at least the widest field of view."""
    widest = max(b.extractor(b.config.encoder).fov_um for b in benches)
    wish = benches[0].config.split.gap_um
    if wish is not None and wish < widest:
        raise InputError(
            f"[split] gap_um = {wish:g} is less than the field of view of {widest:g} um: patches "
            "of training and test spots would overlap; leave it out or raise it"
        )
    return widest if wish is None else wish


def _empty(section: Section, target: ExpressionTarget, config: Config) -> HeldOut:
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
        ceiling=reliability(counts, here, seed=config.seed).ceiling,
        fold=np.zeros(len(section.coords), dtype=np.int64),
    )


def _fill(
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


def _within_folds(values: FloatArray, fold: NDArray[np.int64]) -> FloatArray:
    """Values minus their mean in each fold.

    Where a section is held out piece by piece, each piece's training mean is high where the piece
    itself is low: pooled as they are, even the gene mean would correlate (negatively).
    """
    centred = np.empty_like(values)
    for number in np.unique(fold):
        rows = fold == number
        part = values[rows]
        # rounding must not turn a constant into a pattern: correlation has no scale
        centred[rows] = np.where(np.ptp(part, axis=0) == 0, 0.0, part - part.mean(axis=0))
    return centred


def score_table(held_out: dict[str, HeldOut], how: str) -> pd.DataFrame:
    """Tidy scores of every model, section and gene that was predicted at every spot.

    Correlations are taken within folds (`_within_folds`); errors are those of the values.
    """
    parts = []
    for name, slot in held_out.items():
        for model, predicted in slot.predicted.items():
            whole = ~(np.isnan(predicted) | np.isnan(slot.measured)).any(axis=0)
            if not whole.any():
                continue
            pair = slot.measured[:, whole], predicted[:, whole]
            centred = tuple(_within_folds(values, slot.fold) for values in pair)
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


def gene_means(scores: pd.DataFrame, model: str) -> pd.DataFrame:
    """Mean over sections of every gene's scores for one model, indexed by gene."""
    chosen = scores[scores["model"] == model]
    return chosen.groupby("gene", sort=False)[[*METRICS, CEILING, COVERAGE]].mean()


def summarise(scores: pd.DataFrame, config: Config, how: str, folds: int) -> dict[str, Any]:
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


@dataclass(frozen=True)
class Scoring(Generic[TargetT, SlotT]):
    """How a kind of target is held out and scored.

    `prepare` settles on the whole cohort what is no choice of a fold; `align` gives the columns
    of a fold's target the meaning they have in the first fold's; `empty` makes the slot of a
    section and `fill` enters one fold's predictions; `table` scores, `summarise` sums up.
    """

    baselines: Baselines
    prepare: Callable[[Sequence[Section], TargetConfig], tuple[Sequence[Section], TargetConfig]]
    align: Callable[[TargetT, TargetT, Sequence[Section]], TargetT]
    empty: Callable[[Section, TargetT, Config], SlotT]
    fill: Callable[[SlotT, str, Predictor, Fold, TargetT], None]
    table: Callable[[dict[str, SlotT], str], pd.DataFrame]
    summarise: Callable[[pd.DataFrame, Config, str, int], dict[str, Any]]


_EXPRESSION: Scoring[ExpressionTarget, HeldOut] = Scoring(
    baselines=BASELINES,
    prepare=lambda sections, config: (sections, config),
    align=lambda target, first, training: target,
    empty=_empty,
    fill=_fill,
    table=score_table,
    summarise=summarise,
)
_CLUSTERS: Scoring[ClusterTarget, HeldOutClusters] = Scoring(
    baselines=CLUSTER_BASELINES,
    prepare=prepare_clusters,
    align=named_alike,
    empty=empty_clusters,
    fill=fill_clusters,
    table=cluster_table,
    summarise=summarise_clusters,
)
SCORINGS: dict[str, Scoring[Any, Any]] = {"expression": _EXPRESSION, "clusters": _CLUSTERS}
