"""`ihc`: whether the stain of a neighbouring section follows a predicted gene."""

from __future__ import annotations

import difflib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.config import RegistrationConfig
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, check_output, refuse_inputs
from deepspace.core.progress import log
from deepspace.core.provenance import input_hashes, provenance
from deepspace.data.ihc import StainMap, stain_map
from deepspace.data.shift_null import LEAST_SHIFTS, MovedMaps, move_map
from deepspace.io.slide import Slide, open_slide
from deepspace.output.ihc import IHCView, ihc_picture
from deepspace.output.plot import save as save_figure
from deepspace.output.write import write_json
from deepspace.registration.prepare import find_mask
from deepspace.registration.register import Registration, register
from deepspace.workflows.ihc_scores import all_genes, summarise
from deepspace.workflows.predicted_slide import PredictedSlide, open_predicted

FloatArray = NDArray[np.float64]

# the file that tells a folder to be such a check
RESULT = "ihc.json"
_LARGEST_STRETCH = 1.25


@dataclass(frozen=True)
class IHCSettings:
    """How a stain is compared with a prediction.

    Attributes
    ----------
    diameter_um
        Disc over which DAB is averaged; that of the spots if None.
    shifts
        Random moves of the stain under the prediction that make up the null.
    seed
        Of these moves and of registration.
    registration
        How the two sections are laid over each other.
    """

    diameter_um: float | None = None
    shifts: int = 999
    seed: int = 0
    registration: RegistrationConfig = field(default_factory=RegistrationConfig)


@dataclass(frozen=True)
class IHCResult:
    """A predicted gene beside the stain of a neighbouring section.

    Attributes
    ----------
    gene : str
    summary : dict
        What ``ihc.json`` holds: verdict, correlations with their null, registration, provenance.
    points : DataFrame
        One row a predicted point: x, y (px of the H&E slide), ihc_x_um, ihc_y_um, predicted, dab,
        positive, covered, used.
    genes : DataFrame
        All predicted genes, the best match with the stain first.
    null : array
        Pearson correlation after each move, (shifts,).
    registration : Registration
        How the IHC section lies on the H&E section.
    """

    gene: str
    summary: dict[str, Any]
    points: pd.DataFrame
    genes: pd.DataFrame
    null: FloatArray
    registration: Registration


def ihc_check(
    prediction: AnnData | Path | str,
    ihc: Slide | Path | str,
    *,
    gene: str,
    out: Path | str | None = None,
    slide: Path | str | None = None,
    mpp: float | None = None,
    settings: IHCSettings | None = None,
    overwrite: bool = False,
) -> IHCResult:
    """Compare a predicted gene with the immunohistochemistry of a neighbouring section.

    The IHC section is registered to the H&E section of the prediction, DAB is unmixed from
    haematoxylin, averaged over a disc of the size of a spot around every predicted point, and
    correlated with the prediction. The same is done after random shifts, rotations and mirrorings
    of the stain: p-values say how often these agree as well. The paper behind DeepSpaCE compares
    ESR1 in this way by eye (Monjo et al., Sci Rep 12:4133, 2022, figure 2).

    Parameters
    ----------
    prediction : AnnData or Path
        What `deepspace.predict` or `deepspace.complete` wrote.
    ihc : Slide or Path
        Image of the section stained with DAB and haematoxylin; any rotation, may be mirrored.
    gene : str
        The gene whose protein is stained.
    out : Path, optional
        Folder for ``ihc.json``, ``ihc.csv``, ``genes.csv`` and ``ihc.png``.
    slide : Path, optional
        H&E slide of the prediction. Without it the picture inside the prediction is used if it
        is fine enough to register, else the file that the prediction's provenance names.
    mpp : float, optional
        Micrometres per pixel of the IHC image, where it does not say so itself.
    settings : IHCSettings, optional
    overwrite : bool
        Replace `out` if an earlier check is there.

    Returns
    -------
    IHCResult

    Raises
    ------
    InputError
        If there is no such gene, the image shows no DAB, its mpp is unknown, or it does not fit
        on the section better than chance.
    """
    settings = settings or IHCSettings()
    _check_settings(settings)
    stained, inputs = _open_ihc(ihc, mpp), []
    if isinstance(prediction, str | Path):
        inputs.append(Path(prediction))
    inputs += [stained.path, *([] if slide is None else [Path(slide)])]
    if out is not None:
        out = Path(out)
        check_output(out, overwrite=overwrite, marker=RESULT)
        refuse_inputs(out, inputs)
    found = open_predicted(prediction, slide, settings.registration)
    table = found.table
    values = _column(table, gene, str(found.name))
    log.info("H&E of the prediction: %s", found.told)
    log.info("registering %s", stained.path.name)
    registration = _registered(stained, found, settings)
    points, stain = _stained_points(table, found, registration, stained, settings)
    points.insert(2, "predicted", values)
    points["used"] &= np.isfinite(points["dab"])
    log.info("moving the stain %d times", settings.shifts)
    moved = _moves(points, stain, settings)
    genes = all_genes(table, points, moved)
    summary, null = summarise(gene, genes, points, moved, stain)
    summary |= {
        "registration": _described(registration),
        "he_slide": found.told,
        "provenance": provenance(
            "ihc",
            {**asdict(settings), "registration": settings.registration.model_dump(mode="json")}
            | {"gene": gene, "ihc_mpp": stained.mpp, "ihc_mpp_source": stained.mpp_source},
            input_hashes({*inputs, *found.files}, Path.cwd()),
            settings.seed,
        ),
    }
    result = IHCResult(gene, summary, points, genes, null, registration)
    if out is not None:
        _write(result, found, stained, stain, out)
    return result


