"""Which predictions and sections lie under a path that a user wants to look at."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.io.detect import UnknownInputError
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.output.prediction_file import noted_sheet
from deepspace.registration.stack import Stack
from deepspace.viewer.columns import ShownPrediction


def find(
    path: Path, sheet: Path | str | None
) -> tuple[list[ShownPrediction], dict[str, Section], Path]:
    """Predictions under a path, sections by name, and the folder that their run wrote.

    Raises
    ------
    InputError
        If there is neither, or the sheet cannot be read.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    folder = path if path.is_dir() else path.parent
    files: list[ShownPrediction] = []
    faults: list[str] = []
    for run, candidates in _candidates(path):
        for file in candidates:
            try:
                files.append(ShownPrediction(file))
            except InputError as error:
                faults.append(str(error))
        if files:
            folder = run
            break
    data = _data(path, faults) if not files and sheet is None else None
    for fault in faults if path.is_dir() and path.suffix != ".zarr" else []:
        log.info("left out: %s", fault)
    if data is not None:
        return [], data, folder
    known = noted_sheet(folder) if sheet is None else sheet
    sections = [] if known is None else read_sheet(known)
    return files, {section.section: section for section in sections}, folder


def _candidates(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Folders of runs, the likeliest first, and the files there that may be predictions."""
    if path.suffix in (".h5ad", ".zarr"):
        folder = path.absolute().parent
        yield folder.parent if folder.name == "sections" else folder, [path]
    elif path.is_dir():
        for run in (path, path / "completed"):
            for place in (run / "sections", run):
                yield run, sorted([*place.glob("*.h5ad"), *place.glob("*.zarr")])


def _data(path: Path, faults: list[str]) -> dict[str, Section]:
    """Sections of what is no prediction: a cohort sheet or a section's own files."""
    try:
        return {section.section: section for section in read_sheet(path)}
    except InputError as error:
        problems = Problems(f"{path}: nothing to look at" if faults else str(path))
        for fault in faults:
            problems.add(f"as a prediction: {fault}")
        if not isinstance(error, UnknownInputError):
            problems.add(f"as a section: {error}" if faults else str(error))
        elif not faults:
            problems.add(
                "nothing to look at; give a folder of complete, demo or predict, a prediction "
                "(.h5ad, .zarr), a cohort sheet (.csv), or the files of one section"
            )
        problems.raise_if_any()
        raise


def stack_of(folder: Path) -> Stack | None:
    """Registration that a run of `complete` wrote."""
    saved = folder / "registration" / "stack.json"
    if not saved.exists():
        return None
    arrays = {p.stem.removeprefix("stack."): np.load(p) for p in saved.parent.glob("stack.*.npy")}
    return Stack.restore(json.loads(saved.read_text(encoding="utf-8")), arrays)
