"""Sections as other programs read them: AnnData as scanpy does, SpatialData."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.core.files import atomic_folder, atomic_path, check_output
from deepspace.io.h5ad import SPOT_UM, save_h5ad
from deepspace.io.section import Section
from deepspace.output.spatialdata_store import section_store, write_store
from deepspace.output.write import make_library

# a store with this table was written here
MARKER = "tables/deepspace_counts/zarr.json"
USUAL_SPOT_UM = 55.0


def section_to_anndata(section: Section) -> AnnData:
    """Give a section as AnnData that scanpy and squidpy draw as it is.

    Parameters
    ----------
    section : Section
        Whatever read it.

    Returns
    -------
    AnnData
        A row for every spot of the section: ``X`` raw counts (CSR), zeros where ``obs['measured']``
        is false; ``obs`` with `in_tissue`, `array_row`, `array_col`, `cluster` where known;
        ``obsm['spatial']`` in full-resolution pixels; ``uns['spatial']`` with the slide at two
        sizes.

    Raises
    ------
    InputError
        If the section has neither counts nor spots.
    """
    counts, spots = section.counts, section.spots
    if counts is None and spots is None:
        raise InputError(f"section {section.section}: has neither counts nor spots to write")
    if spots is None:
        assert counts is not None
        spots = pd.DataFrame(section.coords, counts.obs_names, ["x", "y"])
    obs = spots.drop(columns=["x", "y"])
    obs[keys.IN_TISSUE] = obs.get(keys.IN_TISSUE, True)
    row = np.full(len(obs), -1) if counts is None else counts.obs_names.get_indexer(obs.index)
    obs[keys.MEASURED] = row >= 0
    var = pd.DataFrame() if counts is None else counts.var.copy()
    values = sparse.csr_matrix((len(obs), len(var)), dtype=np.float32)
    if counts is not None:
        pick = sparse.csr_matrix(
            (np.ones((row >= 0).sum()), (np.flatnonzero(row >= 0), row[row >= 0])),
            shape=(len(obs), counts.n_obs),
        )
        values = sparse.csr_matrix(pick @ counts.X).astype(counts.X.dtype)
        if keys.CLUSTER in counts.obs:
            obs[keys.CLUSTER] = counts.obs[keys.CLUSTER].reindex(obs.index)
    diameter_um = section.spot_diameter_um or USUAL_SPOT_UM
    library = make_library(section, diameter_um / (section.slide.mpp or 1.0))
    if section.spot_diameter_um is not None:
        library["metadata"][SPOT_UM] = section.spot_diameter_um
    return AnnData(
        X=values,
        obs=obs,
        var=var,
        obsm={keys.SPATIAL: spots[["x", "y"]].to_numpy(np.float64)},
        uns={keys.SPATIAL: {section.section: library}},
    )


def write_section(section: Section, path: Path | str, *, overwrite: bool = False) -> None:
    """Write a section for other programs; `deepspace.read_section` gives it back.

    Parameters
    ----------
    section : Section
        Whatever read it.
    path : Path or str
        ``.h5ad``: `section_to_anndata`, with two small copies of the slide (to read it back, give
        the slide as `image`); ``.zarr``: a SpatialData store with the slide as a pyramid, the
        spots as circles and the table ``deepspace_counts``.
    overwrite : bool
        Replace `path` if it exists.

    Raises
    ------
    InputError
        If `path` must not be written or has another ending, or there is nothing to write.
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise InputError(f"{path}: must end in .h5ad (AnnData) or .zarr (SpatialData)")
    check_output(path, overwrite=overwrite, marker=MARKER if path.suffix == ".zarr" else None)
    table = section_to_anndata(section)
    WRITERS[path.suffix](section, table, path)


def _anndata(section: Section, table: AnnData, path: Path) -> None:
    del section
    with atomic_path(path) as temporary:
        save_h5ad(table, temporary)


def _spatialdata(section: Section, table: AnnData, path: Path) -> None:
    store: Any = section_store(table, section.slide)
    with atomic_folder(path) as temporary:
        write_store(store, temporary)


WRITERS = {".h5ad": _anndata, ".zarr": _spatialdata}
