"""`train`: evaluate honestly, fit on everything measured, save with what was found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from deepspace.core.config import Config
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.splits import widest_step
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models import distributed
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.store import EncoderCard, GeneCard, ModelCard, TrainingCard
from deepspace.models.watch import Watch
from deepspace.workflows.cohort import (
    Cohort,
    cohort_root,
    default_cache,
    prepare_cohort,
    source_files,
)
from deepspace.workflows.figures import write_evaluation
from deepspace.workflows.novelty import fit_novelty
from deepspace.workflows.report import EVALUATION, save_model, write_report
from deepspace.workflows.scoring import Evaluation, evaluate_sections, model_label
from deepspace.workflows.trial import INNER, SCORINGS
from deepspace.workflows.verdicts import NO

# splits that score a model where nothing was measured
HONEST = ("auto", "patient", "section", "block")


@dataclass
class Trained:
    """A fitted model with its card, its honest evaluation, and what it knows of its images."""

    predictor: SavablePredictor
    card: ModelCard
    evaluation: Evaluation
    watch: Watch


def train(
    sheet: Cohort,
    out: Path | str | None = None,
    *,
    model: str | None = None,
    config: Config | None = None,
    overwrite: bool = False,
) -> Trained:
    """Train a model on the measured sections of a cohort sheet and save it.

    Parameters
    ----------
    sheet : Path, str or sequence of Section
        Cohort sheet (CSV), one Space Ranger ``outs/`` folder, or sections in memory.
    out : Path or str, optional
        Folder to write, nothing without it: ``model.json`` and ``weights.safetensors``, a model
        card, how a network was trained (``history.csv``, ``history.png``), ``evaluation/`` with
        its scores, and ``report.html``.
    model : str, optional
        Key of the table of models; the configured one if not given.
    config : Config, optional
        Everything else.
    overwrite : bool
        Replace `out` if it exists.

    Raises
    ------
    InputError
        If the cohort, the configuration or `out` is wrong.
    """
    config = config or Config()
    if out is not None:
        out = Path(out)
        check_output(out, overwrite=overwrite, marker="model.json")
    model = model or config.model
    config = config.model_copy(update={"model": model})
    ready = prepare_cohort(sheet, [Workbench.of(config, default_cache())], [model], out)
    (bench,) = ready.benches
    trained = train_sections(ready.sections, bench, model, root=cohort_root(sheet))
    trained.card.scores["quality_control"] = ready.report
    if out is not None and distributed.is_main():
        write_trained(trained, out)
    return trained


def write_trained(trained: Trained, out: Path) -> None:
    """Write the folder of a model; it appears whole or not at all."""
    with atomic_folder(out) as folder:
        save_model(folder, trained.predictor, trained.card, trained.watch)
        with atomic_folder(folder / EVALUATION) as own:
            write_evaluation(trained.evaluation, own)
        write_report(folder)


def train_sections(
    sections: Sequence[Section],
    bench: Workbench,
    model: str = "probe",
    *,
    root: Path | None = None,
) -> Trained:
    """Train on measured sections that passed quality control; nothing is written.

    Paths in the provenance are relative to `root`, the folder of the cohort sheet.
    """
    scoring = SCORINGS[bench.config.target.kind]
    sections, goal = scoring.prepare(sections, bench.config.target)
    how = _honest_split(sections, bench.config)
    split = bench.config.split.model_copy(update={"how": how})
    config = bench.config.model_copy(update={"split": split, "target": goal})
    bench = replace(bench, config=config)
    log.info("scores come from held-out data, split by %s", how)
    evaluation = evaluate_sections(sections, [bench], [model], compare=False)
    log.info("fitting %s on %d sections", model, len(sections))
    # the same choice of penalties as in the evaluation, whose scores the model carries
    predictor = MODELS[model](bench.bridging(INNER[how]))
    predictor.fit(sections, scoring.align(fit_target(sections, goal), evaluation.target, sections))
    card = model_card(predictor, model, bench, sections, evaluation, root or Path.cwd())
    return Trained(predictor, card, evaluation, fit_novelty(sections, bench))


def _honest_split(sections: Sequence[Section], config: Config) -> str:
    """Split for the scores that a model carries: never random spots, and one that is possible."""
    how = config.split.how
    if how not in HONEST:
        log.info("split by %s does not score a new section; an honest split does instead", how)
        how = "auto"
    found = widest_step(sections, how)
    if how not in ("auto", found):
        log.info("no second %s to hold out: split by %s instead", how, found)
    return found


def model_card(
    predictor: SavablePredictor,
    model: str,
    bench: Workbench,
    sections: Sequence[Section],
    evaluation: Evaluation,
    root: Path,
) -> ModelCard:
    """Card of a model fitted on `sections`, with the scores of `evaluation`."""
    config = bench.config
    encoder = bench.extractor(config.encoder).encoder
    values, _ = predictor.state()
    target, _ = predictor.target.state()
    label = model_label(model, config)
    columns = verdict_cards(evaluation.verdicts, label, predictor.target.names)
    card = ModelCard(
        model=model,
        kind=config.target.kind,
        target=target,
        encoder=EncoderCard(
            **bench.describe_encoder(),
            fov_um=tuple(s.fov_um for s in encoder.specs),
            patch_px=tuple(s.size_px for s in encoder.specs),
        ),
        training=tuple(
            TrainingCard(
                section=s.section,
                patient=s.patient,
                spots=len(s.coords),
                slide_sha256=s.slide.content_hash(),
                mpp=s.slide.require_mpp(),
                mpp_source=s.slide.mpp_source,
            )
            for s in sections
        ),
        scores=evaluation.summary,
        provenance=provenance(
            "train",
            config.model_dump(mode="json"),
            input_hashes(source_files(sections), root),
            config.seed,
        ),
        state=values,
    )
    return card.model_copy(update={CARDS[config.target.kind]: columns})


def verdict_cards(verdicts: pd.DataFrame, model: str, names: Sequence[str]) -> tuple[GeneCard, ...]:
    """What the evaluation found of each name, in their order; never scored is never believed."""
    rows = verdicts[verdicts["model"] == model].set_index("gene").to_dict("index")
    unknown: dict[Any, Any] = {**dict.fromkeys(NUMBERS, np.nan), "verdict": NO}
    cards = []
    for name in names:
        row = rows.get(name, unknown)
        numbers = {key: _number(row[key]) for key in NUMBERS}
        cards.append(GeneCard.model_validate({"name": name, "verdict": row["verdict"], **numbers}))
    return tuple(cards)


NUMBERS = ("score", "low", "high", "ceiling", "p_value", "q_value")
# where the card of a model keeps them
CARDS = {"expression": "genes", "clusters": "clusters"}


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)
