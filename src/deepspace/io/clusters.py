"""Cluster labels of a section from a table of their own: the sheet's column `clusters`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.parts import Parts, as_category, clip_list
from deepspace.io.text import delimiter, read_text, stream

# columns that hold the label, the most explicit first; compared in lower case
_LABELS: Final = ("cluster", "clusters", "label")
_BARCODE: Final = "barcode"
_PLACE: Final = ("x", "y")


def add_cluster_table(path: Path, parts: Parts) -> None:
    """Take the labels of a table into `obs['cluster']`, in place of any that were read before.

    Parameters
    ----------
    path
        CSV or TSV, gzip or not, with a column `cluster`, `clusters` or `label`, and either a
        column `barcode`, or array positions `x`, `y` (those of the spot id `XxY` of an ST array,
        columns and rows of Visium), or barcodes in its first column. An empty label is none.
    parts
        A measured section; notes say how many spots have no label.

    Raises
    ------
    InputError
        If the table has no such columns, labels a spot twice, or fits none of the spots.
    """
    counts = parts.counts
    assert counts is not None  # the sheet refuses labels without counts
    labels, spots = _read_labels(path, counts)
    if labels.index.has_duplicates:
        twice = labels.index[labels.index.duplicated()].unique()
        raise InputError(
            f"{path}: labels spots twice ({clip_list([*map(str, twice)])}); keep one line of each"
        )
    joined = labels.reindex(spots)
    joined.index = counts.obs_names
    missing = int(joined.isna().sum())
    if missing == counts.n_obs:
        raise InputError(
            f"{path}: none of its {len(labels)} labelled spots (first: "
            f"{clip_list([*map(str, labels.index[:1])])}) is one of the {counts.n_obs} of the "
            f"counts (first: {clip_list([*map(str, spots[:1])])}); give the labels of this section"
        )
    if missing:
        parts.notes.append(f"{path}: {missing} of {counts.n_obs} spots have no cluster")
    strange = int((~labels.index.isin(spots)).sum())
    if strange:
        parts.notes.append(f"{path}: {strange} of {len(labels)} labelled spots have no counts")
    counts.obs[keys.CLUSTER] = as_category(joined)
    parts.sources["clusters"] = path
    parts.clusters_of_run = False


def _read_labels(path: Path, counts: AnnData) -> tuple[pd.Series[str], pd.Index]:
    """Labels by spot, and the spots of the counts in the same terms."""
    text = read_text(path)
    mark = delimiter(text.splitlines()[0])
    table = pd.read_csv(stream(text), sep=mark, dtype=str)
    table.columns = pd.Index([str(name).strip().lower() for name in table])
    found = next((name for name in _LABELS if name in table), None)
    if found is None:
        raise InputError(
            f"{path}: no column cluster or label (found: {clip_list([*map(str, table)], 8)}); "
            "name the column of the labels cluster"
        )
    labels = table[found].str.strip().replace("", None)
    if _BARCODE in table or not set(_PLACE) <= set(table):
        names = table[_BARCODE] if _BARCODE in table else table.iloc[:, 0]
        labels.index, spots = pd.Index(names.str.strip()), counts.obs_names
    else:
        places = [pd.to_numeric(table[name], errors="coerce") for name in _PLACE]
        labels.index, spots = pd.Index(_spot_ids(*places)), _spots_by_place(counts)
    return labels.dropna(), spots


def _spots_by_place(counts: AnnData) -> pd.Index:
    """Spots as `XxY`: by their array columns where known, else as they are called."""
    spots: pd.Index = counts.obs_names
    if {keys.ARRAY_ROW, keys.ARRAY_COL} <= set(counts.obs):
        spots = pd.Index(_spot_ids(counts.obs[keys.ARRAY_COL], counts.obs[keys.ARRAY_ROW]))
    return spots


def _spot_ids(x: pd.Series[float], y: pd.Series[float]) -> list[str]:
    return [f"{a:g}x{b:g}" for a, b in zip(x, y, strict=True)]
