"""Space Ranger's tissue positions: every spot of the array and its place in the image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.io.parts import clip_list
from deepspace.io.text import delimiter, need_file, read_text, stream

# the order of the file without a header: row before column, so y before x
COLUMNS: Final = (
    "barcode",
    "in_tissue",
    "array_row",
    "array_col",
    "pxl_row_in_fullres",
    "pxl_col_in_fullres",
)
_PARQUET: Final = b"PAR1"


def read_positions(path: Path) -> pd.DataFrame:
    """Read tissue_positions of any version; header or not is seen from the content.

    Returns
    -------
    Index barcode, in the file's order; `x` = `pxl_col_in_fullres` and
    `y` = `pxl_row_in_fullres` (float64, px), `in_tissue` (bool), `array_row`, `array_col`.

    Raises
    ------
    InputError
        If columns are missing, values are not numbers, or a barcode occurs twice.
    """
    raw = _read_parquet(path) if _is_parquet(path) else _read_csv(path)
    numbers = raw[list(COLUMNS[1:])].apply(pd.to_numeric, errors="coerce")
    bad = np.argwhere(~np.isfinite(numbers.to_numpy(np.float64)))
    if len(bad):
        row, column = int(bad[0, 0]), int(bad[0, 1])
        raise InputError(
            f"{path}: {COLUMNS[column + 1]} of {raw['barcode'].iloc[row]} is "
            f"{raw[COLUMNS[column + 1]].iloc[row]!r}, not a number; copy the file again"
        )
    spots = pd.DataFrame(index=pd.Index(raw["barcode"].astype(str), name="barcode"))
    spots["x"] = numbers["pxl_col_in_fullres"].to_numpy(np.float64)
    spots["y"] = numbers["pxl_row_in_fullres"].to_numpy(np.float64)
    spots[keys.IN_TISSUE] = numbers["in_tissue"].to_numpy() != 0
    spots[keys.ARRAY_ROW] = numbers["array_row"].to_numpy()
    spots[keys.ARRAY_COL] = numbers["array_col"].to_numpy()
    if not spots.index.is_unique:
        twice = sorted(set(spots.index[spots.index.duplicated()]))
        raise InputError(
            f"{path}: duplicate barcodes: {len(twice)} occur more than once ({clip_list(twice)}); "
            "give the positions of one section, as Space Ranger wrote them"
        )
    return spots


def is_positions(path: Path) -> bool:
    """Say whether a file's content is that of tissue positions."""
    if _is_parquet(path):
        return True
    first = read_text(path).lstrip().splitlines()[0]
    fields = [field.strip().strip('"') for field in first.split(delimiter(first))]
    bare = [_number(field) for field in fields]
    return set(COLUMNS) <= set(fields) or bare == [False] + [True] * (len(COLUMNS) - 1)


def _is_parquet(path: Path) -> bool:
    with need_file(path).open("rb") as file:
        return file.read(4) == _PARQUET


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        raw = pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:
        # pyarrow's ArrowInvalid is a ValueError
        raise InputError(
            f"{path}: is damaged or cut short ({error}); download or copy it again"
        ) from error
    if "barcode" not in raw and raw.index.name == "barcode":
        raw = raw.reset_index()
    return _need_columns(path, raw)


def _read_csv(path: Path) -> pd.DataFrame:
    text = read_text(path)
    first = text.lstrip().splitlines()[0]
    mark = delimiter(first)
    fields = [field.strip().strip('"') for field in first.split(mark)]
    headed = len(fields) > 1 and not _number(fields[1])
    try:
        raw = pd.read_csv(stream(text), sep=mark, header=0 if headed else None, dtype=str)
    except pd.errors.ParserError as error:
        raise InputError(f"{path}: is not a table ({str(error).strip()}); copy it again") from error
    if headed:
        raw.columns = raw.columns.str.strip()
        return _need_columns(path, raw)
    if raw.shape[1] != len(COLUMNS):
        raise InputError(
            f"{path}: has {raw.shape[1]} columns and no header; tissue positions have "
            f"{len(COLUMNS)} ({', '.join(COLUMNS)}): copy the file again"
        )
    raw.columns = pd.Index(COLUMNS)
    return raw


def _need_columns(path: Path, raw: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in COLUMNS if name not in raw]
    if missing:
        raise InputError(
            f"{path}: no column {', '.join(missing)} (found: {clip_list([*map(str, raw)], 8)}); "
            "give Space Ranger's tissue_positions"
        )
    return raw


def _number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
