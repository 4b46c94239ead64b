"""`complete`: predict what an experiment did not measure, beside what it did."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from deepspace.core.config import Config
from deepspace.core.files import atomic_folder, check_output, refuse_inputs
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.core.resume import STAMP, partial_folder, resumable_folder
from deepspace.data.failed import FAILED, REASON
from deepspace.data.splits import LEAST_BLANKED
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import Workbench
from deepspace.models.store import ModelCard, load_model, load_watch
from deepspace.models.watch import Watch
from deepspace.output.write import write_json, write_prediction, write_table
from deepspace.workflows.beside import beside_measured, sum_to_spots
from deepspace.workflows.cohort import Cohort, Prepared, default_cache, prepare_cohort
from deepspace.workflows.experiment import Experiment
from deepspace.workflows.figures import draw_completed, write_evaluation
from deepspace.workflows.points import grid_stride
from deepspace.workflows.pointwise import Job, picture_of, predict_points
from deepspace.workflows.predict import (
    believable,
    prediction_record,
)
from deepspace.workflows.report import save_model, write_report
from deepspace.workflows.scoring import evaluate_sections
from deepspace.workflows.stacking import draw_registration, registered
from deepspace.workflows.train import train_sections
from deepspace.workflows.trial import SCORINGS
from deepspace.workflows.volume import complete_volume

# what a run leaves behind, step by step
FAILED_TABLE, REGISTRATION, MODEL = "failed", "registration", "model"
EVALUATION, WITHIN, SECTIONS, VOLUME = "evaluation", "evaluation-within", "sections", "volume"


def complete(
    sheet: Cohort,
    out: Path | str,
    *,
    config: Config | None = None,
    failed: Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Complete an experiment: failed spots, between the spots, unmeasured sections, the volume.

    In one run that goes on where it was stopped: find failed spots, register the serial sections,
    train, score on held-out data, predict. Measured values stay as they are, beside the
    predictions.

    Parameters
    ----------
    sheet : Path, str or sequence of Section
        Cohort sheet (CSV) with measured and unmeasured sections, one Space Ranger ``outs/``
        folder, or sections in memory.
    out : Path or str
        Folder to write: ``failed.csv``, ``registration/``, ``model/``, ``evaluation/``,
        ``evaluation-within/``, ``sections/SECTION-AT.h5ad`` with pictures, ``volume.ome.zarr``
        with a picture, ``summary.json`` and ``report.html``, which holds all of it.
    config : Config, optional
        `complete` says what is made; its other tables are used as by `train`.
    failed : Path, optional
        Table of spots that failed (columns section, barcode), beside those that are found.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    dict
        Content of ``summary.json``.

    Raises
    ------
    InputError
        If the cohort, the configuration or `out` is wrong, or another run is at work there.
    """
    config = config or Config()
    for at in config.complete.at:
        grid_stride(at)  # a wrong --at is told before anything is read
    out = Path(out)
    check_output(out, overwrite=overwrite, marker=STAMP)
    experiment = Experiment.read(sheet, config, failed)
    for place in (out, partial_folder(out)):
        refuse_inputs(place, experiment.files)
    inputs = input_hashes(experiment.files, experiment.root)
    stamp = provenance("complete", config.model_dump(mode="json"), inputs, config.seed)
    stamp |= {"sections": experiment.fingerprint()}
    model = config.complete.model
    with resumable_folder(out, stamp, overwrite=overwrite) as folder:
        bench = Workbench.of(experiment.config.model_copy(update={"model": model}), default_cache())
        ready = prepare_cohort(experiment.good, [bench], [model], out)
        summary = _steps(experiment, ready, folder)
        if isinstance(sheet, str | Path):
            # for the viewer, which looks for the slides
            summary["sheet"] = os.path.relpath(sheet, out)
        write_json(summary, folder / "summary.json")
        write_report(folder)
    return summary


def _steps(experiment: Experiment, ready: Prepared, folder: Path) -> dict[str, Any]:
    """All that is not there yet."""
    config = experiment.config
    _write_failed(experiment, folder)
    if not (folder / REGISTRATION).exists():
        found = registered(experiment.sections, config, default_cache())
        with atomic_folder(folder / REGISTRATION) as own:
            draw_registration(experiment.sections, found, own)
    predictor, card = _trained(experiment, ready, folder)
    watch = load_watch(folder / MODEL, cache=default_cache())
    if config.complete.score_within and not (folder / WITHIN).exists():
        _score_within(ready, folder / WITHIN)
    points = {}
    for (name, at), wanted in experiment.points.items():
        position = [s.section for s in experiment.sections].index(name)
        _complete_section(experiment, position, at, (predictor, card, watch), folder)
        points[f"{name}-{at.replace(':', '')}"] = len(wanted.coords)
    volume = None
    if config.complete.volume:
        volume = complete_volume(experiment.good, predictor, card, config.complete, folder / VOLUME)
    return {
        "sections": {
            name: {
                "spots": len(table),
                "failed": int(table[FAILED].sum()),
                "reasons": _reasons(table),
            }
            for name, table in experiment.failed.items()
        },
        "points": points,
        "volume": volume,
        "predictable": sum(column.predictable for column in card.columns),
        "columns": len(card.columns),
        "target": card.kind,
        "scores": _scores(folder / EVALUATION),
        "within": _scores(folder / WITHIN),
    }


