"""`inspect`: what is in these files, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from deepspace.core.errors import InputError
from deepspace.core.files import check_output
from deepspace.core.progress import track
from deepspace.data.tissue import tissue_mask
from deepspace.io.checks import check_cohort
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.output.plot import overview, save


def inspect(path: Path | str, out: Path | str, *, overwrite: bool = False) -> dict[str, Any]:
    """Describe every section of a cohort and draw it.

    Parameters
    ----------
    path : Path or str
        Cohort sheet, Space Ranger ``outs/`` folder, or anything `read_section` reads.
    out : Path or str
        Folder for one overview PNG a section.
    overwrite : bool
        Replace pictures that exist.

    Returns
    -------
    dict
        ``sections``: one description each; ``problems``: everything wrong, empty if nothing.
    """
    path, out = Path(path), Path(out)
    sections = read_sheet(path)
    for section in sections:
        check_output(out / f"{section.section}.png", overwrite=overwrite)
    described = []
    for section in track(sections, total=len(sections), text="inspecting"):
        facts = section.describe()
        facts["overview"], more = _draw(section, out)
        facts["problems"] += more
        described.append(facts)
    problems = [
        f"section {facts['section']}: {fault}" for facts in described for fault in facts["problems"]
    ]
    try:
        check_cohort(sections)
    except InputError as error:
        problems.append(str(error))
    return {"path": str(path), "sections": described, "problems": problems}


def _draw(section: Section, out: Path) -> tuple[str | None, list[str]]:
    """Overview picture of one section, where there is a scale, and what the mask shows wrong."""
    counts = section.counts
    unusable = counts is not None and (counts.n_obs == 0 or not np.isfinite(counts.X.data).all())
    if section.slide.mpp is None or unusable:
        return None, []
    tissue = tissue_mask(section.slide)
    problems = []
    if not tissue.mask.any():
        problems.append(f"{section.slide.path}: no tissue found; is it the H&E image, and the mpp?")
    path = out / f"{section.section}.png"
    save(overview(section, tissue), path)
    return str(path), problems
