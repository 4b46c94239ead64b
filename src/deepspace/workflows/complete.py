"""`complete`: predict what an experiment did not measure, beside what it did."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from deepspace.core.config import Config
from deepspace.core.files import atomic_folder, check_output
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.core.resume import STAMP, resumable_folder
from deepspace.data.failed import FAILED, REASON, find_failed, read_failed
from deepspace.io.section import Section
from deepspace.models.base import SavablePredictor
from deepspace.models.registry import Workbench
from deepspace.models.store import ModelCard, load_model, write_model
from deepspace.models.unlabelled import pitch_um
from deepspace.output.write import write_json, write_prediction, write_table
from deepspace.workflows.beside import beside_measured, sum_to_spots
from deepspace.workflows.cohort import (
    Cohort,
    Prepared,
    cohort_root,
    default_cache,
    prepare_cohort,
    read_cohort,
    source_files,
)
from deepspace.workflows.figures import draw_completed, write_evaluation, write_history
from deepspace.workflows.predict import (
    grid_stride,
    picture_of,
    points_at,
    predict_points,
    prediction_record,
)
from deepspace.workflows.scoring import evaluate_sections
from deepspace.workflows.stacking import draw_registration, registered
from deepspace.workflows.train import train_sections
from deepspace.workflows.volume import complete_volume

# what a run leaves behind, step by step
FAILED_TABLE, REGISTRATION, MODEL = "failed", "registration", "model"
EVALUATION, WITHIN, SECTIONS, VOLUME = "evaluation", "evaluation-within", "sections", "volume"


@dataclass(frozen=True)
class Experiment:
    """A cohort, and what of it can be learnt from.

    Attributes
    ----------
    sections : list of Section
        As read.
    failed : dict
        Per measured section, the table of `find_failed`.
    config : Config
    root : Path
        What paths in the provenance are relative to.
    """

    sections: list[Section]
    failed: dict[str, pd.DataFrame]
    config: Config
    root: Path

    @classmethod
    def read(cls, sheet: Cohort, config: Config, failed: Path | None) -> Experiment:
        """Read and check a cohort, and find the spots that failed."""
        sections = read_cohort(sheet)
        given = read_failed(failed, sections) if failed is not None else {}
        tables = {
            s.section: find_failed(s, config.qc, config.failed, given.get(s.section, ()))
            for s in sections
            if s.measured
        }
        return cls(sections, tables, config, cohort_root(sheet))

    def good(self) -> list[Section]:
        """Sections with the counts of the spots that did not fail."""
        found = []
        for section in self.sections:
            table = self.failed.get(section.section)
            if table is None:
                found.append(section)
                continue
            names = section.require_counts().obs_names
            found.append(section.subset(np.asarray(names.isin(table.index[~table[FAILED]]))))
        return found

    def pitch_um(self) -> float:
        """Distance of neighbouring spots, the median over measured sections."""
        return float(np.median([pitch_um(s) for s in self.sections if s.measured]))


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
        with a picture, and ``summary.json``.
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
        If the cohort, the configuration or `out` is wrong.
    """
    config = config or Config()
    for at in config.complete.at:
        grid_stride(at)  # a wrong --at is told before anything is read
    out = Path(out)
    check_output(out, overwrite=overwrite, marker=STAMP)
    experiment = Experiment.read(sheet, config, failed)
    model = config.complete.model
    bench = Workbench.of(config.model_copy(update={"model": model}), default_cache())
    bench = replace(bench, stack=registered(experiment.sections, config, bench.cache).stack)
    ready = prepare_cohort(experiment.good(), [bench], [model], out)
    files = source_files(experiment.sections) + ([] if failed is None else [failed])
    inputs = input_hashes(files, experiment.root)
    stamp = provenance("complete", config.model_dump(mode="json"), inputs, config.seed)
    with resumable_folder(out, stamp, overwrite=overwrite) as folder:
        summary = _steps(experiment, ready, folder)
        write_json(summary, folder / "summary.json")
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
    if config.complete.score_within and not (folder / WITHIN).exists():
        log.info("scoring with regions of a section blanked")
        _score_within(ready, folder / WITHIN)
    points = {
        f"{section.section}-{at.replace(':', '')}": _complete_section(
            experiment, section, at, (predictor, card), folder
        )
        for section in experiment.sections
        for at in _wanted(section, experiment)
    }
    volume = None
    if config.complete.volume:
        volume = complete_volume(
            experiment.sections, predictor, card, config.complete, folder / VOLUME
        )
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
            write_model(own, trained.predictor, trained.card)
            write_history(trained.card, own)
    weights = experiment.config.encoder.weights
    known = None if weights is None or weights.startswith("random:") else Path(weights)
    return load_model(folder / MODEL, cache=default_cache(), weights=known)


def _score_within(ready: Prepared, path: Path) -> None:
    """Scores of regions blanked inside a section, all around them measured."""
    (bench,) = ready.benches
    split = bench.config.split.model_copy(update={"how": "blob"})
    bench = replace(bench, config=bench.config.model_copy(update={"split": split}))
    found = evaluate_sections(ready.sections, [bench], [bench.config.complete.model])
    with atomic_folder(path) as own:
        write_evaluation(found, own)


def _scores(folder: Path) -> dict[str, Any] | None:
    """Summary of an evaluation, where there is one."""
    path = folder / "summary.json"
    if not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _wanted(section: Section, experiment: Experiment) -> Sequence[str]:
    """Where to predict on a section; one without spots has a grid at their pitch instead."""
    wanted = experiment.config.complete.at
    if section.spots is not None or section.measured:
        return wanted
    stride = f"grid:{experiment.pitch_um():g}"
    instead = [stride if at == "spots" else at for at in wanted if at != "between"]
    if instead != list(wanted):
        log.info("section %s has no spots: predicted at %s", section.section, ", ".join(instead))
    return list(dict.fromkeys(instead or [stride]))


def _complete_section(
    experiment: Experiment,
    section: Section,
    at: str,
    model: tuple[SavablePredictor, ModelCard],
    folder: Path,
) -> int:
    """Predict one section at one kind of points, if it is not there; the number of points."""
    path = folder / SECTIONS / f"{section.section}-{at.replace(':', '')}.h5ad"
    points = points_at(section, at)
    if path.exists() and picture_of(path).exists():
        return len(points.coords)
    predictor, card = model
    bare = section.without_counts()
    record = prediction_record(folder / MODEL, bare, card, at, experiment.root)
    found = predict_points(predictor, card, bare, points, {**record, "command": "complete"})
    finer = at != "spots" and section.spots is not None and card.kind == "expression"
    if experiment.config.complete.sum_to_spots and finer:
        sum_to_spots(found, bare, predictor)
    _finish(found, experiment, section, at, path)
    return len(points.coords)


def _finish(found: AnnData, experiment: Experiment, section: Section, at: str, path: Path) -> None:
    """Put measured values beside a prediction, write and draw it."""
    table = experiment.failed.get(section.section)
    if at == "spots" and table is not None:
        beside_measured(found, section, table)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_prediction(found, path, overwrite=True)
    good = next(s for s in experiment.good() if s.section == section.section)
    draw_completed(found, good, picture_of(path), side_um=grid_stride(at))
