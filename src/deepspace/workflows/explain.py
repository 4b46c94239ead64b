"""`explain`: which part of a tile drives the prediction of a gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deepspace.core.errors import InputError, Problems
from deepspace.core.files import atomic_folder, check_output, refuse_inputs
from deepspace.data.patches import PatchSpec, read_patch
from deepspace.io.checks import validate
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.models.attribution import FILLS, METHODS
from deepspace.output.attribution import (
    BarRow,
    Heading,
    MapRow,
    Tile,
    attribution_bars,
    attribution_maps,
    group_maps,
)
from deepspace.output.canvas import Backdrop, Points, save
from deepspace.output.plot import spot_size_um
from deepspace.output.write import write_json
from deepspace.workflows.cohort import cohort_root
from deepspace.workflows.explaining import (
    MOST_GENES,
    MOST_POINTS,
    ExplainOptions,
    Explanation,
    Job,
)
from deepspace.workflows.predict import open_trained, prediction_record
from deepspace.workflows.train import Trained

__all__ = ["ExplainOptions", "Explanation", "explain"]

MARKER = "attribution.json"
# pixels of a tile in the pictures
SHOWN_PX = 448


def explain(
    model: Path | str | Trained,
    sheet: Path | str | Section,
    *,
    section: str,
    genes: Sequence[str],
    out: Path | str | None = None,
    options: ExplainOptions | None = None,
    overwrite: bool = False,
) -> Explanation:
    """Explain predictions of genes on some tiles of a section.

    Tiles are chosen by rule: for each gene those with the highest, a middle and the lowest
    prediction of the image term among the spots whose image is like the training data; on a
    section without spots, on a lattice. The section's counts are not looked at.

    Parameters
    ----------
    model : Path, str or Trained
        Folder written by `train`, or what `train` returned.
    sheet : Path, str or Section
        Cohort sheet, one Space Ranger ``outs/`` folder, or a section in memory.
    section : str
        Which section of the sheet.
    genes : sequence of str
        Genes (or clusters) of the model.
    out : Path or str, optional
        Folder to write; nothing is written without it.
    options : ExplainOptions, optional
        Tiles and methods.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    Explanation
        Tables and maps.
    """
    options = options or ExplainOptions()
    _check(options, genes)
    if out is not None:
        check_output(Path(out), overwrite=overwrite, marker=MARKER)
    chosen = _read(sheet, section, None if out is None else Path(out))
    opened = open_trained(model, options.weights, options.device)
    job = Job.of(opened, chosen, genes, options)
    root = Path.cwd() if isinstance(sheet, Section) else cohort_root(sheet)
    record = prediction_record(model, chosen, job.card, "tiles", root)
    found = job.run(record)
    if out is not None:
        with atomic_folder(Path(out)) as folder:
            _write(found, job, folder)
    return found


def _check(options: ExplainOptions, genes: Sequence[str]) -> None:
    """Refuse what is wrong whatever the model and the section are."""
    problems = Problems("explain")
    if not 1 <= len(set(genes)) <= MOST_GENES:
        problems.add(f"--genes: {len(set(genes))} genes; name 1 to {MOST_GENES} of them")
    if not 1 <= options.points <= MOST_POINTS:
        problems.add(f"--points {options.points}: give 1 to {MOST_POINTS} tiles a gene")
    if len(options.at) > MOST_POINTS:
        problems.add(f"--at: {len(options.at)} places; give at most {MOST_POINTS}")
    if options.settings.fill not in FILLS:
        problems.add(f"--fill {options.settings.fill}: give {' or '.join(FILLS)}")
    unknown = [name for name in options.methods if name not in METHODS]
    if unknown:
        problems.add(f"--method {', '.join(unknown)}: give {', '.join(METHODS)}")
    problems.raise_if_any()


def _read(sheet: Path | str | Section, section: str, out: Path | None) -> Section:
    """The section without its counts; `out` must not hold one of its files."""
    found = sheet if isinstance(sheet, Section) else read_sheet(sheet, only=[section])[0]
    if found.section != section:
        raise InputError(f"there is no section {section}, only {found.section}; correct --section")
    if out is not None:
        refuse_inputs(out, found.sources.values())
    problems = Problems(f"section {section}")
    for fault in validate(found.without_counts()):
        problems.add(fault)
    problems.raise_if_any()
    return found


def _write(found: Explanation, job: Job, folder: Path) -> None:
    """Tables, arrays, provenance and pictures."""
    found.cases.drop(columns="column").to_csv(folder / "cases.csv", index=False)
    for name, values in found.maps.items():
        np.save(folder / f"{name}.npy", values.astype(np.float32), allow_pickle=False)
        save(_maps_picture(found, job, name), folder / f"{name}.png")
    if len(found.features):
        found.features.to_csv(folder / "contributions.csv", index=False)
        groups = found.groups()
        groups.to_csv(folder / "contribution_groups.csv", index=False)
        save(_bars_picture(found, groups, job), folder / "contributions.png")
    if len(found.overlay):
        found.overlay.to_csv(folder / "overlay.csv", index=False)
        save(_overlay_picture(found, job), folder / "overlay.png")
    write_json(found.record, folder / MARKER)


def _tile(job: Job, case: Any) -> Tile:
    """Picture of a case's tile over the widest field of view."""
    fields = [spec.fov_um for spec in job.model.sight.specs]
    spec = PatchSpec(max(fields), SHOWN_PX)
    image = read_patch(job.section.slide, case.x, case.y, spec)
    inner = tuple(f for f in fields if f < spec.fov_um)
    return Tile(image, spec.fov_um, case.tile, case.predicted, inner)


def _heading(job: Job, unit: str) -> Heading:
    title = f"{job.section.section}, {job.card.model} ({job.card.encoder.config.name})"
    return Heading(title, unit, "italic" if job.card.kind == "expression" else "normal")


def _maps_picture(found: Explanation, job: Job, method: str) -> Figure:
    rows = []
    for column in job.columns:
        own = found.cases[found.cases["column"] == column]
        tiles = [_tile(job, case) for case in own.itertuples()]
        card = job.gene(column)
        maps = found.maps[method][own["case"].to_numpy()]
        references = own[f"{method}_reference"].to_numpy(np.float64)
        rows.append(MapRow(card.name, tiles, maps, references, card.score))
    settings = found.record["settings"]
    return attribution_maps(
        rows,
        _heading(job, job.unit_of(method)),
        method=method,
        window_um=settings["window_um"],
        fill=settings["fill"],
    )


def _bars_picture(found: Explanation, groups: pd.DataFrame, job: Job) -> Figure:
    def row(case: Any) -> BarRow:
        own = groups[groups["case"] == case.case]
        return BarRow(case.gene, _tile(job, case), own, case.contributions_reference)

    rows = [row(case) for case in found.cases.itertuples()]
    return attribution_bars(rows, _heading(job, job.inner_unit))


def _overlay_picture(found: Explanation, job: Job) -> Figure:
    table = found.overlay
    own = (table["gene"] == table["gene"].iloc[0]) & (table["group"] == table["group"].iloc[0])
    points = Points(table.loc[own, ["x", "y"]].to_numpy(np.float64), spot_size_um(job.section))
    backdrop = Backdrop.of(job.section.slide)
    return group_maps(backdrop, table, points, _heading(job, job.inner_unit))
