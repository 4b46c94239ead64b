"""Whether the spots lie where the image has them: resolution, axes, bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from skimage.filters import threshold_otsu

from deepspace.core import keys
from deepspace.io import scale

if TYPE_CHECKING:
    from deepspace.io.section import Section
    from deepspace.io.slide import Slide

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.bool_]

# longer sides of the pictures that Space Ranger makes (Visium; HD and CytAssist)
_PICTURES = {600: "lowres", 2000: "hires", 4000: "hires", 6000: "hires"}
_FULL_SIZE = "give the image that was passed to spaceranger count --image"
_THUMBNAIL_PX = 1024
# share of spots on tissue by which the swapped axes must fit better to be believed
_CLEARLY = 0.25


def place_problems(section: Section) -> Iterator[str]:
    """Yield what is wrong between the spots and the image: one cause, the likeliest."""
    coords = _coords(section)
    if coords is None or not len(coords):
        return
    slide = section.slide
    outside = ~_inside(coords, slide)
    if (picture := _picture_by_name_or_size(section, outside)) is not None:
        yield picture
    elif not outside.any():
        yield from _axes_and_size(section, coords)
    elif _inside(coords[:, ::-1], slide).all():
        yield _swapped(section, f"{outside.sum()} spots lie outside the image, none if swapped")
    elif (kind := _picture_by_content(section, coords)) is not None:
        yield _picture(section, kind)
    else:
        yield _outside(section, coords, outside)


def _axes_and_size(section: Section, coords: Floats) -> Iterator[str]:
    if (why := _axes_reason(section, coords)) is not None:
        yield _swapped(section, why)
    yield from _resized(section)


def _coords(section: Section) -> Floats | None:
    """Places that must be on the image: of the measured spots, else of those in tissue."""
    if section.counts is not None:
        return section.coords
    if section.spots is None:
        return None
    table = section.spots
    return table.loc[table[keys.IN_TISSUE].to_numpy(bool), ["x", "y"]].to_numpy(np.float64)


def _inside(coords: Floats, slide: Slide) -> Places:
    inside: Places = np.all((coords >= 0) & (coords <= [slide.width, slide.height]), axis=1)
    return inside


def _picture_by_name_or_size(section: Section, outside: Places) -> str | None:
    """Recognise Space Ranger's own picture given for the full-resolution image."""
    slide, name = section.slide, section.slide.path.name.lower()
    for kind in ("hires", "lowres"):
        if f"tissue_{kind}" in name:
            return _picture(section, kind)
    if "cytassist" in name:
        return f"{slide.path}: is the CytAssist picture, not the H&E image; {_FULL_SIZE}"
    longer = max(slide.width, slide.height)
    if longer not in _PICTURES or not section.platform.startswith("visium"):
        return None
    factor = section.scalefactors.get("tissue_hires_scalef")
    # the full-resolution image has the size of a picture only after the factor
    wrong = outside.any() if factor is None else not _is_full(longer, factor)
    return _picture(section, _PICTURES[longer]) if wrong else None


def _is_full(longer: int, factor: float) -> bool:
    return any(abs(longer * factor / size - 1) < 0.01 for size in _PICTURES)


def _picture_by_content(section: Section, coords: Floats) -> str | None:
    """Return the picture into which the spots fit, and which they fill, once scaled."""
    for kind in ("hires", "lowres"):
        factor = section.scalefactors.get(f"tissue_{kind}_scalef", 1.0)
        scaled = coords * factor
        reach = (scaled.max(axis=0) / [section.slide.width, section.slide.height]).max()
        if factor < 0.95 and _inside(scaled, section.slide).all() and reach > 0.3:
            return kind
    return None


def _picture(section: Section, kind: str) -> str:
    slide, factor = section.slide, section.scalefactors.get(f"tissue_{kind}_scalef")
    scale_note = "" if factor is None else f", tissue_{kind}_scalef {factor:.4g}"
    return (
        f"{slide.path}: is Space Ranger's {kind} picture ({slide.width} x {slide.height} px"
        f"{scale_note}) instead of the full-resolution image; {_FULL_SIZE}"
    )


def _reach(coords: Floats) -> str:
    low, high = coords.min(axis=0), coords.max(axis=0)
    return f"x {low[0]:.0f} to {high[0]:.0f}, y {low[1]:.0f} to {high[1]:.0f}"


