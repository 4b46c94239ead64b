"""Predictions in the formats of other programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from deepspace.core import keys
from deepspace.core.classification import label_order
from deepspace.core.errors import InputError, Problems
from deepspace.core.files import atomic_folder, atomic_path, check_output, refuse_inputs
from deepspace.core.progress import log, track
from deepspace.io.h5ad import save_h5ad
from deepspace.io.parts import clip_list
from deepspace.io.sheet import list_sections, read_sheet
from deepspace.io.slide import Slide, open_slide
from deepspace.io.text import read_text
from deepspace.output.ometiff import Grid, make_grid, write_ome_tiff
from deepspace.output.prediction_file import BLOCK_BYTES, PredictionFile, noted_sheet
from deepspace.output.qupath import Threshold, areas_geojson, write_geojson
from deepspace.output.spatialdata_store import (
    require_spatialdata,
    to_spatialdata,
    write_into,
    write_store,
)
from deepspace.output.write import ZARR

# tells a folder of tables that was written here
POINTS: Final = "points.parquet"
VALUES: Final = "values.parquet"
TABLES: Final = "genes.parquet"
POINT: Final = "point"


@dataclass(frozen=True)
class ExportSettings:
    """What of a prediction goes out, and how.

    Attributes
    ----------
    genes : sequence of str, str or None
        Genes or clusters; as text ``A,B,C`` or a file with one a line; all for None.
    values : str
        ``mean`` (predicted), ``sd`` or ``measured``.
    pixel_um : float
        Side of a pixel of rasters and outlines, micrometres.
    thresholds : sequence of str
        ``GENE>=VALUE``: areas for QuPath.
    into : Path or None
        SpatialData store that the prediction is put into.
    name : str or None
        Begins the names of the new elements in `into`; the section's if not given.
    slide : Path or None
        Image or cohort sheet; found by what `complete` noted if not given.
    image_px : int or None
        Longer side of the slide's image in SpatialData; full resolution if not given.
    """

    genes: Sequence[str] | str | None = None
    values: str = "mean"
    pixel_um: float = 8.0
    thresholds: Sequence[str] = field(default=())
    into: Path | None = None
    name: str | None = None
    slide: Path | None = None
    image_px: int | None = None


@dataclass(frozen=True)
class _Job:
    """One export: what is read, which columns of it, and where it goes."""

    file: PredictionFile
    columns: list[int]
    out: Path
    settings: ExportSettings
    overwrite: bool

    @property
    def names(self) -> list[str]:
        return [str(self.file.var.index[c]) for c in self.columns]

    @property
    def layer(self) -> str:
        return self.file.layer_of(self.settings.values)

    def grid(self) -> Grid:
        """Pixels over the slide."""
        file, slide = self.file, self.slide()
        used = file.used()
        if self.settings.values == keys.MEASURED:
            used = used & file.obs[keys.MEASURED].to_numpy(bool)
            if not used.any():
                raise InputError(f"{file.path}: no point was measured; choose --values mean")
        return make_grid(
            file.coords,
            used,
            file.size_px if slide is None else (slide.width, slide.height),
            spacing_px=file.spacing_px(),
            mpp=file.require_mpp(),
            pixel_um=self.settings.pixel_um,
        )

    def slide(self) -> Slide | None:
        """Slide of the section, if it is known where it is."""
        found = _slide(self.file, self.settings.slide)
        if found is None:
            log.info(
                "%s: its slide is not known, the copy in the file is used; give --slide",
                self.file.path,
            )
            return None
        width, height = self.file.size_px
        step = 1.0 / float(self.file.library["scalefactors"]["tissue_hires_scalef"])
        if max(abs(found.width - width), abs(found.height - height)) > step + 1:
            raise InputError(
                f"{found.path}: is {found.width} x {found.height} pixels, and the prediction was "
                f"made on one of about {width} x {height}; give the slide of {self.file.section}"
            )
        return found


def export(
    path: Path | str,
    *,
    to: str,
    out: Path | str | None = None,
    settings: ExportSettings | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a prediction in the format of another program.

    Parameters
    ----------
    path : Path or str
        ``.h5ad`` or ``.zarr`` of `predict` or `complete`.
    to : str
        ``ome-tiff`` (genes as channels over the slide), ``geojson`` (clusters and areas above a
        threshold, for QuPath), ``spatialdata``, ``anndata``, or ``parquet`` (a folder of tables).
    out : Path or str, optional
        Where it goes. With ``settings.into`` that store is replaced if `out` is not given.
    settings : ExportSettings, optional
        Genes, values and sizes.
    overwrite : bool
        Replace what is at `out`, and elements of the same names in ``settings.into``.

    Returns
    -------
    dict
        JSON values: what was written.

    Raises
    ------
    InputError
        If the request does not fit the prediction, or `out` must not be written.
    """
    chosen = settings or ExportSettings()
    if to not in FORMATS:
        raise InputError(f"--to {to}: choose {', '.join(FORMATS)}")
    row = FORMATS[to]
    _refuse_unused(to, chosen)
    target = out if out is not None else chosen.into
    if target is None:
        raise InputError("--out: say where the result goes")
    source, target = Path(path), Path(target)
    if row.suffixes and not target.name.lower().endswith(row.suffixes):
        raise InputError(f"--out {target}: must end in {' or '.join(row.suffixes)} for --to {to}")
    if not source.exists():
        raise InputError(f"{source}: does not exist; give a prediction of predict or complete")
    refuse_inputs(target, [source, *([chosen.slide] if chosen.slide else [])])
    in_place = chosen.into is not None and target.resolve() == chosen.into.resolve()
    if not in_place:
        check_output(target, overwrite=overwrite, marker=row.marker)
        if row.holds and target.is_dir():
            _refuse_foreign(target, row.holds)
    file = PredictionFile(source)
    columns = file.columns_of(_genes(chosen.genes))
    said = row.write(_Job(file, columns, target, chosen, overwrite))
    return {
        "path": str(source),
        "section": file.section,
        "to": to,
        "out": str(target),
        "values": chosen.values,
        "points": len(file.obs),
        "genes": len(columns),
        **said,
    }


