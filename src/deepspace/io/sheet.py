"""The cohort sheet: one row per section."""

from __future__ import annotations

import csv
import difflib
import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from deepspace.core.errors import InputError, Problems
from deepspace.io.checks import check_cohort, section_id_problems
from deepspace.io.clusters import add_cluster_table
from deepspace.io.detect import read_parts
from deepspace.io.parts import Parts, Request
from deepspace.io.section import Ids, Section, assemble, read_section
from deepspace.io.tables import read_measured_table, read_spots_only
from deepspace.io.text import delimiter, read_text, stream

__all__ = ["COLUMNS", "check_cohort", "list_sections", "read_sheet"]

COLUMNS: Final = (
    "section",
    "patient",
    "z_um",
    "mpp",
    "image",
    "counts",
    "spots",
    "spaceranger",
    "h5ad",
    "clusters",
)
REQUIRED: Final = ("section", "patient")
_PATHS: Final = ("image", "counts", "spots", "spaceranger", "h5ad", "clusters")
_SUFFIXES: Final = (".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Row:
    """One line of the sheet, with paths made absolute against the sheet's folder."""

    line: int
    ids: Ids
    mpp: float | None
    paths: dict[str, Path]


def read_sheet(path: Path | str, *, only: Collection[str] | None = None) -> list[Section]:
    """Read the sections of a cohort.

    Parameters
    ----------
    path
        A CSV file with the columns `section, patient, z_um, mpp, image, counts, spots,
        spaceranger, h5ad, clusters` (unused ones absent or empty; separated by comma, semicolon or
        tab; paths relative to the sheet); or anything that `read_section` reads, as a cohort
        of one.
        `counts` is a table of an ST array, or a 10x matrix with tissue positions in `spots`;
        `h5ad` may also be a SpatialData `.zarr`; `clusters` is a table of labels that mean the
        same in every section (`add_cluster_table`). A row without counts, spaceranger and h5ad
        is an unmeasured section.
    only
        Identifiers of the sections to read; what the sheet says of the others is checked, but
        not whether their files are there.

    Returns
    -------
    One section per row, in the order of the sheet.

    Raises
    ------
    InputError
        With every fault of the sheet, or of all files it names, in one message.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() not in _SUFFIXES:
        return [read_section(path)]
    rows = _choose(path, _parse(path, only), only)
    problems = Problems(str(path))
    sections = []
    for row in rows:
        try:
            sections.append(_read_row(row))
        except InputError as error:
            problems.add(f"line {row.line}, section {row.ids.section}: {error}")
    problems.raise_if_any()
    return sections


def list_sections(path: Path | str, *, only: Collection[str] | None = None) -> list[Row]:
    """What a cohort says of each section; whether its files are there is not asked.

    Parameters and errors are those of `read_sheet`, but for those of the files.
    """
    path = Path(path)
    if path.is_dir() or path.suffix.lower() not in _SUFFIXES:
        (found,) = read_sheet(path, only=only)
        return [Row(0, Ids(found.section, found.patient, found.z_um), None, {"section": path})]
    return _choose(path, _parse(path, ()), only)


def _read_row(row: Row) -> Section:
    paths = row.paths
    image = paths.get("image")
    source = paths.get("spaceranger") or paths.get("h5ad")
    if source is not None:
        parts, _ = read_parts(source, Request(section=row.ids.section, image=image))
    elif "counts" in paths:
        parts = read_measured_table(paths["counts"], paths["spots"])
    elif "spots" in paths:
        parts = read_spots_only(paths["spots"])
    else:
        parts = Parts("image")
    if "clusters" in paths:
        add_cluster_table(paths["clusters"], parts)
    return assemble(parts, row.ids, image=image, mpp=row.mpp)


def _parse(path: Path, only: Collection[str] | None) -> list[Row]:
    """Check the whole sheet without opening what it names; ask for the files of `only`."""
    header, table = _read_table(path)
    problems = Problems(str(path))
    # spreadsheets leave empty columns without a name behind
    header = [name for name in header if name or any(row[""] for row in table)]
    _check_columns(header, problems)
    problems.raise_if_any()
    if not table:
        problems.add("has no rows; write one line per section under the header")
    names = [cells["section"] for cells in table]
    for name in sorted({name for name in names if name and names.count(name) > 1}):
        problems.add(f"section {name!r} occurs more than once; section ids must be unique")
    kept: dict[str, str] = {}
    for name in names:
        other = kept.setdefault(name.casefold(), name)
        if other != name:  # on some disks their files would be one
            problems.add(f"sections {other!r} and {name!r} differ only in case; rename one")
    rows = [
        _row(path, cells, problems, only is None or cells["section"] in only) for cells in table
    ]
    problems.raise_if_any()
    return rows


def _read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the header, and per row its cells by column with its `line`; blank rows dropped."""
    # old Macintosh line ends too, which csv refuses
    text = read_text(path).replace("\r\n", "\n").replace("\r", "\n")
    first = next(line for line in text.splitlines() if line.strip())
    reader = csv.reader(stream(text), delimiter=delimiter(first), strict=True)
    header: list[str] = []
    rows = []
    for fields in _whole(reader, path):
        cells = [field.strip() for field in fields]
        if not any(cells):
            continue
        if not header:
            header = cells
            continue
        if any(cells[len(header) :]):
            raise InputError(
                f"{path}: line {reader.line_num} has {len(cells)} cells, the header has "
                f"{len(header)}; quote cells that hold a separator"
            )
        padded = cells[: len(header)] + [""] * (len(header) - len(cells))
        rows.append({"line": str(reader.line_num), **dict(zip(header, padded, strict=True))})
    return header, rows


def _whole(reader: Any, path: Path) -> Iterator[list[str]]:
    """Rows of a csv reader; a quote that is never closed would swallow the rest of the sheet."""
    start = 1
    while True:
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"{path}: the row that begins in line {start} is not CSV ({error}); close or "
                "double its quotes"
            ) from error
        if fields is None:
            return
        start = reader.line_num + 1
        yield fields


