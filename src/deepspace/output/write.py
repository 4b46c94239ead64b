"""Predictions and tables on disk: AnnData, SpatialData, Parquet, CSV, JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, atomic_path, check_output
from deepspace.io.section import Section

SUFFIXES = (".h5ad", ".zarr")
# a zarr store that holds this table was written here
ZARR = "tables/prediction/zarr.json"
MEAN = "mean"
PROVENANCE = "provenance"
HIRES_PX = 2000
LOWRES_PX = 600

REGION = "region"
INSTANCE = "instance_id"


def check_suffix(path: Path) -> None:
    """Refuse a file name that no writer here understands.

    Raises
    ------
    InputError
        If `path` ends neither in ``.h5ad`` nor in ``.zarr``, or if it is a SpatialData store
        and that package is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(
            f"--out {path}: must end in .h5ad (AnnData) or .zarr (SpatialData); "
            f"try {path.with_suffix('.h5ad')}"
        )
    if path.suffix == ".zarr":
        _spatialdata()


def prediction_anndata(
    values: Mapping[str, ArrayLike],
    coords: ArrayLike,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    *,
    section: Section,
    provenance: Mapping[str, Any],
    spot_diameter_px: float,
) -> AnnData:
    """Put a prediction together as AnnData that scanpy and squidpy can draw as it is.

    Parameters
    ----------
    values : mapping
        ``mean``, ``sd`` and ``sd_latent``, each (points, genes): log1p of counts per 10,000; or
        (points, clusters): probabilities.
    coords : array
        (points, 2) `x, y`, full-resolution pixels.
    obs : DataFrame
        One row a point; bool columns `measured`, `in_tissue` and `ood`; others stay.
    var : DataFrame
        One row a gene or cluster; `predictable` (bool) and `score` (float, NaN where unknown).
    section : Section
        Whose slide the points lie on.
    provenance : mapping
        JSON values; kept as text in ``uns['deepspace']['provenance']``.
    spot_diameter_px : float
        Diameter that a point is drawn with, full-resolution pixels.

    Returns
    -------
    AnnData
        ``X`` and the layers ``sd`` and ``sd_latent`` are float32; ``uns['spatial']`` holds the
        slide at two sizes with its scale factors.

    Raises
    ------
    ValueError
        If a column or a value is missing or of the wrong shape.
    InputError
        If the section's name cannot be a key in a file.
    """
    _check_name(section.section)
    _check_columns(obs, (keys.MEASURED, keys.IN_TISSUE, keys.OOD), "obs")
    _check_columns(var, (keys.PREDICTABLE, keys.SCORE), "var")
    table = obs.copy()
    for name in (keys.MEASURED, keys.IN_TISSUE, keys.OOD):
        table[name] = table[name].to_numpy(dtype=bool)
    table[keys.SECTION] = pd.Categorical([section.section] * len(table))
    genes = var.copy()
    genes[keys.PREDICTABLE] = genes[keys.PREDICTABLE].to_numpy(dtype=bool)
    genes[keys.SCORE] = genes[keys.SCORE].to_numpy(dtype=np.float64)
    record = json.dumps(provenance, sort_keys=True)
    return AnnData(
        X=np.asarray(values[MEAN], np.float32),
        obs=table,
        var=genes,
        layers={name: np.asarray(values[name], np.float32) for name in (keys.SD, keys.SD_LATENT)},
        obsm={keys.SPATIAL: np.asarray(coords, np.float64).reshape(len(table), 2)},
        uns={
            keys.UNS: {PROVENANCE: record},
            keys.SPATIAL: {section.section: _library(section, spot_diameter_px)},
        },
    )


def _check_name(section: str) -> None:
    # HDF5 and zarr take these for folders: scanpy would not find the slide again
    if "/" in section or section in (".", ".."):
        raise InputError(
            f"section {section!r}: a prediction cannot be stored under this name; rename the "
            "section in the sheet, without '/'"
        )


def _check_columns(table: pd.DataFrame, names: tuple[str, ...], where: str) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"{where} has no column {', '.join(missing)}")


def _library(section: Section, spot_diameter_px: float) -> dict[str, Any]:
    """Entry of ``uns['spatial']`` as Space Ranger's readers make it."""
    slide = section.slide
    hires, hires_downsample = slide.thumbnail(HIRES_PX)
    lowres, lowres_downsample = slide.thumbnail(LOWRES_PX)
    metadata: dict[str, Any] = {"source_image_path": slide.path.name}
    if slide.mpp is not None:
        metadata["mpp"] = slide.mpp
    return {
        "images": {"hires": hires, "lowres": lowres},
        "scalefactors": {
            "tissue_hires_scalef": 1.0 / hires_downsample,
            "tissue_lowres_scalef": 1.0 / lowres_downsample,
            "spot_diameter_fullres": float(spot_diameter_px),
        },
        "metadata": metadata,
    }


