"""The H&E slide behind a written prediction."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.config import RegistrationConfig
from deepspace.core.errors import InputError
from deepspace.core.files import sha256
from deepspace.io.memory import slide_from_array
from deepspace.io.slide import Slide, open_slide
from deepspace.output.write import read_provenance

_COARSER = 1.5  # than registration works at
_SIZE_TOLERANCE_PX = 2.0


@dataclass(frozen=True)
class PredictedSlide:
    """A prediction and the slide that its points lie on.

    Attributes
    ----------
    table
        The prediction.
    name
        What it is called in messages.
    slide
        The file, or the copy inside the prediction; both count um from the same corner.
    told
        Which of the two, in words.
    mpp
        Micrometres per full-resolution pixel, the unit of ``obsm['spatial']``.
    spot_um
        Diameter of a spot.
    files
        Files that were read for the slide besides the prediction.
    """

    table: AnnData
    name: str
    slide: Slide
    told: str
    mpp: float
    spot_um: float
    files: tuple[Path, ...]


def open_predicted(
    prediction: AnnData | Path | str, slide: Path | str | None, config: RegistrationConfig
) -> PredictedSlide:
    """Read a prediction and find its slide, at least as fine as registration needs.

    Parameters
    ----------
    prediction
        AnnData, or the ``.h5ad`` that holds it.
    slide
        The H&E slide. Without it the copy inside the prediction serves if it is fine enough, else
        the file that the provenance names, if it still is the same.
    config
        Decides what is fine enough.

    Raises
    ------
    InputError
        If it is no prediction of deepspace, `slide` is another slide, or none is fine enough.
    """
    in_memory = isinstance(prediction, AnnData)
    name = "the prediction" if in_memory else str(prediction)
    table = prediction if in_memory else read_table(Path(prediction))
    library = slide_library(table, name)
    scales, mpp = library["scalefactors"], library["metadata"].get("mpp")
    if mpp is None:
        raise InputError(f"{name}: does not say the mpp of its slide; predict again with one")
    hires = np.asarray(library["images"]["hires"])
    scale, mpp = float(scales["tissue_hires_scalef"]), float(mpp)
    size = hires.shape[1] / scale, hires.shape[0] / scale
    spot_um = float(scales["spot_diameter_fullres"]) * mpp
    folder = Path.cwd() if in_memory else Path(prediction).absolute().parent
    if slide is not None:
        given = _same_slide(Path(slide), mpp, size, 1.0 / scale)
        return PredictedSlide(table, name, given, f"{slide} (--slide)", mpp, spot_um, (given.path,))
    embedded_um = mpp / scale
    needed = max(config.finest_um, _extent_um(table, mpp) / config.size_px)
    if embedded_um <= _COARSER * needed:
        copy = slide_from_array(hires, embedded_um, Path(name), "the prediction")
        told = f"the copy inside the prediction, {embedded_um:.2g} um/px"
        return PredictedSlide(table, name, copy, told, mpp, spot_um, ())
    original = _recorded(table, folder, str(library["metadata"].get("source_image_path", "")))
    if original is None:
        raise InputError(
            f"{name}: the picture inside has {embedded_um:.1f} um per pixel, too coarse to "
            f"register ({needed:.1f} needed), and its slide was not found; give it with --slide"
        )
    found = _same_slide(original, mpp, size, 1.0 / scale)
    return PredictedSlide(table, name, found, str(original), mpp, spot_um, (original,))


def read_table(path: Path) -> AnnData:
    """Read a ``.h5ad``, or say what is wrong with it."""
    if path.suffix != ".h5ad" or path.is_dir():
        raise InputError(
            f"{path}: must be the .h5ad that predict or complete wrote; for a SpatialData store "
            "predict again with an --out that ends in .h5ad"
        )
    if not path.exists():
        raise InputError(f"{path}: no such prediction; correct the path")
    try:
        return anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as AnnData ({error}); write it again") from error


def slide_library(table: AnnData, name: str) -> dict[str, Any]:
    """Entry of ``uns['spatial']`` of a prediction of gene expression."""
    try:
        record = read_provenance(table)
        ((_, library),) = table.uns[keys.SPATIAL].items()
        library["images"]["hires"], library["scalefactors"]["spot_diameter_fullres"]
        table.obsm[keys.SPATIAL]
    except (KeyError, TypeError, ValueError, json.JSONDecodeError) as error:
        raise InputError(
            f"{name}: is not a prediction that deepspace wrote; make one with predict or complete"
        ) from error
    if record.get("target", "expression") != "expression":
        raise InputError(
            f"{name}: predicts {record['target']}, not genes; train with --target expression"
        )
    found: dict[str, Any] = library
    return found


def _extent_um(table: AnnData, mpp: float) -> float:
    """Longer side of the predicted area."""
    coords = np.asarray(table.obsm[keys.SPATIAL], np.float64)
    return float((coords.max(axis=0) - coords.min(axis=0)).max()) * mpp


def _same_slide(path: Path, mpp: float, size: tuple[float, float], tolerance_px: float) -> Slide:
    """Open a slide file and make sure that it is the predicted one by its size."""
    slide = open_slide(path)
    off = max(abs(slide.width - size[0]), abs(slide.height - size[1]))
    if off > _SIZE_TOLERANCE_PX + tolerance_px:
        raise InputError(
            f"{path}: has {slide.width} x {slide.height} pixels, but the prediction was made on a "
            f"slide of about {size[0]:.0f} x {size[1]:.0f}; give that slide"
        )
    return slide.with_mpp(mpp, "the prediction")


def _recorded(table: AnnData, folder: Path, image: str) -> Path | None:
    """File of the slide by the provenance: a relative path, and the content must be the same."""
    inputs: dict[str, str] = read_provenance(table).get("inputs", {})
    for relative, digest in inputs.items():
        if Path(relative).name != image:
            continue
        for root in dict.fromkeys((folder, *folder.parents, Path.cwd(), *Path.cwd().parents)):
            path = root / relative
            if path.is_file() and sha256(path) == digest:
                return path
    return None
