"""What a reader found in one set of files, before the image is opened."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from deepspace.core import keys
from deepspace.core.classification import label_order
from deepspace.core.errors import InputError
from deepspace.io.slide import Slide

# spots columns that are carried into obs where they are known
_CARRIED = (keys.ARRAY_ROW, keys.ARRAY_COL, keys.CLUSTER)


@dataclass
class Parts:
    """Counts, spots and scale of one section as its files state them.

    Attributes
    ----------
    platform
        "visium", "visium_hd", "st", "h5ad", "hest", "spatialdata" or "image".
    counts
        Raw counts of the spots in tissue, or None for an unmeasured section.
    spots
        All spots of the slide: index barcode; `x`, `y` (full-resolution px), `in_tissue`.
    image
        Full-resolution image that the files themselves point to (or hold), if any.
    scales
        Source of the scale -> micrometres per pixel, the most trusted first.
    clusters_of_run
        Whether `obs['cluster']` numbers the clusters of this section's own Space Ranger run.
    """

    platform: str
    counts: AnnData | None = None
    spots: pd.DataFrame | None = None
    spot_diameter_um: float | None = None
    spot_pitch_um: float | None = None
    image: Path | Slide | None = None
    scales: dict[str, float] = field(default_factory=dict)
    scalefactors: dict[str, float] = field(default_factory=dict)
    sources: dict[str, Path] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    clusters_of_run: bool = False


@dataclass(frozen=True)
class Request:
    """What the user asks of a reader that has to choose.

    Attributes
    ----------
    section
        Section to read where a folder holds several.
    image
        Full-resolution image; None to look for it beside the files.
    bin_um
        Bin of Visium HD, um.
    raw
        Whether to read Space Ranger's raw matrix.
    """

    section: str | None = None
    image: Path | None = None
    bin_um: int | None = None
    raw: bool = False


def clip_list(items: list[str], most: int = 3) -> str:
    """Join the first few items for a message.

    Examples
    --------
    >>> clip_list(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def unique_genes(names: pd.Index, notes: list[str]) -> pd.Index:
    """Make gene symbols unique by anndata's `-1`, `-2` suffixes, and say so.

    Two Ensembl genes that share a symbol are different genes, so their counts are not
    summed; the identifier stays in `var['gene_ids']`.
    """
    if names.is_unique:
        return names
    from anndata.utils import make_index_unique  # noqa: PLC0415

    repeated = list(dict.fromkeys(names[names.duplicated()]))
    notes.append(
        f"{len(repeated)} gene names occur more than once ({clip_list(repeated)}): "
        "the later ones got the suffix -1, -2, ..."
    )
    unique: pd.Index = make_index_unique(names)
    return unique


def attach_spots(counts: AnnData, spots: pd.DataFrame, where: Path, notes: list[str]) -> AnnData:
    """Give every row of `counts` its place, and keep the rows that lie in tissue.

    Parameters
    ----------
    counts
        Counts, obs_names = barcodes.
    spots
        All spots, index barcode, with `x`, `y` and `in_tissue`.
    where
        The spot file, named in messages.
    notes
        Gets one line for rows without a spot and one for rows outside tissue.

    Raises
    ------
    InputError
        If no barcode of the counts has a spot.
    """
    known = counts.obs_names.isin(spots.index)
    if not known.any() and counts.n_obs:
        raise InputError(
            f"{where}: none of the {counts.n_obs} barcodes of the counts (first: "
            f"{counts.obs_names[0]}) is in it (first: {clip_list([*map(str, spots.index[:1])])}); "
            "give the spots file of this section"
        )
    if not known.all():
        lost = [str(name) for name in counts.obs_names[~known]]
        notes.append(f"{where}: {len(lost)} barcodes have counts but no spot ({clip_list(lost)})")
    place = spots.reindex(counts.obs_names[known])
    inside = place[keys.IN_TISSUE].to_numpy(bool)
    if not inside.all():
        notes.append(f"{where}: {(~inside).sum()} spots outside tissue have counts: left out")
    placed = counts[np.flatnonzero(known)[inside]].copy()
    place = place[inside]
    placed.obsm[keys.SPATIAL] = place[["x", "y"]].to_numpy(np.float64)
    placed.obs[keys.IN_TISSUE] = True
    for name in _CARRIED:
        if name in place:
            placed.obs[name] = place[name].to_numpy()
    if keys.CLUSTER in placed.obs:
        placed.obs[keys.CLUSTER] = as_category(placed.obs[keys.CLUSTER])
    return placed


def as_category(values: pd.Series[Any]) -> pd.Series[Any]:
    """Turn cluster labels into a category of strings, in `label_order`; missing stays missing."""
    texts = values.map(str, na_action="ignore")
    labels: pd.Series[Any] = texts.astype(
        pd.CategoricalDtype(label_order(texts.dropna().to_numpy(dtype=object)))
    )
    return labels


def as_csr(matrix: object) -> sparse.csr_matrix:
    """Turn counts into CSR float32 with sorted indices (exact below 2**24)."""
    csr = sparse.csr_matrix(matrix, dtype=np.float32)
    csr.sort_indices()
    return csr
