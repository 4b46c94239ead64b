"""`predict`: a model, a slide, coordinates. Spots, points between them and grids are the same."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError, Problems
from deepspace.core.files import check_output, refuse_inputs, sha256
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.core.resume import partial_folder
from deepspace.io.checks import validate
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.models.base import SavablePredictor
from deepspace.models.encoders import device_of
from deepspace.models.kriging import Kriging
from deepspace.models.store import ModelCard, load_model, load_watch
from deepspace.models.watch import Watch
from deepspace.output.text import NOUNS
from deepspace.output.write import ZARR, check_suffix
from deepspace.workflows.cohort import cohort_root, default_cache
from deepspace.workflows.points import grid_stride, points_at
from deepspace.workflows.pointwise import Job, picture_of, predict_points, predict_to_disk
from deepspace.workflows.train import Trained


@dataclass(frozen=True)
class PredictOptions:
    """What of a prediction is left out, and how a model that lies in a folder is loaded.

    Attributes
    ----------
    image_only : bool
        Leave measured neighbours out: what the image alone tells.
    all_genes : bool
        Keep genes that held-out data do not tell from chance (verdict ``no``) as well.
    weights : Path, optional
        Encoder weights, when they are not where they were at training.
    device : str, optional
        Where networks run, ``cpu``, ``cuda`` or ``auto``; left out, as at training.
    """

    image_only: bool = False
    all_genes: bool = False
    weights: Path | None = None
    device: str | None = None


def predict(
    model: Path | str | Trained,
    sheet: Path | str | Section,
    *,
    section: str | None = None,
    out: Path | str | None = None,
    at: str = "spots",
    options: PredictOptions | None = None,
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
    options : PredictOptions, optional
        What is left out, and where the encoder's weights are.
    overwrite : bool
        Replace `out` if it exists.

    Returns
    -------
    AnnData
        ``X`` the predicted log1p of counts per 10,000, or the probability of each cluster with
        the most probable one in ``obs['cluster']``; see the README for the rest.
    """
    out = None if out is None else Path(out)
    job = _job(model, sheet, section, at, out, options or PredictOptions(), overwrite=overwrite)
    if out is None:
        return predict_points(job)
    with predict_to_disk(job, out, overwrite=overwrite) as found:
        return found.to_memory()


def predict_to_file(
    model: Path | str | Trained,
    sheet: Path | str | Section,
    out: Path | str,
    *,
    section: str | None = None,
    at: str = "spots",
    options: PredictOptions | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Predict as `predict` does, but never hold the whole result in memory.

    Returns
    -------
    dict
        ``out``, ``section``, ``points``, ``genes`` or ``clusters``, how many of them are
        ``predictable``, and ``ood``, the points unlike the training images.
    """
    out = Path(out)
    job = _job(model, sheet, section, at, out, options or PredictOptions(), overwrite=overwrite)
    with predict_to_disk(job, out, overwrite=overwrite) as found:
        return {
            "out": str(out),
            "section": job.section.section,
            "points": found.n_obs,
            NOUNS[job.card.kind]: found.n_vars,
            "predictable": int(found.var[keys.PREDICTABLE].sum()),
            "ood": int(found.obs[keys.OOD].sum()),
        }


def _job(
    model: Path | str | Trained,
    sheet: Path | str | Section,
    section: str | None,
    at: str,
    out: Path | None,
    options: PredictOptions,
    *,
    overwrite: bool,
) -> Job:
    """Read and check all that a prediction needs."""
    stride = grid_stride(at)  # a wrong --at is told before anything is read
    if out is not None:
        _check_output(out, overwrite=overwrite)
    chosen = _one_section(sheet, section, out)
    for note in chosen.notes:
        log.info("note: %s", note)
    predictor, card, watch = open_trained(model, options.weights, options.device)
    if options.image_only and isinstance(predictor, Kriging):
        log.info("note: held-out scores are of the whole model, not of the image alone")
        predictor = predictor.without_neighbours()
    points = points_at(chosen, at)
    _note_names(chosen, card)
    if card.scores["split"] != "patient" and chosen.patient not in {
        t.patient for t in card.training
    }:
        log.info(
            "note: scores and verdicts are of the model's own patients; expect less of section %s, "
            "which is of another",
            chosen.section,
        )
    chosen = chosen.without_counts()
    columns = believable(card, all_genes=options.all_genes)
    root = Path.cwd() if isinstance(sheet, Section) else cohort_root(sheet)
    asked = None if isinstance(model, Trained) else options.device
    record = prediction_record(model, chosen, card, at, root) | {
        "image_only": options.image_only,
        "device": device_of(asked or card.config.device),
    }
    if record["in_training"]:
        log.info("note: the model was trained on this section; scores are of held-out sections")
    return Job(predictor, card, watch, chosen, points, record, columns, stride)


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


def open_trained(
    model: Path | str | Trained, weights: Path | None, device: str | None
) -> tuple[SavablePredictor, ModelCard, Watch]:
    """A model, its card, and what it knows of its training images."""
    if isinstance(model, Trained):
        return model.predictor, model.card, model.watch
    predictor, card = load_model(Path(model), cache=default_cache(), weights=weights, device=device)
    return predictor, card, load_watch(Path(model), cache=default_cache())


def believable(card: ModelCard, *, all_genes: bool) -> list[int]:
    """Positions of the columns to write: genes that chance would explain are left out.

    All clusters stay, because their probabilities add up.

    Raises
    ------
    InputError
        If no gene is left.
    """
    if all_genes or card.kind != "expression":
        return list(range(len(card.columns)))
    kept = [k for k, column in enumerate(card.columns) if column.verdict != "no"]
    out = len(card.columns) - len(kept)
    if not kept:
        raise InputError(
            f"none of the model's {out} genes is told from chance on held-out data, so nothing is "
            "predicted; learn from more sections or other genes, or add --all-genes to get what "
            "cannot be believed"
        )
    if out:
        log.info("%d of %d genes are not told from chance and left out", out, len(card.columns))
    return kept


def _check_output(out: Path, *, overwrite: bool) -> None:
    check_suffix(out)
    check_output(out, overwrite=overwrite, marker=ZARR if out.suffix == ".zarr" else None)
    if not partial_folder(out).exists():  # its picture comes first, and then a run may be killed
        check_output(picture_of(out), overwrite=overwrite)


def _one_section(sheet: Path | str | Section, section: str | None, out: Path | None) -> Section:
    """The section to predict, checked; `out` must not be one of its own files."""
    if isinstance(sheet, Section):
        found, where = sheet, "the section given"
    else:
        sections = read_sheet(sheet, only=None if section is None else [section])
        found, where = sections[0], str(sheet)
        if section is None and len(sections) > 1:
            names = ", ".join(s.section for s in sections)
            raise InputError(
                f"{sheet}: holds sections {names}; name one, as --section {found.section}, or "
                "give a folder as --out to predict them all"
            )
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
