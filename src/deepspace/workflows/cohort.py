"""Reading a cohort and checking it before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from deepspace.core.config import Config
from deepspace.core.errors import InputError, Problems
from deepspace.core.progress import log
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import apply_qc
from deepspace.io.checks import check_cohort, validate
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet


def default_cache() -> ArrayCache:
    """Feature cache in ``$DEEPSPACE_CACHE``, else in the user's cache folder."""
    folder = os.environ.get("DEEPSPACE_CACHE")
    return ArrayCache(Path(folder) if folder else user_cache_path("deepspace"))


def read_cohort(sheet: Path) -> list[Section]:
    """Read every section of a sheet and refuse the classic mistakes, all listed at once."""
    sections = read_sheet(sheet)
    problems = Problems(str(sheet))
    for section in sections:
        for fault in validate(section):
            problems.add(fault)
    problems.raise_if_any()
    check_cohort(sections)
    return sections


def measured_after_qc(sections: Sequence[Section], config: Config) -> list[Section]:
    """Measured sections reduced to good spots; what was dropped is logged."""
    for section in sections:
        for note in section.notes:
            log.info("note: section %s: %s", section.section, note)
    if not any(s.measured for s in sections):
        raise InputError(
            "no section of the sheet has counts: at least one row needs counts and spots, "
            "spaceranger or h5ad to learn from"
        )
    kept, report = apply_qc(sections, config.qc)
    for line in report:
        log.info(line)
    return kept