def _refuse_unused(to: str, settings: ExportSettings) -> None:
    """Refuse options that the format does not use."""
    problems = Problems(f"--to {to}")
    used = {
        "--into": (settings.into, ("spatialdata",)),
        "--image-px": (settings.image_px, ("spatialdata",)),
        "--threshold": (settings.thresholds or None, ("geojson",)),
        "--slide": (settings.slide, ("spatialdata", "geojson", "ome-tiff")),
    }
    for option, (value, formats) in used.items():
        if value is not None and to not in formats:
            problems.add(f"{option}: only for --to {' or '.join(formats)}; leave it out")
    if settings.name is not None and settings.into is None:
        problems.add("--name: only with --into; leave it out")
    problems.raise_if_any()


def _refuse_foreign(folder: Path, holds: frozenset[str]) -> None:
    """Refuse to replace a folder with files that no export writes."""
    foreign = sorted(path.name for path in folder.iterdir() if path.name not in holds)
    if foreign:
        raise InputError(
            f"{folder}: not replaced, because it holds {clip_list(foreign)}, which deepspace did "
            "not write; move that, or choose another --out"
        )


def format_export(summary: dict[str, Any]) -> str:
    """Say in a line what was written."""
    if "areas" in summary:
        names = ", ".join(summary["areas"]) or "none was found"
        return f"{summary['section']}: areas ({names}) are in {summary['out']}"
    return (
        f"{summary['section']}: {summary['points']} points, {summary['genes']} genes or clusters "
        f"({summary['values']}) are in {summary['out']}"
    )


def _genes(given: Sequence[str] | str | None) -> list[str] | None:
    if given is None:
        return None
    if not isinstance(given, str):
        return [str(gene) for gene in given]
    path = Path(given).expanduser()
    lines = read_text(path).splitlines() if path.is_file() else given.split(",")
    return [line.strip() for line in lines if line.strip()]


def _slide(file: PredictionFile, given: Path | None) -> Slide | None:
    """Slide that the user gave, or that the sheet of a run names."""
    if given is not None and given.suffix.lower() not in (".csv", ".tsv"):
        return open_slide(given)
    here = file.path.absolute().parent
    sheet = given or noted_sheet(here) or noted_sheet(here.parent)
    if sheet is None:
        return None
    if file.section not in {row.ids.section for row in list_sections(sheet)}:
        raise InputError(f"{sheet}: has no section {file.section}; give its slide by --slide")
    (found,) = read_sheet(sheet, only=[file.section])
    return found.slide