def _outside(section: Section, coords: Floats, outside: Places) -> str:
    slide = section.slide
    return (
        f"{slide.path}: {outside.sum()} of {len(coords)} spots lie outside the image "
        f"({slide.width} x {slide.height} px; spots reach over {_reach(coords)}); give the "
        f"full-resolution image of section {section.section}, and places in its pixels"
    )


def _swapped(section: Section, why: str) -> str:
    where = section.sources.get("spots") or section.sources.get("counts", section.slide.path)
    return (
        f"{where}: x and y look swapped: {why}; x is the column (pxl_col_in_fullres, to the "
        "right), y the row (pxl_row_in_fullres, down): exchange the two"
    )


def _axes_reason(section: Section, coords: Floats) -> str | None:
    """Say why the axes must be swapped, when both ways fit into the image.

    Exchanging x and y mirrors the array. A slide that was scanned with its array in view is
    never mirrored; behind a CytAssist (and in all of Visium HD) it may be. The tissue under
    the spots decides where the array cannot.
    """
    if not _inside(coords[:, ::-1], section.slide).all() or len(coords) < 10:
        return None
    mirrored = _mirrored(section)
    if mirrored is False:
        return None
    tissue, downsample = _tissue(section.slide)
    given = _on_tissue(coords, tissue, downsample)
    swapped = _on_tissue(coords[:, ::-1], tissue, downsample)
    if mirrored and swapped > given - 0.1:
        return (
            "array_row, array_col and the pixels run mirrored, as no slide is, and "
            f"{swapped:.0%} of the spots lie on tissue if swapped, {given:.0%} as they stand"
        )
    if mirrored is None and swapped > given + _CLEARLY:
        return f"{given:.0%} of the spots lie on tissue, {swapped:.0%} if swapped"
    return None


def _mirrored(section: Section) -> bool | None:
    """Whether the array is mirrored in the image; None where that may be or is not known."""
    direct = section.platform in ("visium", "st") and "cytassist" not in section.sources
    if not direct or section.spots is None:
        return None
    array = scale.array_um(section.spots, section.spot_pitch_um)
    if array is None or len(array) < 3:
        return None
    design = np.column_stack([array, np.ones(len(array))])
    solution, _, rank, _ = np.linalg.lstsq(design, section.spots[["x", "y"]].to_numpy(), rcond=None)
    return bool(np.linalg.det(solution[:2]) < 0) if rank == 3 else None


def _tissue(slide: Slide) -> tuple[Places, float]:
    """Coarse guess of tissue: more colourful than the glass (Otsu's threshold)."""
    thumbnail, downsample = slide.thumbnail(_THUMBNAIL_PX)
    colour = np.ptp(thumbnail.astype(np.int16), axis=2)
    if colour.min() == colour.max():
        return np.zeros(colour.shape, bool), downsample
    return colour > threshold_otsu(colour), downsample  # type: ignore[no-untyped-call]


def _on_tissue(coords: Floats, tissue: Places, downsample: float) -> float:
    index = np.floor(coords / downsample).astype(np.int64)
    x = np.clip(index[:, 0], 0, tissue.shape[1] - 1)
    y = np.clip(index[:, 1], 0, tissue.shape[0] - 1)
    return float(tissue[y, x].mean())


def _resized(section: Section) -> Iterator[str]:
    """Yield a message if the image is not the one that Space Ranger's hires picture shows."""
    factor = section.scalefactors.get("tissue_hires_scalef")
    source = section.sources.get("scalefactors")
    hires = None if source is None else source.with_name("tissue_hires_image.png")
    if not factor or hires is None or not hires.is_file():
        return
    size: Any = Image.open(hires).size
    want = np.asarray(size) / factor
    have = np.array([section.slide.width, section.slide.height])
    if np.all(np.abs(have / want - 1) < 0.02):
        return
    yield (
        f"{section.slide.path}: wrong scale: {have[0]} x {have[1]} px, but {hires.name} is "
        f"{size[0]} x {size[1]} px at tissue_hires_scalef {factor:.4g}, so the full-resolution "
        f"image had {want[0]:.0f} x {want[1]:.0f} px; {_FULL_SIZE}, not a resized or rotated copy"
    )
