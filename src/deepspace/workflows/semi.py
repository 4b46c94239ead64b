"""Noisy Student in a cohort: where unlabelled tiles come from, and what a student gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from deepspace.core.config import StudentConfig
from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.io.section import Section
from deepspace.io.slide import Slide, open_slide
from deepspace.models.registry import CONTROLS, TEACHERS, Workbench
from deepspace.models.unlabelled import Unlabelled, pitch_um, tissue_points

# words of `StudentConfig.sources` that are no folders
GAPS, SECTIONS = "gaps", "sections"
# what a student is compared by, the first that the scores have
COMPARED = ("pearson", "accuracy")
LEVEL = 0.95
# the student that predicts whatever its gate would say
UNGATED = "no gate"


def with_teachers(models: Sequence[str]) -> list[str]:
    """Models, every student after its teacher."""
    wanted = [name for model in models for name in (TEACHERS.get(model, model), model)]
    return list(dict.fromkeys(wanted))


def with_pool(bench: Workbench, sections: Sequence[Section], models: Sequence[str]) -> Workbench:
    """The same bench with unlabelled tiles, if one of the models learns from such."""
    if not any(model in TEACHERS for model in models):
        return bench
    student = bench.config.student
    slides = [s.slide for s in sections if not s.measured] if SECTIONS in student.sources else []
    slides += _slides_of_folders(student)
    # a measured section may be held out, so its slide teaches only by its own gaps
    own = {s.slide.content_hash() for s in sections if s.measured}
    extra = [slide for slide in slides if slide.content_hash() not in own]
    if len(extra) < len(slides):
        count = len(slides) - len(extra)
        log.info("noisy student: %d slides of measured sections left out of the pool", count)
    slides = extra
    if not slides and GAPS not in student.sources:
        raise InputError(
            f"[student] sources = {', '.join(student.sources)}: no tile to learn from: the sheet "
            "has no unmeasured section, or the folders hold slides of measured sections alone; "
            "add gaps, or other slides"
        )
    if not slides:
        return bench
    steps = [pitch_um(s) / 2 for s in sections if s.measured]
    step_um = float(np.median(steps))
    tiles, seed = student.tiles, bench.config.seed
    pool = [
        Unlabelled(slide, tissue_points(slide, step_um, tiles=tiles, seed=seed)) for slide in slides
    ]
    log.info(
        "noisy student: %d slides without measurement, %d tiles",
        len(pool),
        sum(len(tiles.coords) for tiles in pool),
    )
    return replace(bench, pool=tuple(pool))


def _slides_of_folders(student: StudentConfig) -> list[Slide]:
    """Every slide in the folders among the sources.

    Raises
    ------
    InputError
        If a source is neither a word nor a folder, or holds files that are no slides, or slides
        of unknown mpp.
    """
    problems, slides = Problems("[student] sources"), []
    for source in student.sources:
        if source in (GAPS, SECTIONS):
            continue
        folder = Path(source).expanduser()
        if not folder.is_dir():
            problems.add(f"{source}: no such folder; give gaps, sections, or a folder of slides")
            continue
        files = sorted(p for p in folder.iterdir() if p.is_file() and p.name[0] != ".")
        if not files:
            problems.add(f"{source}: holds no file; give a folder of slides")
        for path in files:
            try:
                slide = open_slide(path)
                slide.require_mpp()
                slides.append(slide)
            except InputError as error:
                problems.add(str(error))
    problems.raise_if_any()
    return slides


def controls(bench: Workbench) -> dict[str, Workbench]:
    """Benches of what a student is compared with, by the name of the control.

    Pseudo-labels that teach nothing have no gate; beside them stands the student without its.
    """
    config = bench.config
    changes: dict[str, dict[str, Any]] = {f"{name} labels": {"labels": name} for name in CONTROLS}
    if config.student.gate:
        changes = {UNGATED: {"gate": False}, **changes}
    return {
        name: replace(
            bench,
            config=config.model_copy(update={"student": config.student.model_copy(update=change)}),
        )
        for name, change in changes.items()
    }


def control_label(label: str, control: str) -> str:
    """Name of a student's control in tables."""
    return f"{label}, {control}"


def is_control(label: str) -> bool:
    """Whether a name in tables is that of a student's control."""
    endings = (UNGATED, *(f"{name} labels" for name in CONTROLS))
    return any(label.endswith(f", {ending}") for ending in endings)


def paired_gains(scores: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """What students gain over their teachers, section by section.

    Parameters
    ----------
    scores : DataFrame
        Tidy scores with `model`, `section`, and `pearson` or `accuracy`.
    pairs : sequence of (student, teacher)
        Names in `model`.

    Returns
    -------
    list of dict
        `student`, `teacher`, `score` (what was compared), `gain` (mean over sections), `low` and
        `high` (95 % t interval over sections, None with one), `better` and `sections` (counts).
    """
    column = next(name for name in COMPARED if name in scores)
    # gene by gene, so that one that is constant for one of the two counts for neither
    places = [name for name in ("section", "gene") if name in scores]
    values = scores.pivot(index=places, columns="model", values=column)
    found = []
    for student, teacher in pairs:
        if student not in values or teacher not in values:
            continue
        gains = (values[student] - values[teacher]).dropna()
        gain = gains.groupby(level="section", sort=False).mean().to_numpy()
        if not len(gain):
            continue
        half = None
        if len(gain) > 1:
            spread = float(gain.std(ddof=1)) / np.sqrt(len(gain))
            half = float(stats.t.ppf((1 + LEVEL) / 2, len(gain) - 1)) * spread
        mean = float(gain.mean())
        found.append(
            {
                "student": student,
                "teacher": teacher,
                "score": column,
                "gain": round(mean, 4),
                "low": None if half is None else round(mean - half, 4),
                "high": None if half is None else round(mean + half, 4),
                "better": int((gain > 0).sum()),
                "sections": len(gain),
            }
        )
    return found
