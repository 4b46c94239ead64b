"""Reading a cohort and checking it before any work is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from platformdirs import user_cache_path

from deepspace.core.errors import InputError, Problems
from deepspace.core.files import refuse_inputs
from deepspace.core.progress import log
from deepspace.data.cache import ArrayCache
from deepspace.data.patches import PatchSpec, read_all, white_patches
from deepspace.data.targets import LEAST_SPOTS, apply_qc, check_genes
from deepspace.io.checks import check_cohort, validate
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.models import distributed
from deepspace.models.encoders import device_of
from deepspace.models.registry import Workbench
from deepspace.workflows.semi import with_pool
from deepspace.workflows.stacking import with_stack

# enough pixels a patch to tell glass from tissue
WHITE_PX = 64


def default_cache() -> ArrayCache:
    """Feature cache in ``$DEEPSPACE_CACHE``, else in the user's cache folder."""
    folder = os.environ.get("DEEPSPACE_CACHE")
    return ArrayCache(Path(folder) if folder else user_cache_path("deepspace"))


# a sheet on disk, or sections in memory
Cohort = Path | str | Sequence[Section]


def cohort_root(cohort: Cohort) -> Path:
    """Folder that paths in the provenance are relative to: the sheet's, or the current one."""
    return Path(cohort).absolute().parent if isinstance(cohort, str | Path) else Path.cwd()


def source_files(sections: Sequence[Section]) -> list[Path]:
    """Every file that the sections were read from."""
    return [path for section in sections for path in section.sources.values()]


@dataclass(frozen=True)
class Prepared:
    """A cohort to learn from: good measured spots, benches that fit them, what was dropped."""

    sections: list[Section]
    benches: list[Workbench]
    report: list[str]


def prepare_cohort(
    cohort: Cohort, benches: Sequence[Workbench], models: Sequence[str], out: Path | None
) -> Prepared:
    """Read and check a cohort, and keep its good measured spots; what was dropped is told.

    Raises
    ------
    InputError
        If the cohort is wrong, `out` is or holds one of its files, or a model cannot be built.
    """
    # every process takes its own GPU before anything is put on one
    distributed.setup(device_of(benches[0].config.device))
    # weights that are missing are told before an hour of reading
    for bench in benches:
        if bench.config.encoder.fov_spots is None:
            bench.check(models)
    sections = read_cohort(cohort)
    if out is not None:
        sheet = [Path(cohort)] if isinstance(cohort, str | Path) else []
        refuse_inputs(out, [*source_files(sections), *sheet])
    fitting = [_in_micrometres(bench, sections) for bench in benches]
    for bench in fitting:
        bench.check(models)
    kept, report = measured_after_qc(sections, fitting[0])
    check_genes(kept, fitting[0].config.target)  # before anything that takes long
    fitting = [with_pool(bench, sections, models) for bench in fitting]
    fitting = [with_stack(bench, sections) for bench in fitting]
    return Prepared(kept, fitting, report)


def _in_micrometres(bench: Workbench, sections: Sequence[Section]) -> Workbench:
    """The same bench, fields of view given in spot diameters turned to micrometres."""
    factors = bench.config.encoder.fov_spots
    if factors is None:
        return bench
    found = {s.section: s.spot_diameter_um for s in sections if s.measured}
    sizes = {size for size in found.values() if size is not None}
    if len(sizes) != 1 or None in found.values():
        listed = ", ".join(f"{k}: {v or 'unknown'}" for k, v in found.items())
        raise InputError(
            f"[encoder] fov_spots needs one spot diameter for all sections ({listed}); give "
            "fov_um in micrometres instead"
        )
    fov_um = tuple(factor * size for factor in factors for size in sizes)
    encoder = bench.config.encoder.model_copy(update={"fov_um": fov_um, "fov_spots": None})
    return replace(bench, config=bench.config.model_copy(update={"encoder": encoder}))


def read_cohort(cohort: Cohort) -> list[Section]:
    """Sections of a cohort; the classic mistakes are refused, all listed at once."""
    if isinstance(cohort, str | Path):
        sections, problems = read_sheet(cohort), Problems(str(cohort))
    else:
        sections, problems = list(cohort), Problems("the sections")
    for section in sections:
        for fault in validate(section):
            problems.add(fault)
    problems.raise_if_any()
    check_cohort(sections)
    return sections


def require_measured(sections: Sequence[Section]) -> None:
    """Stop if there is nothing to learn from."""
    if not any(s.measured for s in sections):
        raise InputError(
            "no section of the sheet has counts: at least one row needs counts and spots, "
            "spaceranger or h5ad to learn from"
        )


def measured_after_qc(
    sections: Sequence[Section], bench: Workbench
) -> tuple[list[Section], list[str]]:
    """Measured sections reduced to good spots, and one line a section about what was dropped."""
    for section in sections:
        for note in section.notes:
            log.info("note: section %s: %s", section.section, note)
    require_measured(sections)
    kept, report = apply_qc(sections, bench.config.qc)
    if bench.config.qc.drop_white:
        kept, more = _without_white(kept, bench)
        report += more
    for line in report:
        log.info(line)
    return kept, report


def _without_white(
    sections: Sequence[Section], bench: Workbench
) -> tuple[list[Section], list[str]]:
    """Sections without spots whose patch is mostly glass, in the encoder's narrowest view."""
    kept, report = [], []
    specs = bench.extractor(bench.config.encoder).encoder.specs
    spec = PatchSpec(min(s.fov_um for s in specs), WHITE_PX)
    for section in sections:
        patches = read_all(section.slide, section.coords, spec, cache=bench.cache)
        white = white_patches(patches)
        report.append(f"{section.section}: {int(white.sum())} spots on glass left out")
        left = int((~white).sum())
        if left < LEAST_SPOTS:
            raise InputError(
                f"section {section.section}: only {left} spots are not on glass; turn [qc] "
                "drop_white off, or leave the section's counts out of the sheet"
            )
        kept.append(section.subset(~white))
    return kept, report