def read_provenance(adata: AnnData) -> dict[str, Any]:
    """Provenance of a prediction, as it was given to `prediction_anndata`."""
    record: dict[str, Any] = json.loads(adata.uns[keys.UNS][PROVENANCE])
    return record


def write_prediction(adata: AnnData, path: Path, *, overwrite: bool = False) -> None:
    """Write a prediction; the file or folder appears whole or not at all.

    Parameters
    ----------
    adata : AnnData
        From `prediction_anndata`.
    path : Path
        ``.h5ad`` for AnnData, ``.zarr`` for a SpatialData store with the slide as an image,
        the points as circles and the prediction as the table that annotates them.
    overwrite : bool
        Replace `path` if it exists.

    Raises
    ------
    InputError
        If `path` exists and `overwrite` is false, its suffix is unknown, or SpatialData is not
        installed.
    """
    check_suffix(path)
    check_output(path, overwrite=overwrite, marker=ZARR if path.suffix == ".zarr" else None)
    if path.suffix == ".h5ad":
        _check_kind(path, folder=False)
        with atomic_path(path) as temporary:
            adata.write_h5ad(temporary, compression="gzip")
    else:
        _check_kind(path, folder=True)
        store = to_spatialdata(adata)
        with atomic_folder(path) as temporary:
            # SpatialData writes only where nothing is
            temporary.rmdir()
            store.write(temporary)


def _check_kind(path: Path, *, folder: bool) -> None:
    """Refuse to replace a file by a folder or a folder by a file."""
    if path.exists() and path.is_dir() != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise InputError(
            f"{path}: is a {found}, not a {path.suffix} {wanted}; choose another --out"
        )


def to_spatialdata(adata: AnnData) -> Any:
    """Turn a prediction into SpatialData.

    Parameters
    ----------
    adata : AnnData
        From `prediction_anndata`.

    Returns
    -------
    SpatialData
        Image ``{section}_image``, circles ``{section}_points``, table ``prediction``. Their
        coordinate systems are the section's name and ``global``, both in full-resolution
        pixels.

    Raises
    ------
    InputError
        If SpatialData is not installed.
    """
    spatialdata = _spatialdata()
    from spatialdata.models import Image2DModel, ShapesModel, TableModel  # noqa: PLC0415
    from spatialdata.transformations import Identity, Scale  # noqa: PLC0415

    ((section, library),) = adata.uns[keys.SPATIAL].items()
    # a leading dot hides an element from readers, two underscores are reserved
    element = re.sub(r"[^A-Za-z0-9_.-]", "_", section).lstrip("._") or "section"
    scales = library["scalefactors"]
    full = 1.0 / scales["tissue_hires_scalef"]
    image = Image2DModel.parse(
        np.moveaxis(library["images"]["hires"], -1, 0),
        dims=("c", "y", "x"),
        c_coords=["r", "g", "b"],
        transformations={s: Scale([full, full], axes=("x", "y")) for s in (section, "global")},
    )
    circles = ShapesModel.parse(
        adata.obsm[keys.SPATIAL],
        geometry=0,
        radius=scales["spot_diameter_fullres"] / 2,
        index=adata.obs_names.to_numpy(dtype=object),
        transformations={s: Identity() for s in (section, "global")},
    )
    points = f"{element}_points"
    table = adata.copy()
    table.obs[REGION] = pd.Categorical([points] * table.n_obs)
    table.obs[INSTANCE] = table.obs_names.to_numpy(dtype=object)
    return spatialdata.SpatialData(
        images={f"{element}_image": image},
        shapes={points: circles},
        tables={
            "prediction": TableModel.parse(
                table, region=points, region_key=REGION, instance_key=INSTANCE
            )
        },
    )


def _spatialdata() -> Any:
    try:
        import spatialdata  # noqa: PLC0415
    except ImportError:
        raise InputError(
            "writing a .zarr store needs SpatialData; run: pip install 'deepspace[spatial]', "
            "or choose a name that ends in .h5ad"
        ) from None
    return spatialdata


def write_table(table: pd.DataFrame, stem: Path) -> tuple[Path, Path]:
    """Write a table as Parquet and as CSV, without its index.

    Parameters
    ----------
    table : DataFrame
        Tidy table.
    stem : Path
        Path without suffix; ``.parquet`` and ``.csv`` are added.

    Returns
    -------
    tuple of Path
        The two files.
    """
    # not with_suffix: a dot in the name is no suffix
    parquet, csv = (stem.with_name(stem.name + suffix) for suffix in (".parquet", ".csv"))
    with atomic_path(parquet) as temporary:
        table.to_parquet(temporary, index=False)
    with atomic_path(csv) as temporary:
        table.to_csv(temporary, index=False, lineterminator="\n")
    return parquet, csv


def write_json(values: Mapping[str, Any], path: Path) -> None:
    """Write JSON values, indented, with keys in the order given.

    Raises
    ------
    ValueError
        If a number is not finite: JSON has no NaN.
    """
    with atomic_path(path) as temporary:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        temporary.write_text(text + "\n", encoding="utf-8")