def _check_settings(settings: IHCSettings) -> None:
    if settings.shifts < LEAST_SHIFTS:
        raise InputError(
            f"--shifts {settings.shifts}: too few to judge by; at least {LEAST_SHIFTS}"
        )
    if settings.diameter_um is not None and not 5.0 <= settings.diameter_um <= 2000.0:
        raise InputError(
            f"--disc {settings.diameter_um:g}: is no diameter of a spot in um; leave it out to use "
            "that of the prediction's spots"
        )


def _open_ihc(ihc: Slide | Path | str, mpp: float | None) -> Slide:
    stained = ihc if isinstance(ihc, Slide) else open_slide(ihc)
    if mpp is not None:
        return stained.with_mpp(mpp, "--mpp")
    if stained.mpp is None:
        raise InputError(
            f"{stained.path}: the size of a pixel is unknown (no mpp in the image's metadata); "
            "give it with --mpp, in micrometres per pixel"
        )
    return stained


def _column(table: AnnData, gene: str, name: str) -> FloatArray:
    """Predicted values of a gene."""
    if gene not in table.var_names:
        near = difflib.get_close_matches(gene, list(table.var_names), 3, cutoff=0.6)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"{name}: gene {gene!r} is not predicted; {hint}train with --genes that name it, or "
            "predict with --all-genes if its verdict left it out"
        )
    values = np.asarray(table[:, gene].X, np.float64).ravel()
    if not np.isfinite(values).all() or np.ptp(values) < 1e-6:
        raise InputError(
            f"{name}: {gene} is predicted the same everywhere; there is nothing to compare"
        )
    return values


def _registered(stained: Slide, found: PredictedSlide, settings: IHCSettings) -> Registration:
    registration = register(stained, found.slide, settings.registration, seed=settings.seed)
    where = f"{stained.path}: cannot be laid over the H&E of the prediction"
    advice = (
        "check that it is a section of the same block near this one, that both mpp are right, and "
        "crop it to one piece of tissue if the slide holds several"
    )
    if not registration.accepted:
        raise InputError(f"{where}: {registration.reason()}; {advice}")
    stretch = _stretch(registration)
    if not 1 / _LARGEST_STRETCH < stretch < _LARGEST_STRETCH:
        raise InputError(f"{where} without a change of size by {stretch:.2f}; {advice}")
    return registration


def _stretch(registration: Registration) -> float:
    return float(np.sqrt(abs(np.linalg.det(registration.affine.linear))))


def _stained_points(
    table: AnnData,
    found: PredictedSlide,
    registration: Registration,
    stained: Slide,
    settings: IHCSettings,
) -> tuple[pd.DataFrame, StainMap]:
    """Mean stain around every predicted point, and the map it comes from."""
    coords = np.asarray(table.obsm[keys.SPATIAL], np.float64)
    on_ihc = registration.transform.backward(coords * found.mpp)
    used = np.asarray(table.obs.get(keys.IN_TISSUE, True), bool) & np.ones(len(coords), bool)
    if not used.any():
        raise InputError(f"{found.name}: no predicted point lies on tissue; predict again")
    low, high = on_ihc[used].min(axis=0), on_ihc[used].max(axis=0)
    diameter = settings.diameter_um or found.spot_um
    box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
    stain = stain_map(stained, find_mask(stained), box, diameter)
    points = pd.DataFrame(
        {"x": coords[:, 0], "y": coords[:, 1], "ihc_x_um": on_ihc[:, 0], "ihc_y_um": on_ihc[:, 1]},
        index=pd.Index(table.obs_names, name="point"),
    ).assign(**stain.at(on_ihc), used=used)
    return points, stain


def _moves(points: pd.DataFrame, stain: StainMap, settings: IHCSettings) -> dict[str, MovedMaps]:
    """DAB and positive part under the used points, in place and after the same moves."""
    coords = points.loc[points["used"], ["ihc_x_um", "ihc_y_um"]].to_numpy()
    return {
        name: move_map(
            lambda at, name=name: stain.at(at)[name],  # type: ignore[misc]
            coords,
            moves=settings.shifts,
            seed=settings.seed,
        )
        for name in ("dab", "positive")
    }


def _described(registration: Registration) -> dict[str, Any]:
    values, _ = registration.transform.state()
    quality = {name: float(value) for name, value in vars(registration.quality).items()}
    return {
        "reason": registration.reason(),
        **quality,
        "stretch": _stretch(registration),
        "affine_um": values["matrix"],
        "deformed": registration.transform.field is not None,
    }


def _write(
    result: IHCResult, found: PredictedSlide, stained: Slide, stain: StainMap, out: Path
) -> None:
    view = IHCView(
        gene=result.gene,
        he=found.slide,
        ihc=stained,
        registration=result.registration,
        points=result.points,
        mpp=found.mpp,
        size_um=stain.diameter_um,
        null=result.null,
        summary=result.summary,
    )
    with atomic_folder(out) as folder:
        save_figure(ihc_picture(view), folder / "ihc.png")
        result.points.to_csv(folder / "ihc.csv", lineterminator="\n")
        result.genes.to_csv(folder / "genes.csv", index=False, lineterminator="\n")
        write_json(result.summary, folder / RESULT)
