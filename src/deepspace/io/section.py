"""A section: one slide, the counts measured on it, and where they lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io import scale
from deepspace.io.checks import validate
from deepspace.io.detect import read_parts
from deepspace.io.h5ad import from_anndata, places_from_anndata
from deepspace.io.parts import Parts, Request
from deepspace.io.slide import Slide, open_slide

__all__ = ["Ids", "Section", "assemble", "read_section", "section_from_anndata", "validate"]


@dataclass
class Section:
    """One tissue section: its image and, where measured, its counts.

    Attributes
    ----------
    section, patient
        Identifiers, always strings.
    slide
        The full-resolution image.
    platform
        "visium", "visium_hd", "st", "h5ad", "hest", "spatialdata" or "image".
    counts
        Raw counts of the spots in tissue as CSR, or None for an unmeasured section.
        obs_names are barcodes; `obsm['spatial']` is (n, 2) float64 `x, y` in full-resolution
        px; obs has `in_tissue` and, where known, `array_row`, `array_col`, `cluster`;
        var_names are unique gene symbols, `var['gene_ids']` their identifiers where known.
    spots
        All spots of the slide, also those without counts: index barcode; `x`, `y` (px),
        `in_tissue` and, where known, `array_row`, `array_col`.
    z_um
        Depth in the block, um.
    spot_diameter_um, spot_pitch_um
        Nominal size of a spot and distance between neighbours, um.
    scalefactors
        Numbers of Space Ranger's scalefactors_json.json.
    sources
        Role -> file that was read, for provenance.
    notes
        What a user should know and can live with.
    clusters_of_run
        Whether `obs['cluster']` numbers the clusters of the section's own Space Ranger run, so
        that another section's cluster 1 is another thing.
    """

    section: str
    patient: str
    slide: Slide
    platform: str
    counts: AnnData | None = None
    spots: pd.DataFrame | None = None
    z_um: float | None = None
    spot_diameter_um: float | None = None
    spot_pitch_um: float | None = None
    scalefactors: dict[str, float] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    clusters_of_run: bool = False

    @property
    def measured(self) -> bool:
        """Whether the section has counts."""
        return self.counts is not None

    @property
    def coords(self) -> npt.NDArray[np.float64]:
        """Places of the measured spots, (n, 2) float64 `x, y`, full-resolution px.

        Raises
        ------
        InputError
            If the section has no counts.
        """
        return np.asarray(self.require_counts().obsm[keys.SPATIAL], np.float64)

    def require_counts(self) -> AnnData:
        """Return the counts.

        Raises
        ------
        InputError
            If the section has none.
        """
        if self.counts is None:
            raise InputError(
                f"section {self.section}: has no counts; give counts and spots, spaceranger or "
                "h5ad in the sheet, or choose a measured section"
            )
        return self.counts

    def subset(self, mask: npt.NDArray[Any]) -> Section:
        """Return the section with the counts of some spots; the slide is shared.

        Parameters
        ----------
        mask
            (n,) bool, or integer positions, over the rows of `counts`.
        """
        return replace(self, counts=self.require_counts()[mask].copy(), notes=list(self.notes))

    def without_counts(self) -> Section:
        """Return the section as if it had never been measured; its spots stay."""
        return replace(self, counts=None, notes=list(self.notes))

    def describe(self) -> dict[str, Any]:
        """Say what was read, in plain values that JSON can hold.

        Returns
        -------
        Keys `section`, `patient`, `platform`, `image`, `image_size` (width, height in px),
        `mpp`, `mpp_source`, `z_um`, `spots`, `spots_in_tissue`, `spots_measured`,
        `spot_diameter_um`, `spot_diameter_px`, `spot_pitch_um`, `genes`, `median_umis`,
        `median_genes`, `clusters`, `notes`, `problems`; None where not known.
        """
        slide, mpp = self.slide, self.slide.mpp
        diameter = self.spot_diameter_um
        return {
            "section": self.section,
            "patient": self.patient,
            "platform": self.platform,
            "image": str(slide.path),
            "image_size": [slide.width, slide.height],
            "mpp": mpp,
            "mpp_source": slide.mpp_source,
            "z_um": self.z_um,
            "spots": None if self.spots is None else len(self.spots),
            "spots_in_tissue": None
            if self.spots is None
            else int(self.spots[keys.IN_TISSUE].sum()),
            "spot_diameter_um": diameter,
            "spot_diameter_px": diameter / mpp if diameter and mpp else None,
            "spot_pitch_um": self.spot_pitch_um,
            **_describe_counts(self.counts),
            "notes": [*self.notes, *slide.notes],
            "problems": validate(self),
        }


@dataclass(frozen=True)
class Ids:
    """Who a section is: identifier, patient, depth (um)."""

    section: str
    patient: str
    z_um: float | None = None


def assemble(parts: Parts, ids: Ids, *, image: Path | None, mpp: float | None) -> Section:
    """Open the image, settle the scale and make the section.

    The scale is the first one known of: the number given by the user; the files of the
    platform (Visium HD's `microns_per_pixel`; the pitch of the array, which is manufactured
    to the micrometre and fitted over the whole slide; HEST's estimate); the image's metadata
    (often missing, wrong after export or resizing). Others that differ by more than 5 % are
    noted.

    Raises
    ------
    InputError
        If there is no image, or it cannot be opened.
    """
    picture = image if image is not None else parts.image
    if picture is None:
        raise InputError(f"section {ids.section}: no image; give its full-resolution H&E image")
    slide = picture if isinstance(picture, Slide) else open_slide(picture)
    notes = list(parts.notes)
    scales: dict[str, float] = dict(parts.scales)
    if mpp is not None:
        scales = {"given": mpp, **scales}
    if slide.mpp is not None:
        scales[f"metadata of {slide.path.name}"] = slide.mpp
    if scales:
        source, chosen = next(iter(scales.items()))
        slide = slide.with_mpp(chosen, source)
        notes += [*_disagreements(scales), *_too_large(slide, chosen, source)]
    return Section(
        section=ids.section,
        patient=ids.patient,
        slide=slide,
        platform=parts.platform,
        counts=parts.counts,
        spots=parts.spots,
        z_um=ids.z_um,
        spot_diameter_um=parts.spot_diameter_um,
        spot_pitch_um=parts.spot_pitch_um,
        scalefactors=parts.scalefactors,
        sources={**parts.sources, "image": slide.path},
        notes=notes,
        clusters_of_run=parts.clusters_of_run,
    )


def read_section(
    path: Path | str,
    *,
    image: Path | str | None = None,
    mpp: float | None = None,
    section: str | None = None,
    patient: str | None = None,
    z_um: float | None = None,
    bin_um: int | None = None,
    raw: bool = False,
) -> Section:
    """Read one section, whatever wrote it.

    Parameters
    ----------
    path
        A Space Ranger `outs/` folder; a Visium HD `outs/`, `binned_outputs/` or
        `square_XXXum/` folder; a HEST folder or its `st/ID.h5ad`; an AnnData `.h5ad` with
        `obsm['spatial']`; a SpatialData `.zarr`.
    image
        Full-resolution H&E image; found beside the files where that is unambiguous.
    mpp
        Micrometres per pixel of the image; outranks every other source.
    section, patient
        Identifiers; the default is the sample's name, for both.
    z_um
        Depth in the block, um.
    bin_um
        Bin of Visium HD, um (default 8).
    raw
        Read Space Ranger's raw instead of its filtered matrix.

    Returns
    -------
    Section
        As read; `validate` says what is wrong with it.

    Raises
    ------
    InputError
        If a file is missing or cannot be read.

    Examples
    --------
    >>> read_section("no/such/outs")
    Traceback (most recent call last):
    ...
    deepspace.core.errors.InputError: no/such/outs: no such file or folder; check the path
    """
    picture = None if image is None else Path(image)
    parts, name = read_parts(Path(path), Request(section, picture, bin_um, raw))
    ids = Ids(section or name, patient or section or name, z_um)
    return assemble(parts, ids, image=picture, mpp=mpp)


def section_from_anndata(
    adata: AnnData,
    image: Path | str | Slide,
    *,
    section: str = "section",
    patient: str | None = None,
    z_um: float | None = None,
    mpp: float | None = None,
    measured: bool = True,
) -> Section:
    """Make a section of an AnnData object in memory and its image.

    Parameters
    ----------
    adata
        Raw counts in `X`, `layers['counts']` or `raw`; `obsm['spatial']` (n, 2), `x, y` in
        full-resolution pixels of `image`.
    image
        Full-resolution H&E image, or a slide that is open.
    section, patient
        Identifiers; the patient's default is the section's.
    z_um
        Depth in the block, um.
    mpp
        Micrometres per pixel of the image; outranks every other source.
    measured
        Whether its counts are taken, a copy; else the section has its places alone.

    Returns
    -------
    Section

    Raises
    ------
    InputError
        If the object has no counts or places, or the image cannot be opened.
    """
    take = from_anndata if measured else places_from_anndata
    parts = take(adata, Path(f"AnnData of {section}"), "h5ad")
    if isinstance(image, Slide):
        parts.image = image
    picture = None if isinstance(image, Slide) else Path(image)
    return assemble(parts, Ids(section, patient or section, z_um), image=picture, mpp=mpp)


def _describe_counts(counts: AnnData | None) -> Mapping[str, Any]:
    names = ("spots_measured", "genes", "median_umis", "median_genes", "clusters")
    if counts is None:
        return dict.fromkeys(names)
    umis = np.asarray(counts.X.sum(axis=1)).ravel()
    genes = np.asarray((counts.X > 0).sum(axis=1)).ravel()
    clusters = counts.obs.get(keys.CLUSTER)
    values = (
        counts.n_obs,
        counts.n_vars,
        float(np.median(umis)) if umis.size else None,
        float(np.median(genes)) if genes.size else None,
        None if clusters is None else int(clusters.nunique()),
    )
    return dict(zip(names, values, strict=True))


def _disagreements(scales: dict[str, float]) -> list[str]:
    (source, chosen), *others = scales.items()
    return [
        f"mpp: {chosen:.4g} ({source}) is used; {other} says {value:.4g}, "
        f"{abs(value / chosen - 1):.0%} apart"
        for other, value in others
        if abs(value / chosen - 1) > scale.TOLERANCE
    ]


def _too_large(slide: Slide, mpp: float, source: str) -> list[str]:
    side_mm = max(slide.width, slide.height) * mpp / 1000
    if side_mm <= scale.LARGEST_MM:
        return []
    return [
        f"mpp: with {mpp:.4g} um/px ({source}) the image would be {side_mm:.0f} mm long, "
        "a glass slide is 76 mm; check it"
    ]
