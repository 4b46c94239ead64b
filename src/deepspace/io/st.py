"""Legacy Spatial Transcriptomics arrays: a table of counts and a table of spots.

Counts are spots x genes with ids such as `10x21` (array x, array y), as st_pipeline writes
them; spots are the spot detector's `x, y, new_x, new_y, pixel_x, pixel_y, selected`.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from anndata import AnnData

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io import scale
from deepspace.io.parts import Parts, as_csr, attach_spots, clip_list, unique_genes
from deepspace.io.text import delimiter, read_text, stream

_SPOT_ID = re.compile(r"^\s*\"?(-?\d+(?:\.\d+)?)[x_](-?\d+(?:\.\d+)?)\"?\s*$")
_COLUMNS = ["x", "y", "new_x", "new_y", "pixel_x", "pixel_y", "selected"]
_LABELS = ("cluster", "label")


def read_st(counts: Path, spots: Path) -> Parts:
    """Read a section of a legacy ST array.

    Parameters
    ----------
    counts
        Table of spots x genes (.tsv or .csv, gzip or not); genes x spots is turned round.
    spots
        Table of spots with `x`, `y`, `pixel_x`, `pixel_y`.

    Raises
    ------
    InputError
        If a table cannot be read, or no id of the one is in the other.
    """
    notes: list[str] = []
    table = read_spots(spots)
    adata = read_counts(counts, notes)
    adata.obs_names = pd.Index(_match_ids(adata.obs_names, table, counts))
    placed = attach_spots(adata, table, spots, notes)
    missing = int(table[keys.IN_TISSUE].sum()) - placed.n_obs
    if missing > 0:
        notes.append(f"{counts}: {missing} spots in tissue of {spots.name} have no counts")
    parts = spots_only(spots, table)
    parts.counts = placed
    parts.sources = {"counts": counts, "spots": spots}
    parts.notes = notes
    return parts


def spots_only(path: Path, table: pd.DataFrame) -> Parts:
    """Parts of an ST section that has spots and no counts."""
    parts = Parts(
        "st", spots=table, spot_diameter_um=scale.ST_SPOT_UM, spot_pitch_um=scale.ST_PITCH_UM
    )
    parts.sources = {"spots": path}
    mpp = scale.array_mpp(table, scale.ST_PITCH_UM)
    if mpp is not None:
        parts.scales[f"spot pitch of 200 um in {path.name}"] = mpp
    return parts


def read_spots(path: Path) -> pd.DataFrame:
    """Read a spot detector's table.

    Returns
    -------
    Index `XxY`; columns `x`, `y` (pixel), `in_tissue`, `array_row`, `array_col`; `new_x`,
    `new_y` (adjusted place on the array) and `cluster` where the file has them.

    Raises
    ------
    InputError
        If a column is missing or not a number, or a spot occurs twice.
    """
    raw = _spot_table(path)
    out = pd.DataFrame(
        index=pd.Index([_spot_id(x, y) for x, y in zip(raw["x"], raw["y"], strict=True)])
    )
    for name, source in (
        ("x", "pixel_x"),
        ("y", "pixel_y"),
        ("new_x", "new_x"),
        ("new_y", "new_y"),
    ):
        if source in raw:
            out[name] = raw[source].to_numpy(np.float64)
    out[keys.IN_TISSUE] = raw["selected"].to_numpy() != 0 if "selected" in raw else True
    out[keys.ARRAY_ROW] = raw["y"].to_numpy()
    out[keys.ARRAY_COL] = raw["x"].to_numpy()
    label = next((name for name in _LABELS if name in raw), None)
    if label is not None:
        out[keys.CLUSTER] = raw[label].to_numpy()
    if not out.index.is_unique:
        twice = sorted(set(out.index[out.index.duplicated()]))
        raise InputError(f"{path}: spots occur twice ({clip_list(twice)}); keep one line of each")
    return out


def read_counts(path: Path, notes: list[str]) -> AnnData:
    """Read a table of counts as spots x genes, obs_names as they stand in the file.

    Raises
    ------
    InputError
        If the table has no spot ids, ragged rows, or values that are not numbers.
    """
    lines = read_text(path).splitlines()
    mark = delimiter(lines[0])
    header = [field.strip().strip('"') for field in lines[0].split(mark)]
    rows = [line.partition(mark) for line in lines[1:] if line.strip()]
    if not rows:
        raise InputError(f"{path}: has a header and no rows; export the counts again")
    names = [row[0].strip().strip('"') for row in rows]
    values = _numbers(path, [row[2] for row in rows], names, mark)
    # R writes no field above the row names
    columns = header if len(header) == values.shape[1] else header[1:]
    if len(columns) != values.shape[1]:
        raise InputError(
            f"{path}: {len(header)} fields in the header, {values.shape[1] + 1} in the rows; "
            "export the table again"
        )
    if not _are_spot_ids(names):
        if not _are_spot_ids(columns):
            raise InputError(
                f"{path}: neither the row names (first: {names[0]}) nor the column names (first: "
                f"{columns[0]}) are spot ids such as 10x21; give counts of spots x genes"
            )
        notes.append(f"{path}: holds genes x spots: turned to spots x genes")
        names, columns, values = columns, names, values.T
    adata = AnnData(as_csr(values), obs=pd.DataFrame(index=names))
    adata.var_names = unique_genes(pd.Index(columns), notes)
    return adata


def _numbers(path: Path, rows: list[str], names: list[str], mark: str) -> npt.NDArray[np.float32]:
    try:
        return np.loadtxt(rows, delimiter=mark, dtype=np.float32, ndmin=2, comments=None)
    except ValueError as error:
        width = {row.count(mark) for row in rows}
        cause = "rows of different length: cut short?" if len(width) > 1 else str(error)
        raise InputError(
            f"{path}: is not a table of numbers ({cause}; rows {names[0]} to {names[-1]}); "
            "export or copy it again"
        ) from error


def _spot_table(path: Path) -> pd.DataFrame:
    text = read_text(path)
    first = text.lstrip().splitlines()[0]
    mark = delimiter(first)
    headed = not all(_is_number(field) for field in first.split(mark))
    raw = pd.read_csv(stream(text), sep=mark, header=0 if headed else None)
    if not headed:
        raw.columns = pd.Index(_COLUMNS[: raw.shape[1]])
    raw = raw.rename(columns=lambda name: str(name).strip().lower()).dropna(how="all")
    missing = [name for name in ("x", "y", "pixel_x", "pixel_y") if name not in raw]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)} (found: {clip_list([*map(str, raw)], 8)}); "
            "an ST spot file has x, y, pixel_x, pixel_y"
        )
    for name in (name for name in _COLUMNS if name in raw):
        numbers = pd.to_numeric(raw[name], errors="coerce")
        if numbers.isna().any():
            line = int(np.flatnonzero(numbers.isna())[0])
            raise InputError(
                f"{path}: {name} of row {line + 1} is {raw[name].iloc[line]!r}, not a number"
            )
        raw[name] = numbers
    return raw


def _match_ids(names: pd.Index, table: pd.DataFrame, path: Path) -> list[str]:
    """Spot ids of the counts in the spelling of the spot table."""
    places = np.array([_parse(name, path) for name in names])
    if np.all(places == np.round(places)) or "new_x" not in table:
        return [_spot_id(x, y) for x, y in places]
    # published tables may carry the adjusted place (16.92x17.00) for an id
    adjusted = {
        (round(x, 2), round(y, 2)): str(name)
        for name, x, y in zip(table.index, table["new_x"], table["new_y"], strict=True)
    }
    return [adjusted.get((round(x, 2), round(y, 2)), f"{x}x{y}") for x, y in places]


def _parse(name: str, path: Path) -> tuple[float, float]:
    match = _SPOT_ID.match(name)
    if match is None:
        raise InputError(f"{path}: {name!r} is not a spot id such as 10x21")
    return float(match[1]), float(match[2])


def _are_spot_ids(names: list[str]) -> bool:
    return all(_SPOT_ID.match(name) for name in names[:20])


def _spot_id(x: float, y: float) -> str:
    return f"{x:g}x{y:g}"


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
