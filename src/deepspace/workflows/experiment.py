"""What `complete` starts from: a cohort, its failed spots, the points to predict."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp

from deepspace.core import keys
from deepspace.core.config import Config
from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.data.failed import FAILED, find_failed, read_failed
from deepspace.data.targets import check_genes
from deepspace.io.section import Section
from deepspace.models.unlabelled import pitch_um
from deepspace.workflows.cohort import (
    Cohort,
    cohort_root,
    read_cohort,
    require_measured,
    source_files,
)
from deepspace.workflows.points import Points, points_at


@dataclass(frozen=True)
class Experiment:
    """A cohort, and what of it can be learnt from.

    Attributes
    ----------
    sections : list of Section
        As read.
    good : list of Section
        The same with the counts of the spots that did not fail.
    failed : dict
        Per measured section, the table of `find_failed`.
    points : dict
        What is to be predicted, per section and kind of points.
    config : Config
        With a split that says what an unmeasured section is worth.
    root : Path
        What paths in the provenance are relative to.
    files : list of Path
        All that was read.
    """

    sections: list[Section]
    good: list[Section]
    failed: dict[str, pd.DataFrame]
    points: dict[tuple[str, str], Points]
    config: Config
    root: Path
    files: list[Path]

    @classmethod
    def read(cls, sheet: Cohort, config: Config, failed: Path | None) -> Experiment:
        """Read and check a cohort, find the spots that failed and the points to predict.

        Raises
        ------
        InputError
            If the cohort is wrong, or there is no point of a kind on a section: all listed.
        """
        sections = read_cohort(sheet)
        require_measured(sections)
        given = read_failed(failed, sections) if failed is not None else {}
        tables = {
            s.section: find_failed(s, config.qc, config.failed, given.get(s.section, ()))
            for s in sections
            if s.measured
        }
        own = [Path(sheet)] if isinstance(sheet, str | Path) and Path(sheet).is_file() else []
        files = [*source_files(sections), *own, *([] if failed is None else [failed])]
        _some_left(tables, config)
        good = [_good(section, tables) for section in sections]
        check_genes(good, config.target)
        return cls(
            sections=sections,
            good=good,
            failed=tables,
            points=_all_points(sections, config.complete.at),
            config=_scored_by_section(sections, config),
            root=cohort_root(sheet),
            files=files,
        )

    def fingerprint(self) -> list[dict[str, Any]]:
        """Everything that was read of each section, in a form that tells any change."""
        return [
            {
                "section": s.section,
                "patient": s.patient,
                "platform": s.platform,
                "z_um": s.z_um,
                "spot_um": [s.spot_diameter_um, s.spot_pitch_um],
                "mpp": s.slide.mpp,
                "slide": s.slide.content_hash(),
                "data": _digest(s),
            }
            for s in self.sections
        ]


def _some_left(tables: dict[str, pd.DataFrame], config: Config) -> None:
    """Stop if no spot of a section is left to learn from."""
    problems = Problems("failed spots")
    for name, table in tables.items():
        if table[FAILED].all():
            problems.add(
                f"all {len(table)} spots of section {name} count as failed, by [qc] min_counts = "
                f"{config.qc.min_counts:g} and min_genes = {config.qc.min_genes:g}, [failed] or "
                "the table given with --failed; change these, or leave its counts out of the sheet"
            )
    problems.raise_if_any()


def _good(section: Section, tables: dict[str, pd.DataFrame]) -> Section:
    table = tables.get(section.section)
    if table is None:
        return section
    names = section.require_counts().obs_names
    return section.subset(np.asarray(names.isin(table.index[~table[FAILED]])))


def _scored_by_section(sections: Sequence[Section], config: Config) -> Config:
    """Scores of serial sections are asked for: not of patients, which have no neighbours at all."""
    serial = [s.patient for s in sections if s.measured and s.z_um is not None]
    if config.split.how != "auto" or len(set(serial)) == len(serial):
        return config
    log.info("scores: one section held out at a time, the others of its patient stay measured")
    return config.with_values(split={"how": "section"})


def _all_points(sections: Sequence[Section], wanted: Sequence[str]) -> dict[Any, Points]:
    """Points of every kind on every section."""
    measured = [pitch_um(s) for s in sections if s.measured]
    stride = f"grid:{np.median(measured):g}" if measured else ""
    problems, found = Problems("points to predict"), {}
    for section in sections:
        for at in _kinds(section, wanted, stride):
            try:
                found[section.section, at] = points_at(section, at)
            except InputError as error:
                problems.add(f"{section.section}, --at {at}: {error}")
    problems.raise_if_any()
    return found


def _kinds(section: Section, wanted: Sequence[str], stride: str) -> list[str]:
    """Where to predict on a section; one without spots has a grid at their pitch instead."""
    if section.spots is not None or section.measured or not stride:
        return list(wanted)
    instead = [stride if at == "spots" else at for at in wanted if at != "between"]
    if instead != list(wanted):
        log.info("section %s has no spots: predicted at %s", section.section, ", ".join(instead))
    return list(dict.fromkeys(instead or [stride]))


def _digest(section: Section) -> str:
    """SHA-256 of the counts, labels and places of the spots."""
    digest = hashlib.sha256()
    if section.spots is not None:
        digest.update(section.spots.to_csv().encode())
    if section.counts is not None:
        counts = section.counts
        X = sp.csr_matrix(counts.X).astype(np.float64)
        X.sort_indices()
        names = [*counts.obs_names, "", *counts.var_names]
        if keys.CLUSTER in counts.obs:
            names += ["", *counts.obs[keys.CLUSTER].astype(str)]
        digest.update("\n".join(names).encode())
        for array in (section.coords, X.data, X.indices, X.indptr):
            digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
