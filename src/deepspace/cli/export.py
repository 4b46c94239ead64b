"""``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import MAIN, Json, Overwrite, Quiet, print_result
from deepspace.core.progress import show


def export(
    path: Annotated[
        Path, typer.Argument(help="FILE.h5ad or DIR.zarr written by predict or complete.")
    ],
    to: Annotated[str, typer.Option(help="ome-tiff, geojson, spatialdata, anndata or parquet.")],
    out: Annotated[
        Path | None, typer.Option(help="Where the result goes; with --into, else that store.")
    ] = None,
    genes: Annotated[
        str | None, typer.Option(help="A,B,C or a file with one gene a line; all if not given.")
    ] = None,
    values: Annotated[str, typer.Option(help="mean (predicted), sd or measured.")] = "mean",
    pixel_um: Annotated[
        float, typer.Option(help="Side of a pixel of rasters and outlines, micrometres.")
    ] = 8.0,
    threshold: Annotated[
        list[str] | None, typer.Option(help="'GENE>=VALUE': an area for QuPath; may be repeated.")
    ] = None,
    into: Annotated[
        Path | None, typer.Option(help="SpatialData store that the prediction is put into.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Begins the names of the new elements of --into.")
    ] = None,
    slide: Annotated[
        Path | None, typer.Option(help="The slide's image or the cohort sheet, if it has moved.")
    ] = None,
    image_px: Annotated[
        int | None, typer.Option(help="Longer side of the image in SpatialData; full if not given.")
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write a prediction for QuPath, napari, SpatialData, scanpy or a table program."""
    from deepspace.workflows.export import ExportSettings, format_export
    from deepspace.workflows.export import export as run

    settings = ExportSettings(
        genes, values, pixel_um, tuple(threshold or ()), into, name, slide, image_px
    )
    with show(quiet=quiet or not MAIN):
        summary = run(path, to=to, out=out, settings=settings, overwrite=overwrite)
    print_result(summary, format_export(summary), as_json)
