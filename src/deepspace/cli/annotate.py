"""``annotate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import MAIN, Json, Out, Overwrite, Quiet, print_result
from deepspace.core.progress import show


def annotate(
    prediction: Annotated[Path, typer.Argument(help="FILE.h5ad written by predict or complete.")],
    out: Out,
    gmt: Annotated[
        list[Path] | None, typer.Option(help="Gene sets (GMT) beside ours; may be repeated.")
    ] = None,
    regions: Annotated[
        Path | None,
        typer.Option(help="GeoJSON of drawn areas (QuPath), full-resolution pixels."),
    ] = None,
    clusters: Annotated[
        Path | None, typer.Option(help="FILE.h5ad: clusters predicted at the same points.")
    ] = None,
    n_clusters: Annotated[
        int | None, typer.Option(help="Compute so many clusters (k-means); 6 if there are none.")
    ] = None,
    builtin: Annotated[
        bool, typer.Option("--builtin/--no-builtin", help="Use the gene sets of deepspace too.")
    ] = True,
    least_genes: Annotated[
        int, typer.Option(help="Genes of a set that must be predictable, for it to be used.")
    ] = 3,
    fdr: Annotated[float, typer.Option(help="False discovery rate of markers and names.")] = 0.05,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Name clusters and drawn regions of a prediction by gene sets and marker genes."""
    from deepspace.data.markers import MarkerRule
    from deepspace.workflows.annotate import AnnotateSettings
    from deepspace.workflows.annotate import annotate as run
    from deepspace.workflows.annotating import format_annotation

    settings = AnnotateSettings(builtin, n_clusters, least_genes, MarkerRule(fdr=fdr))
    with show(quiet=quiet or not MAIN):
        found = run(
            prediction,
            gmt=gmt or (),
            regions=regions,
            clusters=clusters,
            out=out,
            settings=settings,
            overwrite=overwrite,
        )
    text = f"{format_annotation(found.summary)}\nEverything is in {out}"
    print_result(found.summary, text, as_json)
