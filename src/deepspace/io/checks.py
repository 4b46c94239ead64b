"""The classic mistakes of a section, each with its own message: file, value, cure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import Problems
from deepspace.io import scale
from deepspace.io.genes import gene_name_problems
from deepspace.io.parts import clip_list
from deepspace.io.placement import place_problems

if TYPE_CHECKING:
    from deepspace.io.section import Section

# a wrong mpp is a wrong field of view: beyond this it is an error, up to it a note
_PITCH_TOLERANCE = 0.25
# spot_diameter_fullres by nominal diameter: 65/55 and the 70 to 78 um of CytAssist are usual
_DIAMETER_RATIO = (0.75, 1.6)
# file systems take 255 bytes, and endings are added
_LONGEST_ID = 150


def validate(section: Section) -> list[str]:
    """List everything that would make a model of this section wrong.

    Returns
    -------
    One message per mistake, empty when all is well.
    """
    return [
        *_count_problems(section),
        *_spot_problems(section),
        *_scale_problems(section),
        *place_problems(section),
    ]


def check_cohort(sections: Sequence[Section]) -> None:
    """Stop if sections do not go together; `validate` looks at each of them.

    Raises
    ------
    InputError
        If ids repeat or name no file, a depth is no number, or gene names do not match between
        sections.
    """
    problems = Problems("the sections do not go together")
    names = [section.section for section in sections]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.add(f"section {name!r} occurs more than once; give unique ids")
    for name in names:
        for message in section_id_problems(name):
            problems.add(f"section {name!r}: {message}")
    for section in sections:
        if section.z_um is not None and not np.isfinite(section.z_um):
            problems.add(f"section {section.section!r}: z_um is {section.z_um}; give um, or None")
    for message in _repeated_sections(sections):
        problems.add(message)
    for message in gene_name_problems(sections):
        problems.add(message)
    problems.raise_if_any()


def section_id_problems(name: str) -> list[str]:
    """What is wrong with a section id: it names files, and groups inside them."""
    if not name.strip():
        return ["a section id is empty; give one"]
    if "/" in name or name.startswith("."):
        return ["a section id holds no / and does not start with a dot; rename it"]
    if len(name.encode()) > _LONGEST_ID:
        return [f"a section id names files: at most {_LONGEST_ID} bytes; shorten it"]
    return []


def _repeated_sections(sections: Sequence[Section]) -> Iterator[str]:
    """Find one section under two ids: it would be tested on what it was trained on."""
    seen: list[tuple[str, str, set[tuple[int, int]]]] = []
    for section in sections:
        if section.counts is None:
            continue
        digest = section.slide.content_hash()
        places = {(round(float(x)), round(float(y))) for x, y in section.coords}
        for name, other, known in seen:
            # several sections may share a scan, at different places
            if other == digest and len(places & known) > 0.1 * min(len(places), len(known)):
                yield (
                    f"sections {name} and {section.section} have the same image and the same "
                    "spots; give each section once"
                )
        seen.append((section.section, digest, places))


def _count_problems(section: Section) -> Iterator[str]:
    counts = section.counts
    if counts is None:
        return
    where = section.sources.get("counts", section.slide.path)
    if counts.n_obs == 0 or counts.n_vars == 0:
        yield (
            f"{where}: empty section: {counts.n_obs} spots in tissue, {counts.n_vars} genes; give "
            "the counts and spots of one and the same section"
        )
        return
    yield from _value_problems(counts, where)
    if not counts.obs_names.is_unique:
        twice = [str(name) for name in counts.obs_names[counts.obs_names.duplicated()].unique()]
        yield (
            f"{where}: duplicate barcodes: {len(twice)} occur more than once ({clip_list(twice)}); "
            "keep one row per spot, and one section per file"
        )
    if not counts.var_names.is_unique:
        twice = [str(name) for name in counts.var_names[counts.var_names.duplicated()].unique()]
        yield f"{where}: duplicate gene names ({clip_list(twice)}); make them unique"


def _value_problems(counts: AnnData, where: Path) -> Iterator[str]:
    values = np.asarray(counts.X.data)
    if not np.isfinite(values).all():
        bad = int((~np.isfinite(values)).sum())
        yield f"{where}: {bad} counts are NaN or infinite; export the raw counts again"
        return
    if (values < 0).any():
        yield (
            f"{where}: negative counts (lowest {values.min():g}): scaled or centred values; give "
            "the raw counts"
        )
        return
    if not (values > 0).any():
        yield f"{where}: empty section: all counts are zero; give the counts of this section"
        return
    broken = values[values % 1 != 0]
    if broken.size:
        yield (
            f"{where}: normalised instead of raw counts ({broken.size / values.size:.0%} of the "
            f"values are no whole numbers, such as {broken[0]:.4g}); give the raw counts (for an "
            ".h5ad in X, layers['counts'] or raw)"
        )


def _spot_problems(section: Section) -> Iterator[str]:
    spots = section.spots
    if spots is None:
        return
    where = section.sources.get("spots") or section.sources.get("counts", section.slide.path)
    if not np.isfinite(spots[["x", "y"]].to_numpy(np.float64)).all():
        yield f"{where}: places of spots are NaN or infinite; export the spots again"
    repeated = spots.index[spots.index.duplicated()].unique()
    # a barcode that is twice in the counts has been reported there
    if len(repeated) and (section.counts is None or section.counts.obs_names.is_unique):
        names = [str(name) for name in repeated]
        yield f"{where}: duplicate barcodes ({clip_list(names)}); keep one row per spot"
    places = spots.loc[spots[keys.IN_TISSUE].to_numpy(dtype=bool), ["x", "y"]]
    if len(places) > 1 and places.duplicated().mean() > 0.5:
        yield f"{where}: most spots lie at the same place; export their coordinates again"
    if section.measured and not spots[keys.IN_TISSUE].any():
        yield f"{where}: no spot is in tissue; check the column in_tissue (or selected)"


def _scale_problems(section: Section) -> Iterator[str]:
    mpp, spots = section.slide.mpp, section.spots
    if mpp is None:
        yield (
            f"{section.slide.path}: missing mpp: neither the image's metadata nor the spots tell "
            "the size of a pixel; give micrometres per pixel in the sheet's column mpp"
        )
    if spots is None or section.spot_pitch_um is None:
        return
    by_array = scale.array_mpp(spots, section.spot_pitch_um)
    if by_array is None:
        return
    where = section.sources.get("spots") or section.sources.get("counts", section.slide.path)
    if mpp is not None and abs(mpp / by_array - 1) > _PITCH_TOLERANCE:
        apart = section.spot_pitch_um * mpp / by_array
        yield (
            f"{where}: wrong mpp: with {mpp:.4g} um/px ({section.slide.mpp_source}) neighbouring "
            f"spots would be {apart:.0f} um apart, they are {section.spot_pitch_um:g} um: the "
            f"spots say {by_array:.4g} um/px; correct the mpp, or give the places in "
            "full-resolution pixels"
        )
    yield from _diameter_problems(section, by_array)


def _diameter_problems(section: Section, by_array: float) -> Iterator[str]:
    diameter_px = section.scalefactors.get("spot_diameter_fullres")
    nominal = section.spot_diameter_um
    if not diameter_px or not nominal:
        return
    diameter = diameter_px * by_array
    if not _DIAMETER_RATIO[0] < diameter / nominal < _DIAMETER_RATIO[1]:
        where = section.sources.get("scalefactors", section.slide.path)
        yield (
            f"{where}: wrong scale factors: spot_diameter_fullres is {diameter_px:.4g} px, that is "
            f"{diameter:.0f} um at the spots' pitch, and spots are {nominal:g} um; the scale "
            "factors and the places of the spots are of different runs, or the places were scaled"
        )