def _check_columns(header: list[str], problems: Problems) -> None:
    for name in dict.fromkeys(header):
        if name in COLUMNS and header.count(name) > 1:
            problems.add(f"column {name} occurs more than once; keep one")
        elif name not in COLUMNS:
            near = difflib.get_close_matches(name.lower(), COLUMNS, n=1, cutoff=0.5)
            cure = f"did you mean {near[0]}?" if near else f"known are {', '.join(COLUMNS)}"
            problems.add(f"unknown column {name!r}: {cure}")
    for name in REQUIRED:
        if name not in header:
            problems.add(f"no column {name}; add it to the header (every row needs one)")
    if not {"image", "spaceranger", "h5ad"} & set(header):
        problems.add("no column image; add it with the path of each full-resolution H&E image")


def _row(path: Path, cells: dict[str, str], problems: Problems, needed: bool) -> Row:
    line = int(cells["line"])
    where = f"line {line}, section {cells['section']}" if cells["section"] else f"line {line}"
    found = {name: cells[name] for name in _PATHS if cells.get(name)}
    for name in REQUIRED:
        if not cells[name]:
            problems.add(f"{where}: {name} is empty; give one")
    for fault in section_id_problems(cells["section"]) if cells["section"] else ():
        problems.add(f"{where}: {fault}")
    paths = {name: path.parent / Path(value).expanduser() for name, value in found.items()}
    for name, file in paths.items():
        if needed and not file.exists():
            problems.add(f"{where}: {name}: no such file {file}; paths are relative to the sheet")
    for fault in _contradictions(found):
        problems.add(f"{where}: {fault}")
    mpp = _number(cells, "mpp", where, problems)
    if mpp is not None and mpp <= 0:
        problems.add(f"{where}: mpp is {cells['mpp']}; give micrometres per pixel, more than 0")
    ids = Ids(cells["section"], cells["patient"], _number(cells, "z_um", where, problems))
    return Row(line, ids, mpp, paths)


def _contradictions(found: dict[str, str]) -> list[str]:
    faults = []
    measured = [name for name in ("counts", "spaceranger", "h5ad") if name in found]
    if len(measured) > 1:
        faults.append(f"{' and '.join(measured)} are given; keep the one to read")
    if "counts" in found and "spots" not in found:
        faults.append("counts without spots; give the file with the places of the spots")
    if "clusters" in found and not measured:
        faults.append("clusters without counts; labels belong to measured spots: remove them")
    if "spots" in found and {"spaceranger", "h5ad"} & set(found):
        faults.append(f"spots and {measured[0]} are given; {measured[0]} brings its own spots")
    if "image" not in found and not {"spaceranger", "h5ad"} & set(found):
        faults.append("image is empty; give the full-resolution H&E image")
    return faults


def _number(cells: dict[str, str], name: str, where: str, problems: Problems) -> float | None:
    text = cells.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        comma = "; write a decimal point" if "," in text else ""
        problems.add(f"{where}: {name} is {text!r}, not a number{comma}")
        return None
    return value


def _choose(path: Path, rows: list[Row], only: Collection[str] | None) -> list[Row]:
    if only is None:
        return rows
    known = [row.ids.section for row in rows]
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            cure = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise InputError(f"{path}: no section {name!r}; {cure}")
    return [row for row in rows if row.ids.section in only]
