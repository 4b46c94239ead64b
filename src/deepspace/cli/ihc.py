"""``ihc``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import (
    MAIN,
    ConfigFile,
    Json,
    Out,
    Overwrite,
    Quiet,
    Seed,
    make_config,
    print_result,
)
from deepspace.core.progress import show


def ihc(
    prediction: Annotated[Path, typer.Argument(help="FILE.h5ad written by predict or complete.")],
    image: Annotated[Path, typer.Argument(help="IHC (DAB) of a neighbouring section.")],
    gene: Annotated[str, typer.Option(help="The gene whose protein is stained.")],
    out: Out,
    mpp: Annotated[
        float | None, typer.Option(help="Micrometres per pixel of the IHC, if it does not say.")
    ] = None,
    slide: Annotated[
        Path | None, typer.Option(help="H&E slide of the prediction, if its copy is too coarse.")
    ] = None,
    disc: Annotated[
        float | None, typer.Option(help="Diameter that DAB is averaged over, um; else a spot's.")
    ] = None,
    shifts: Annotated[int, typer.Option(help="Random moves of the stain that show chance.")] = 999,
    config: ConfigFile = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare a predicted gene with immunohistochemistry of a neighbouring section."""
    from deepspace.workflows.ihc import IHCSettings, ihc_check
    from deepspace.workflows.ihc_scores import format_ihc

    values = make_config(config, seed=seed)
    settings = IHCSettings(disc, shifts, values.seed, values.registration)
    with show(quiet=quiet or not MAIN):
        found = ihc_check(
            prediction,
            image,
            gene=gene,
            out=out,
            slide=slide,
            mpp=mpp,
            settings=settings,
            overwrite=overwrite,
        )
    print_result(found.summary, f"{format_ihc(found.summary)}\nEverything is in {out}", as_json)
