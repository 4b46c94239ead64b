"""`predict`: a model, a slide, coordinates. Spots, points between them and grids are the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.classification import most_probable
from deepspace.core.errors import InputError, Problems
from deepspace.core.files import check_output, refuse_inputs, sha256
from deepspace.core.progress import log, track
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.coords import between_spots, grid
from deepspace.data.tissue import TissueMask, tissue_mask
from deepspace.io.checks import validate
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.io.slide import Slide
from deepspace.models.base import SavablePredictor
from deepspace.models.kriging import Kriging
from deepspace.models.store import ModelCard, load_model
from deepspace.output.plot import spot_size_um
from deepspace.output.write import ZARR, check_suffix, prediction_anndata, write_prediction
from deepspace.workflows.cohort import cohort_root, default_cache
from deepspace.workflows.figures import draw_prediction
from deepspace.workflows.train import Trained

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
    if grid_stride(at):
        tissue = tissue_mask(section.slide)
        return _lattice(section, grid(section.slide, tissue, grid_stride(at)), tissue, "grid")
    spots = section.spots
    if spots is None and section.counts is not None:
        # those that were measured are all that is known
        spots = pd.DataFrame(section.coords, section.counts.obs_names, ["x", "y"])
        spots[keys.IN_TISSUE] = True
    if spots is None:
        raise InputError(
            f"section {section.section}: has no spots, so --at {at} is not possible; use "
            "--at grid:100, or give a spots file in the sheet"
        )
    spots = spots[spots[keys.IN_TISSUE].to_numpy(dtype=bool)]
    coords = spots[["x", "y"]].to_numpy(dtype=np.float64)
    if at == "between":
        return _lattice(section, between_spots(coords), tissue_mask(section.slide), "between")
    measured = [] if section.counts is None else section.counts.obs_names
    obs = pd.DataFrame(
        {keys.MEASURED: spots.index.isin(measured), keys.IN_TISSUE: True}, index=spots.index
    )
    return Points(coords, obs)


def grid_stride(at: str) -> float:
    """Stride in micrometres of ``grid:UM``; 0 for anything else."""
    kind, _, number = at.partition(":")
    if kind != "grid":
        if at not in ("spots", "between"):
            raise InputError(f"--at {at}: give spots, between or grid:UM, as in grid:20")
        return 0.0
    try:
        stride = float(number)
    except ValueError:
        raise InputError(f"--at {at}: give the stride in micrometres, as in grid:20") from None
    if not 0 < stride < math.inf:
        raise InputError(f"--at {at}: the stride is in micrometres and must be above 0")
    return stride


def _lattice(section: Section, coords: FloatArray, tissue: TissueMask, kind: str) -> Points:
    names = [f"{section.section}_{kind}_{i}" for i in range(len(coords))]
    if not len(coords):
        raise InputError(
            f"{section.slide.path}: no tissue found on the slide, so --at {kind} gives no points; "
            "look at it with `deepspace inspect`"
        )
    inside = tissue.contains(coords)
    return Points(coords, pd.DataFrame({keys.MEASURED: False, keys.IN_TISSUE: inside}, index=names))


@dataclass(frozen=True)
class Values:
    """Decoded predictions, each (points, names), and the odd ones out.

    log1p of counts per 10,000, or probabilities of clusters.
    """

    mean: FloatArray
    sd: FloatArray
    sd_latent: FloatArray
    ood: NDArray[np.bool_]


def predict_at(predictor: SavablePredictor, slide: Slide, coords: FloatArray) -> Values:
    """Predict in chunks and decode."""
    parts = []
    starts = range(0, len(coords), CHUNK)
    # one chunk has a bar of its own, for its features
    steps = track(starts, total=len(starts), text="predicting") if len(starts) > 1 else starts
    for start in steps:
        found = predictor.predict(slide, coords[start : start + CHUNK])
        target = predictor.target
        parts.append(
            (
                target.decode(found.mean).astype(np.float32),
                target.decode_sd(found.mean, found.sd).astype(np.float32),
                target.decode_sd(found.mean, found.sd_latent).astype(np.float32),
                found.ood,
            )
        )
    return Values(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def predict(
    model: Path | str | Trained,
    sheet: Path | str | Section,
    *,
    section: str | None = None,
    out: Path | str | None = None,
    at: str = "spots",
    weights: Path | None = None,
    image_only: bool = False,
    overwrite: bool = False,
) -> AnnData:
    """Predict one section with a trained model.

    The section's own counts are never looked at: they are dropped as soon as they are read. A
    model that uses measured neighbours (`kriging`) knows those of its training sections.

    Parameters
    ----------
    model : Path, str or Trained
        Folder written by `train`, or what `train` returned.
    sheet : Path, str or Section
        Cohort sheet, one Space Ranger ``outs/`` folder, or a section in memory.
    section : str, optional
        Which section of the sheet; not needed where there is only one.
    out : Path or str, optional
        ``.h5ad`` file or ``.zarr`` folder to write; nothing is written without it.
    at : str
        ``spots``, ``between`` (super-resolution) or ``grid:UM``.
    weights : Path, optional
        Encoder weights, when they are not where they were at training.
    image_only : bool
        Leave measured neighbours out: what the image alone tells.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    AnnData
        ``X`` the predicted log1p of counts per 10,000, or the probability of each cluster with
        the most probable one in ``obs['cluster']``; see the README for the rest.
    """
    grid_stride(at)  # a wrong --at is told before anything is read
    out = None if out is None else _checked_output(Path(out), overwrite=overwrite)
    chosen = _one_section(sheet, section, out)
    for note in chosen.notes:
        log.info("note: %s", note)
    if isinstance(model, Trained):
        predictor, card = model.predictor, model.card
    else:
        predictor, card = load_model(Path(model), cache=default_cache(), weights=weights)
    if image_only and isinstance(predictor, Kriging):
        log.info("note: held-out scores are of the whole model, not of the image alone")
        predictor = predictor.without_neighbours()
    points = points_at(chosen, at)
    _note_names(chosen, card)
    chosen = chosen.without_counts()
    root = Path.cwd() if isinstance(sheet, Section) else cohort_root(sheet)
    record = prediction_record(model, chosen, card, at, root) | {"image_only": image_only}
    if record["in_training"]:
        log.info("note: the model was trained on this section; scores are of held-out sections")
    result = predict_points(predictor, card, chosen, points, record)
    if out is not None:
        write_prediction(result, out, overwrite=overwrite)
        draw_prediction(result, chosen, picture_of(out), kind=card.kind, side_um=grid_stride(at))
    return result


def _note_names(section: Section, card: ModelCard) -> None:
    """Say so where a section was measured with other genes, as those of another species."""
    if section.counts is None or card.kind != "expression":
        return
    shared = sum(column.name in section.counts.var_names for column in card.columns)
    if not shared:
        log.info(
            "note: none of the model's %d genes is among those measured on %s: is it of the same "
            "species, are genes named alike?",
            len(card.columns),
            section.section,
        )


def predict_points(
    predictor: SavablePredictor,
    card: ModelCard,
    section: Section,
    points: Points,
    record: dict[str, Any],
) -> AnnData:
    """Predict points of a section, as AnnData with `record` as its provenance."""
    size = len(card.columns), card.kind, len(points.coords)
    log.info("predicting %d columns of %s at %d points of %s", *size, section.section)
    values = predict_at(predictor, section.slide, points.coords)
    columns = pd.DataFrame(
        {
            keys.PREDICTABLE: [column.predictable for column in card.columns],
            keys.SCORE: [np.nan if c.score is None else c.score for c in card.columns],
            keys.CEILING: [np.nan if c.ceiling is None else c.ceiling for c in card.columns],
        },
        index=[column.name for column in card.columns],
    )
    more = OBS[card.kind](values.mean, list(columns.index))
    return prediction_anndata(
        {"mean": values.mean, keys.SD: values.sd, keys.SD_LATENT: values.sd_latent},
        points.coords,
        points.obs.assign(**{keys.OOD: values.ood}, **more),
        columns,
        section=section,
        provenance=record,
        spot_diameter_px=spot_size_um(section) / section.slide.require_mpp(),
    )


def _most_probable(probabilities: FloatArray, names: list[str]) -> dict[str, Any]:
    return {
        keys.CLUSTER: pd.Categorical(most_probable(probabilities, names), categories=names),
        keys.CLUSTER_PROBABILITY: probabilities.max(axis=1),
    }


# columns of obs that come from the values of a kind of target
OBS: dict[str, Callable[[FloatArray, list[str]], dict[str, Any]]] = {
    "expression": lambda values, names: {},
    "clusters": _most_probable,
}


def _checked_output(out: Path, *, overwrite: bool) -> Path:
    check_suffix(out)
    check_output(out, overwrite=overwrite, marker=ZARR if out.suffix == ".zarr" else None)
    check_output(picture_of(out), overwrite=overwrite)
    return out


def picture_of(out: Path) -> Path:
    """Name of the picture that goes with a prediction."""
    return out.with_name(f"{out.stem}-maps.png")


def _one_section(sheet: Path | str | Section, section: str | None, out: Path | None) -> Section:
    """The section to predict, checked; `out` must not be one of its own files."""
    if isinstance(sheet, Section):
        found, where = sheet, "the section given"
    else:
        sections = read_sheet(sheet, only=None if section is None else [section])
        found, where = sections[0], str(sheet)
        if section is None and len(sections) > 1:
            names = ", ".join(s.section for s in sections)
            raise InputError(f"{sheet}: holds sections {names}; say which one with section=")
    problems = Problems(f"{where}: section {section or found.section}")
    if section is not None and found.section != section:
        problems.add(f"there is no such section, only {found.section}; correct --section")
    for path in () if out is None else (out, picture_of(out)):
        refuse_inputs(path, found.sources.values())
    # its counts are not used, so nothing is asked of them
    for fault in validate(found.without_counts()):
        problems.add(fault)
    problems.raise_if_any()
    return found


def prediction_record(
    model: Path | str | Trained, section: Section, card: ModelCard, at: str, root: Path
) -> dict[str, Any]:
    """Provenance of a prediction; the section's counts are no input of it."""
    roles: tuple[str, ...] = ("image", "spots", "scalefactors", "metadata")
    if "spots" not in section.sources:
        roles = (*roles, "counts")  # there one file holds the places and the counts
    files = [path for role, path in section.sources.items() if role in roles]
    record = provenance(
        "predict",
        card.provenance["config"],
        input_hashes(files, root),
        card.provenance["seed"],
    )
    card_file = None if isinstance(model, Trained) else Path(model) / "model.json"
    return record | {
        "at": at,
        "mpp": section.slide.mpp,
        "mpp_source": section.slide.mpp_source,
        "in_training": any(t.slide_sha256 == section.slide.content_hash() for t in card.training),
        "score_split": card.scores["split"],
        "section": section.section,
        "model": card.model,
        "target": card.kind,
        "encoder": card.encoder.config.name,
        "model_sha256": "not saved" if card_file is None else sha256(card_file),
        "training": [t.model_dump() for t in card.training],
    }