def _ome_tiff(job: _Job) -> dict[str, Any]:
    grid, layer = job.grid(), job.layer
    with atomic_path(job.out) as temporary:
        write_ome_tiff(temporary, grid, job.names, lambda: job.file.by_gene(layer, job.columns))
    height, width = grid.nearest.shape
    return {"width": width, "height": height, "pixel_um": grid.pixel_um}


def _geojson(job: _Job) -> dict[str, Any]:
    areas = _clusters(job.file) if not job.settings.thresholds else {}
    for text in job.settings.thresholds:
        threshold = Threshold.parse(text)
        (values,) = job.file.read(job.layer, job.file.columns_of([threshold.gene])).T
        areas[threshold.name] = values >= threshold.value
    if not areas:
        raise InputError(
            f"{job.file.path}: holds no clusters; give areas by --threshold GENE>=VALUE, or "
            "predict clusters (--target clusters)"
        )
    used = job.file.used()
    content = areas_geojson(
        {name: chosen & used for name, chosen in areas.items()},
        job.grid(),
        section=job.file.section,
    )
    with atomic_path(job.out) as temporary:
        write_geojson(content, temporary)
    drawn = [feature["properties"]["name"] for feature in content["features"]]
    for name in areas:
        if name not in drawn:
            log.info("%s: nowhere on the tissue, no area is written", name)
    return {"areas": drawn}


def _clusters(file: PredictionFile) -> dict[str, NDArray[np.bool_]]:
    """Points of each cluster."""
    if keys.CLUSTER not in file.obs:
        return {}
    labels = file.obs[keys.CLUSTER]
    text = labels.astype(str).to_numpy()
    known = labels.notna().to_numpy() & (text != "")
    return {name: known & (text == name) for name in label_order(set(text[known]))}


def _spatialdata(job: _Job) -> dict[str, Any]:
    require_spatialdata()
    into = job.settings.into
    name = job.settings.name
    if into is not None and name is None:
        name = job.file.section
    store = to_spatialdata(
        job.file.table(job.settings.values, job.columns),
        slide=job.slide(),
        image_px=job.settings.image_px,
        name=name,
    )
    if into is not None:
        kept, new = write_into(store, into, job.out, overwrite=job.overwrite)
        return {"elements": new, "kept": kept}
    with atomic_folder(job.out) as temporary:
        write_store(store, temporary)
    return {"elements": [element for _, element, _ in store.gen_elements()], "kept": []}


def _anndata(job: _Job) -> dict[str, Any]:
    with atomic_path(job.out) as temporary:
        save_h5ad(job.file.table(job.settings.values, job.columns), temporary)
    return {}


def _parquet(job: _Job) -> dict[str, Any]:
    """Points with their places, genes with their verdicts, and values, a column a gene."""
    file = job.file
    points = file.obs.copy()
    points.insert(0, "x", file.coords[:, 0])
    points.insert(1, "y", file.coords[:, 1])
    names = [str(name) for name in file.obs.index]
    rows = max(1, BLOCK_BYTES // (4 * len(file.var)))
    schema = pa.schema([(POINT, pa.string()), *((gene, pa.float32()) for gene in job.names)])
    with atomic_folder(job.out) as temporary:
        points.rename_axis(POINT).reset_index().to_parquet(temporary / POINTS)
        file.var.iloc[job.columns].rename_axis("gene").reset_index().to_parquet(temporary / TABLES)
        starts = range(0, len(names), rows)
        with pq.ParquetWriter(temporary / VALUES, schema) as writer:
            for start in track(starts, total=len(starts), text="values"):
                own = slice(start, start + rows)
                block = file.read(job.layer, job.columns, own)
                writer.write_table(
                    pa.table([pa.array(names[own]), *map(pa.array, block.T)], schema=schema)
                )
    return {"tables": [POINTS, VALUES, TABLES]}


@dataclass(frozen=True)
class _Format:
    """How a format is written, what its name ends in, what marks a folder of it, and all in it."""

    write: Callable[[_Job], dict[str, Any]]
    suffixes: tuple[str, ...] = ()
    marker: str | None = None
    holds: frozenset[str] = frozenset()


FORMATS: Final = {
    "ome-tiff": _Format(_ome_tiff, (".ome.tif", ".ome.tiff")),
    "geojson": _Format(_geojson, (".geojson", ".json")),
    "spatialdata": _Format(_spatialdata, (".zarr",), ZARR),
    "anndata": _Format(_anndata, (".h5ad",)),
    "parquet": _Format(_parquet, (), TABLES, frozenset({POINTS, VALUES, TABLES})),
}