def _reasons(table: pd.DataFrame) -> dict[str, int]:
    found = table.loc[table[FAILED], REASON].astype(str).value_counts()
    return {str(reason): int(spots) for reason, spots in found.items()}


def _write_failed(experiment: Experiment, folder: Path) -> None:
    """Every spot of the measured sections that failed, with the reason."""
    if (folder / f"{FAILED_TABLE}.csv").exists():
        return
    tables = [
        table[table[FAILED]].rename_axis("barcode").reset_index().assign(section=name)
        for name, table in experiment.failed.items()
    ]
    for name, table in experiment.failed.items():
        count = int(table[FAILED].sum())
        log.info("%s: %d of %d spots failed and will be predicted", name, count, len(table))
    write_table(pd.concat(tables, ignore_index=True), folder / FAILED_TABLE)


def _trained(
    experiment: Experiment, ready: Prepared, folder: Path
) -> tuple[SavablePredictor, ModelCard]:
    """The model with its honest scores; trained, or as an interrupted run left it."""
    model, (bench,) = experiment.config.complete.model, ready.benches
    if not (folder / MODEL).exists() or not (folder / EVALUATION).exists():
        trained = train_sections(ready.sections, bench, model, root=experiment.root)
        trained.card.scores["quality_control"] = ready.report
        shutil.rmtree(folder / MODEL, ignore_errors=True)
        with atomic_folder(folder / EVALUATION) as own:
            write_evaluation(trained.evaluation, own)
        with atomic_folder(folder / MODEL) as own:
            save_model(own, trained.predictor, trained.card, trained.watch)
    weights = experiment.config.encoder.weights
    known = None if weights is None or weights.startswith("random:") else Path(weights)
    return load_model(folder / MODEL, cache=default_cache(), weights=known)


def _score_within(ready: Prepared, path: Path) -> None:
    """Scores of regions blanked inside a section, all around them measured."""
    (bench,) = ready.benches
    scored, _ = SCORINGS[bench.config.target.kind].prepare(ready.sections, bench.config.target)
    if max(len(s.coords) for s in scored) < LEAST_BLANKED:
        log.info("sections are too small to blank regions of them: no scores within sections")
        return
    log.info("scoring with regions of a section blanked")
    split = bench.config.split.model_copy(update={"how": "blob"})
    bench = replace(bench, config=bench.config.model_copy(update={"split": split}))
    found = evaluate_sections(ready.sections, [bench], [bench.config.complete.model], leaks=False)
    with atomic_folder(path) as own:
        write_evaluation(found, own)


def _scores(folder: Path) -> dict[str, Any] | None:
    """Summary of an evaluation, where there is one."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _complete_section(
    experiment: Experiment,
    position: int,
    at: str,
    model: tuple[SavablePredictor, ModelCard, Watch],
    folder: Path,
) -> None:
    """Predict one section at one kind of points, if it is not there."""
    section = experiment.sections[position]
    path = folder / SECTIONS / f"{section.section}-{at.replace(':', '')}.h5ad"
    if path.exists() and picture_of(path).exists():
        return
    points = experiment.points[section.section, at]
    predictor, card, watch = model
    bare = section.without_counts()
    record = prediction_record(folder / MODEL, bare, card, at, experiment.root)
    columns = believable(card, all_genes=experiment.config.complete.all_genes)
    record = {**record, "command": "complete"}
    found = predict_points(Job(predictor, card, watch, bare, points, record, columns))
    has_spots = section.measured or section.spots is not None
    finer = at != "spots" and has_spots and card.kind == "expression"
    if experiment.config.complete.sum_to_spots and finer:
        sum_to_spots(found, section, predictor)
    table = experiment.failed.get(section.section)
    if at == "spots" and table is not None:
        beside_measured(found, section, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prediction(found, path, overwrite=True)
    good = experiment.good[position]
    draw_completed(found, good, picture_of(path), side_um=grid_stride(at))
