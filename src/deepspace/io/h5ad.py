"""AnnData files with places in `obsm['spatial']`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import anndata
import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData
from scipy import sparse

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io import scale
from deepspace.io.matrix10x import open_h5
from deepspace.io.parts import Parts, as_category, as_csr, unique_genes

# names under which people keep clusters, the most explicit first
# in the metadata of `uns['spatial']`, as `write_section` puts it there
SPOT_UM: Final = "spot_diameter_um"
_CLUSTERS: Final = (keys.CLUSTER, "clusters", "leiden", "louvain")
_LAYERS: Final = ("counts", "raw_counts", "raw")
_SAMPLE: Final = 10_000


def read_h5ad(path: Path, *, platform: str = "h5ad") -> Parts:
    """Read raw counts and places from an AnnData file.

    Counts are taken from `X`; if those are no integers, from `layers['counts']` or `raw`, with
    a note. Where none are integers, `X` stays, and `validate` says so. Clusters are
    `obs['cluster']`, or the first of `clusters`, `leiden`, `louvain`.

    Raises
    ------
    InputError
        If the file is damaged, no AnnData, or has no places.
    """
    with open_h5(path) as file:
        if not {"obs", "var"} <= set(file):
            raise InputError(
                f"{path}: is HDF5, but no AnnData (it holds {', '.join(file) or 'nothing'}); write "
                "it with anndata's write_h5ad"
            )
    try:
        adata = anndata.read_h5ad(path)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{path}: cannot be read as AnnData ({error}); copy or write it again"
        ) from error
    parts = from_anndata(adata, path, platform)
    parts.sources["counts"] = path
    return parts


def from_anndata(adata: AnnData, path: Path, platform: str) -> Parts:
    """Take counts, places and scale out of an AnnData object that came from `path`.

    Raises
    ------
    InputError
        If it has no `obsm['spatial']` of two columns.
    """
    parts = places_from_anndata(adata, path, platform)
    spots = parts.spots
    assert spots is not None
    counts = _raw_counts(adata, path, parts.notes)
    counts.obs_names = spots.index
    inside = spots[keys.IN_TISSUE].to_numpy(bool)
    outside = ~inside & _measured(adata)
    if outside.any():
        parts.notes.append(f"{path}: {outside.sum()} spots outside tissue have counts: left out")
    kept = inside & _measured(adata)
    if (inside & ~kept).any():
        parts.notes.append(f"{path}: {(inside & ~kept).sum()} spots have obs['measured'] false")
    if kept.any() or not (inside & ~kept).any():
        parts.counts = _finish(adata, counts, spots)[kept].copy()
    return parts


def _measured(adata: AnnData) -> npt.NDArray[np.bool_]:
    """Rows with counts: `write_section` keeps the others as places alone."""
    if keys.MEASURED not in adata.obs:
        return np.ones(adata.n_obs, bool)
    return _flags(adata.obs[keys.MEASURED])


def places_from_anndata(adata: AnnData, path: Path, platform: str) -> Parts:
    """Take places and scale alone, whatever the object holds of counts.

    Raises
    ------
    InputError
        If it has no `obsm['spatial']` of two columns.
    """
    parts = Parts(platform)
    names = adata.obs_names.astype(str)
    spots = pd.DataFrame(_places(adata, path), columns=["x", "y"], index=names)
    spots[keys.IN_TISSUE] = _in_tissue(adata)
    for name in (keys.ARRAY_ROW, keys.ARRAY_COL):
        if name in adata.obs:
            spots[name] = pd.to_numeric(adata.obs[name], errors="coerce").to_numpy()
    parts.spots = spots
    _add_scale(adata, parts)
    return parts


def _places(adata: AnnData, path: Path) -> npt.NDArray[np.float64]:
    if keys.SPATIAL not in adata.obsm:
        have = ", ".join(adata.obsm) or "nothing"
        raise InputError(
            f"{path}: no obsm['spatial'] (obsm holds {have}); put the places of the spots there, "
            "x and y in full-resolution pixels"
        )
    places = np.asarray(adata.obsm[keys.SPATIAL], np.float64)
    if places.ndim != 2 or places.shape[1] != 2:
        raise InputError(
            f"{path}: obsm['spatial'] has shape {places.shape}; two columns are needed, x and y in "
            "full-resolution pixels"
        )
    return places


def _raw_counts(adata: AnnData, path: Path, notes: list[str]) -> AnnData:
    """Take X, else a layer, else raw: the first that holds integers."""
    options = [("X", adata.X, adata.var)]
    options += [
        (f"layers[{n!r}]", adata.layers[n], adata.var) for n in _LAYERS if n in adata.layers
    ]
    if adata.raw is not None:
        options.append(("raw", adata.raw.X, adata.raw.var))
    options = [option for option in options if option[1] is not None]
    if not options:
        raise InputError(f"{path}: has no X, layers['counts'] or raw; write the raw counts into X")
    name, matrix, var = next((o for o in options if is_integer(o[1])), options[0])
    if name != "X":
        notes.append(f"{path}: X holds no raw counts: {name} is read instead")
    columns = [column for column in (keys.GENE_IDS, keys.FEATURE_TYPES) if column in var]
    counts = AnnData(as_csr(matrix), var=var[columns].reset_index(drop=True).rename(index=str))
    counts.var_names = unique_genes(var.index.astype(str), notes)
    return counts


def is_integer(matrix: object) -> bool:
    """Say whether the first values of a matrix are whole numbers, none of them negative."""
    values = sparse.csr_matrix(matrix).data
    sample = np.asarray(values[:_SAMPLE], np.float64)
    return bool(np.all(np.isfinite(sample)) and np.all(sample >= 0) and np.all(sample % 1 == 0))


def _in_tissue(adata: AnnData) -> npt.NDArray[np.bool_]:
    if keys.IN_TISSUE not in adata.obs:
        return np.ones(adata.n_obs, bool)
    return _flags(adata.obs[keys.IN_TISSUE])


def _flags(column: pd.Series[Any]) -> npt.NDArray[np.bool_]:
    """Truth of a column, whatever it was written as."""
    return np.asarray(~column.astype(str).str.lower().isin(["0", "0.0", "false", "nan"]), bool)


def _finish(adata: AnnData, counts: AnnData, spots: pd.DataFrame) -> AnnData:
    counts.obsm[keys.SPATIAL] = spots[["x", "y"]].to_numpy(np.float64)
    counts.obs = spots.drop(columns=["x", "y"]).copy()
    label = next((name for name in _CLUSTERS if name in adata.obs), None)
    if label is not None:
        values = adata.obs[label]
        values.index = counts.obs_names
        counts.obs[keys.CLUSTER] = as_category(values)
    return counts


def _add_scale(adata: AnnData, parts: Parts) -> None:
    """Scale by the pitch, where array indices show a Visium array."""
    spots = parts.spots
    assert spots is not None
    parts.scalefactors = _scalefactors(adata)
    told = _library(adata).get("metadata", {})
    if told.get("mpp") is not None:
        parts.scales["uns['spatial'] metadata mpp"] = float(told["mpp"])
    mpp = scale.array_mpp(spots, scale.VISIUM_PITCH_UM)
    if mpp is not None:
        parts.spot_diameter_um, parts.spot_pitch_um = scale.VISIUM_SPOT_UM, scale.VISIUM_PITCH_UM
        parts.scales["spot pitch of 100 um in array_row, array_col"] = mpp
    if told.get(SPOT_UM) is not None:
        parts.spot_diameter_um = float(told[SPOT_UM])


def _scalefactors(adata: AnnData) -> dict[str, float]:
    """Space Ranger's numbers where scanpy keeps them, if there is one library."""
    factors = _library(adata).get("scalefactors", {})
    return {str(k): float(v) for k, v in factors.items() if isinstance(v, int | float | np.number)}


def _library(adata: AnnData) -> dict[str, Any]:
    """What scanpy keeps of the slide, if there is one."""
    libraries = adata.uns.get(keys.SPATIAL)
    if not isinstance(libraries, dict) or len(libraries) != 1:
        return {}
    library = next(iter(libraries.values()))
    return library if isinstance(library, dict) else {}


def save_h5ad(adata: AnnData, path: Path) -> None:
    """Write AnnData; the same object gives the same bytes, whatever else the process does.

    Without a chunk cache HDF5 stores values when they are written, and not when their data set is
    closed, which waits for whatever holds it: a profiler, a debugger, the garbage collector.

    Parameters
    ----------
    adata : AnnData
        In memory.
    path : Path
        Written over.
    """
    with h5py.File(path, "w", rdcc_nbytes=0) as file:
        anndata.io.write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
