"""Micrometres per pixel from what a TIFF says about itself."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

import tifffile

from deepspace.io.source import Scale, per_axis, plausible

_UM_PER_UNIT = {
    "pm": 1e-6, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0,
    "micrometer": 1.0, "\\u00B5m": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": 25400.0,
    "inch": 25400.0,
}  # fmt: skip
_UM_PER_RESOLUTION_UNIT = {2: 25400.0, 3: 10000.0}


def tiff_scale(file: tifffile.TiffFile, page: tifffile.TiffPage, image: int) -> Scale:
    """Find the pixel size of a TIFF: OME-XML, then Aperio, then ImageJ, then resolution tags.

    Parameters
    ----------
    file, page
        The open file and its full-resolution page.
    image
        Which OME image the page belongs to.
    """
    stated = [
        scale
        for scale in (_ome(file, image), _aperio(page), _imagej(file, page), _tags(file, page))
        if scale is not None
    ]
    notes = tuple(note for scale in stated for note in scale.notes)
    known = [(scale.mpp, scale.source) for scale in stated if scale.mpp is not None]
    if not known:
        return Scale(notes=notes)
    mpp, source = known[0]
    for other, where in known[1:]:
        if abs(other - mpp) > 0.05 * mpp:
            notes += (
                f"{source} says {mpp:.4g} um/px, but {where} says {other:.4g}: the first is used",
            )
    return Scale(mpp, source, notes)


def _ome(file: tifffile.TiffFile, image: int) -> Scale | None:
    if not file.ome_metadata:
        return None
    try:
        pixels = ET.fromstring(file.ome_metadata).findall(".//{*}Image/{*}Pixels")[image]
    except (ET.ParseError, IndexError):
        return Scale(notes=("its OME-XML cannot be parsed, so its pixel size is not known",))
    values = []
    for axis in ("X", "Y"):
        size = pixels.get(f"PhysicalSize{axis}")
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        if size is None:
            continue
        try:
            values.append(float(size) * _UM_PER_UNIT[unit])
        except (KeyError, ValueError):
            return Scale(notes=(f"OME PhysicalSize{axis} is {size} {unit}, not a length: ignored",))
    if not values:
        return None
    return per_axis(values[0], values[-1], "OME-XML PhysicalSizeX")


def _aperio(page: tifffile.TiffPage) -> Scale | None:
    found = re.search(r"\|\s*MPP\s*=\s*([0-9.]+)", page.description)
    if not page.description.startswith("Aperio") or not found:
        return None
    try:
        mpp = float(found[1])
    except ValueError:
        return Scale(notes=(f"Aperio MPP is {found[1]!r}, not a number: ignored",))
    return per_axis(mpp, mpp, "Aperio MPP")


def _imagej(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Scale | None:
    unit = (file.imagej_metadata or {}).get("unit")
    per_pixel = _pixel_sizes(page)
    if unit not in _UM_PER_UNIT or per_pixel is None:
        return None
    factor = _UM_PER_UNIT[unit]
    return per_axis(per_pixel[0] * factor, per_pixel[1] * factor, "ImageJ unit")


def _tags(file: tifffile.TiffFile, page: tifffile.TiffPage) -> Scale | None:
    per_pixel = _pixel_sizes(page)
    unit = int(page.tags.valueof("ResolutionUnit", 2))
    # ImageJ writes its own unit into the description and leaves the tag at "none"
    if per_pixel is None or unit not in _UM_PER_RESOLUTION_UNIT or file.is_imagej:
        return None
    x, y = (size * _UM_PER_RESOLUTION_UNIT[unit] for size in per_pixel)
    # 72, 96 or 300 dpi are the defaults of picture editors and state nothing
    return per_axis(x, y, "the TIFF resolution tag") if plausible(x) else None


def _pixel_sizes(page: tifffile.TiffPage) -> tuple[float, float] | None:
    sizes = []
    for name in ("XResolution", "YResolution"):
        value = page.tags.valueof(name)
        if not isinstance(value, tuple) or len(value) != 2 or 0 in value:
            return None
        sizes.append(value[1] / value[0])
    # 1/1 is what writers put when they know nothing
    return None if sizes == [1.0, 1.0] else (sizes[0], sizes[1])
