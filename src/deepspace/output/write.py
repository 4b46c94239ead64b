"""Predictions and tables on disk: AnnData, SpatialData, Parquet, CSV, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dask.array
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, atomic_path, check_output
from deepspace.io.h5ad import save_h5ad
from deepspace.io.section import Section
from deepspace.output.spatialdata_store import require_spatialdata, to_spatialdata, write_store

SUFFIXES = (".h5ad", ".zarr")
# a zarr store that holds this table was written here
ZARR = "tables/prediction/zarr.json"
MEAN = "mean"
LAYERS = (keys.SD, keys.SD_LATENT)
PROVENANCE = "provenance"
HIRES_PX = 2000
LOWRES_PX = 600
# of a matrix in a file: points at once, values in a chunk, and genes that a chunk has at the least
BAND, CHUNK_VALUES, LEAST_GENES = 4096, 1 << 15, 16


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
        require_spatialdata()


def prediction_anndata(
    values: Mapping[str, Any],
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
        (points, clusters): probabilities. Arrays of numpy, or of dask where they lie on disk.
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
        X=values[MEAN].astype(np.float32, copy=False),
        obs=table,
        var=genes,
        layers={name: values[name].astype(np.float32, copy=False) for name in LAYERS},
        obsm={keys.SPATIAL: np.asarray(coords, np.float64).reshape(len(table), 2)},
        uns={
            keys.UNS: {PROVENANCE: record},
            keys.SPATIAL: {section.section: make_library(section, spot_diameter_px)},
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


def make_library(section: Section, spot_diameter_px: float) -> dict[str, Any]:
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
            _write_h5ad(adata, temporary)
    else:
        _check_kind(path, folder=True)
        store = to_spatialdata(adata)
        with atomic_folder(path) as temporary:
            write_store(store, temporary)


def _write_h5ad(adata: AnnData, path: Path) -> None:
    """Write the matrices band by band after all else, also those that lie on disk.

    anndata can write dask arrays too, but not in an order that gives the same bytes. A chunk holds
    many points of few genes: whoever looks at one gene reads little.
    """
    bare = AnnData(obs=adata.obs, var=adata.var, obsm=dict(adata.obsm), uns=dict(adata.uns))
    save_h5ad(bare, path)
    matrices = {"X": adata.X, **{f"layers/{name}": m for name, m in adata.layers.items()}}
    with h5py.File(path, "a", rdcc_nbytes=0) as file:  # as in save_h5ad
        file.pop("X", None)
        for name, matrix in matrices.items():
            lazy = isinstance(matrix, dask.array.Array)
            rows = max(1, matrix.chunksize[0] if lazy else min(BAND, len(matrix)))
            genes = max(1, min(matrix.shape[1], max(LEAST_GENES, CHUNK_VALUES // rows)))
            kept = file.create_dataset(
                name, matrix.shape, matrix.dtype, chunks=(rows, genes), compression="gzip"
            )
            kept.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            for start in range(0, len(matrix), rows):
                band = matrix[start : start + rows]
                kept[start : start + rows] = band.compute() if lazy else band


def _check_kind(path: Path, *, folder: bool) -> None:
    """Refuse to replace a file by a folder or a folder by a file."""
    if path.exists() and path.is_dir() != folder:
        found, wanted = ("file", "folder") if folder else ("folder", "file")
        raise InputError(
            f"{path}: is a {found}, not a {path.suffix} {wanted}; choose another --out"
        )


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
