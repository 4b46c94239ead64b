"""`predict`: a model, a slide, coordinates. Spots, points between them and grids are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import check_output, sha256
from deepspace.core.progress import log, track
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.coords import between_spots, grid
from deepspace.data.tissue import tissue_mask
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.io.slide import Slide
from deepspace.models.base import SavablePredictor
from deepspace.models.store import ModelCard, load_model
from deepspace.output.plot import spot_size_um
from deepspace.output.write import check_suffix, prediction_anndata, write_prediction
from deepspace.workflows.cohort import default_cache
from deepspace.workflows.figures import draw_prediction

FloatArray = NDArray[np.float64]

# points predicted together; bounds memory, not the result
CHUNK = 4096


@dataclass(frozen=True)
class Points:
    """Where to predict: coordinates and the obs table that goes with them."""

    coords: FloatArray
    obs: pd.DataFrame


def points_at(section: Section, at: str) -> Points:
    """Points of ``spots``, ``between`` or ``grid:UM``.

    Raises
    ------
    InputError
        If `at` is not understood, or needs spots that the section does not have.
    """
    if at.startswith("grid"):
        tissue = tissue_mask(section.slide)
        return _lattice(section, grid(section.slide, tissue, grid_stride(at)), "grid")
    if at not in ("spots", "between"):
        raise InputError(f"--at {at}: give spots, between or grid:UM, as in grid:20")
    if section.spots is None:
        raise InputError(
            f"section {section.section}: has no spots, so --at {at} is not possible; use "
            "--at grid:100, or give a spots file in the sheet"
        )
    spots = section.spots[section.spots[keys.IN_TISSUE].to_numpy(dtype=bool)]
    coords = spots[["x", "y"]].to_numpy(dtype=np.float64)
    if at == "between":
        return _lattice(section, between_spots(coords), "between")
    measured = [] if section.counts is None else section.counts.obs_names
    obs = pd.DataFrame(
        {keys.MEASURED: spots.index.isin(measured), keys.IN_TISSUE: True}, index=spots.index
    )
    return Points(coords, obs)


def grid_stride(at: str) -> float:
    """Stride in micrometres of ``grid:UM``; 0 for anything else."""
    kind, _, number = at.partition(":")
    if kind != "grid":
        return 0.0
    try:
        return float(number)
    except ValueError:
        raise InputError(f"--at {at}: give the stride in micrometres, as in grid:20") from None


def _lattice(section: Section, coords: FloatArray, kind: str) -> Points:
    names = [f"{section.section}_{kind}_{i}" for i in range(len(coords))]
    if not len(coords):
        raise InputError(
            f"{section.slide.path}: no tissue found on the slide, so --at {kind} gives no points; "
            "look at it with `deepspace inspect`"
        )
    inside = tissue_mask(section.slide).contains(coords)
    return Points(coords, pd.DataFrame({keys.MEASURED: False, keys.IN_TISSUE: inside}, index=names))


@dataclass(frozen=True)
class Values:
    """Predictions as log1p of counts per 10,000, each (points, genes), and the odd ones out."""

    mean: FloatArray
    sd: FloatArray
    sd_latent: FloatArray
    ood: NDArray[np.bool_]


def predict_at(predictor: SavablePredictor, slide: Slide, coords: FloatArray) -> Values:
    """Predict in chunks and decode to log1p CP10k."""
    parts = []
    starts = range(0, len(coords), CHUNK)
    # one chunk has a bar of its own, for its features
    steps = track(starts, total=len(starts), text="predicting") if len(starts) > 1 else starts
    for start in steps:
        found = predictor.predict(slide, coords[start : start + CHUNK])
        slope = np.abs(predictor.target.slope(found.mean))
        parts.append(
            (
                predictor.target.decode(found.mean).astype(np.float32),
                (found.sd * slope).astype(np.float32),
                (found.sd_latent * slope).astype(np.float32),
                found.ood,
            )
        )
    return Values(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def predict(
    model: Path | str,
    sheet: Path | str,
    *,
    section: str,
    out: Path | str | None = None,
    at: str = "spots",
    weights: Path | None = None,
    overwrite: bool = False,
) -> AnnData:
    """Predict one section of a sheet with a saved model.

    The section's own counts are never looked at: they are dropped as soon as they are read.

    Parameters
    ----------
    model : Path or str
        Folder written by `train`.
    sheet : Path or str
        Cohort sheet, or one Space Ranger ``outs/`` folder.
    section : str
        Which section.
    out : Path or str, optional
        ``.h5ad`` file or ``.zarr`` folder to write; nothing is written without it.
    at : str
        ``spots``, ``between`` (super-resolution) or ``grid:UM``.
    weights : Path, optional
        Encoder weights, when they are not where they were at training.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    AnnData
        ``X`` the predicted log1p of counts per 10,000; see the README for the rest.
    """
    model, sheet = Path(model), Path(sheet)
    if out is not None:
        out = Path(out)
        check_suffix(out)
        check_output(out, overwrite=overwrite)
    chosen = _one_section(sheet, section)
    for note in chosen.notes:
        log.info("note: %s", note)
    predictor, card = load_model(model, cache=default_cache(), weights=weights)
    points = points_at(chosen, at)
    chosen = chosen.without_counts()
    log.info("predicting %d genes at %d points of %s", len(card.genes), len(points.coords), section)
    values = predict_at(predictor, chosen.slide, points.coords)
    result = _to_anndata(chosen, points, values, card, _record(model, chosen, card, at))
    if out is not None:
        write_prediction(result, out, overwrite=overwrite)
        draw_prediction(result, chosen, out.with_suffix(".png"), side_um=grid_stride(at))
    return result


def _to_anndata(
    section: Section, points: Points, values: Values, card: ModelCard, record: dict[str, Any]
) -> AnnData:
    genes = pd.DataFrame(
        {
            keys.PREDICTABLE: [gene.predictable for gene in card.genes],
            keys.SCORE: [np.nan if gene.score is None else gene.score for gene in card.genes],
            keys.CEILING: [np.nan if g.ceiling is None else g.ceiling for g in card.genes],
        },
        index=[gene.name for gene in card.genes],
    )
    return prediction_anndata(
        {"mean": values.mean, keys.SD: values.sd, keys.SD_LATENT: values.sd_latent},
        points.coords,
        points.obs.assign(**{keys.OOD: values.ood}),
        genes,
        section=section,
        provenance=record,
        spot_diameter_px=spot_size_um(section) / section.slide.require_mpp(),
    )


def _one_section(sheet: Path, section: str) -> Section:
    return read_sheet(sheet, only=[section])[0]


def _record(model: Path, section: Section, card: ModelCard, at: str) -> dict[str, Any]:
    """Provenance of a prediction; the section's counts are no input of it."""
    files = [path for role, path in section.sources.items() if role in ("image", "spots")]
    record = provenance(
        "predict", card.provenance["config"], input_hashes(files), card.provenance["seed"]
    )
    return record | {
        "at": at,
        "section": section.section,
        "model": card.model,
        "encoder": card.encoder.config.name,
        "model_sha256": {
            name: sha256(model / name) for name in ("model.json", "weights.safetensors")
        },
        "training": [t.model_dump() for t in card.training],
    }
