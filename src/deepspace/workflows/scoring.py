"""Held-out scores of every model, its baselines and the noise ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import pandas as pd

from deepspace.core.config import Config
from deepspace.data.targets import Target
from deepspace.io.section import Section
from deepspace.models.base import Predictor, SavablePredictor
from deepspace.models.registry import MODELS, TEACHERS, Workbench
from deepspace.workflows.chance import chance_scores, own_chance, summarise_chance
from deepspace.workflows.cluster_scoring import POOLED
from deepspace.workflows.comparing import compare_models
from deepspace.workflows.leaks import leak_gap
from deepspace.workflows.semi import (
    control_label,
    controls,
    is_control,
    paired_gains,
    with_teachers,
)
from deepspace.workflows.trial import INNER, Builder, Trial
from deepspace.workflows.verdicts import VERDICTS, count_verdicts, in_plain_words


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
        the scores of clusters; what it beats, the leak gap, and all that in plain words.
    held_out : dict
        Per section id, the held-out values themselves: `HeldOut` or `HeldOutClusters`.
    target : Target
        That of the first fold; the columns of the others mean the same.
    verdicts : DataFrame
        One row per model and gene (or cluster): `model`, `gene`, `score`, `low`, `high`,
        `ceiling`, `p_value`, `q_value`, `verdict`.
    fold_models : list of FoldModel
        Empty unless they were to be kept; baselines are not among them.
    """

    scores: pd.DataFrame
    summary: dict[str, Any]
    held_out: dict[str, Any]
    target: Target
    verdicts: pd.DataFrame
    fold_models: list[FoldModel] = field(default_factory=list)


def evaluate_sections(
    sections: Sequence[Section],
    benches: Sequence[Workbench],
    models: Sequence[str] = ("probe",),
    *,
    keep: bool = False,
    compare: bool = True,
    leaks: bool = True,
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
    leaks : bool
        Whether the leak gap is measured too, if the configuration asks for it.

    Notes
    -----
    Genes are chosen, transforms fitted and penalties selected in each training fold alone.
    """
    for bench in benches:
        bench.check(models)
    trial = Trial.of(sections, benches)
    inner = [bench.bridging(INNER[trial.how]) for bench in benches]
    named, pairs = _named(inner, models, compare=compare)
    builders: dict[str, Builder] = {k: partial(MODELS[m], b) for k, (m, b) in named.items()}
    baselines = trial.scoring.baselines
    builders |= {n: partial(row, inner[0], trial.sections) for n, row in baselines.items()}
    kept: list[FoldModel] = []

    def keep_model(name: str, number: int, training: list[Section], predictor: Predictor) -> None:
        if keep and name in named and not is_control(name):
            fitted = cast(SavablePredictor, predictor)
            kept.append(FoldModel(name, *named[name], number, training, fitted))

    held_out = trial.run(builders, keep_model)
    found = _summed_up(trial, held_out, [n for n in named if not is_control(n)], inner[0])
    found.fold_models.extend(kept)
    scores = found.scores
    if pairs:
        found.summary["gains"] = paired_gains(scores[scores["section"] != POOLED], pairs)
        found.summary["controls"] = [name for name in named if is_control(name)]
    if leaks and trial.config.evaluate.leak_gap != "none":
        row = trial.config.evaluate.leak_gap
        found.summary["leak_gap"] = leak_gap(
            trial.sections, benches[0], models[0] if row == "model" else row
        )
    found.summary["verdict"] = in_plain_words(found.summary, next(iter(named)))
    return found


def _summed_up(
    trial: Trial, held_out: dict[str, Any], models: Sequence[str], bench: Workbench
) -> Evaluation:
    """Scores, comparisons and verdicts of what was held out."""
    scores = trial.scoring.table(held_out, trial.how)
    summary = trial.scoring.summarise(scores, trial.config, trial.how, len(trial.folds))
    summary["comparisons"] = compare_models(
        held_out, trial.scoring.better, models, list(trial.scoring.baselines)
    )
    null = None
    if trial.scoring.chance and trial.config.evaluate.moves:
        null = chance_scores(trial, bench, trial.config.evaluate.moves)
        summary["chance"] = summarise_chance(null)
    parts = []
    for name in models:
        own = None if null is None else own_chance(held_out, name, trial.config.seed)
        nulls = [found for found in (null, own) if found is not None]
        parts.append(VERDICTS[summary["target"]](scores, held_out, name, nulls))
    verdicts = pd.concat(parts, ignore_index=True)
    summary["verdicts"] = count_verdicts(verdicts, models[0])
    return Evaluation(scores, summary, held_out, trial.targets[0], verdicts)


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


def model_label(model: str, config: Config) -> str:
    """Name of a model in tables, its encoder in brackets."""
    return f"{model} ({config.encoder.name})"
