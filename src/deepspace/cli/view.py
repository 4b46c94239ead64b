"""``view``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import Quiet
from deepspace.core.errors import InputError
from deepspace.core.progress import show


def view(
    path: Annotated[
        Path, typer.Argument(help="Folder of complete or demo, a prediction, or a cohort sheet.")
    ],
    sheet: Annotated[Path | None, typer.Option(help="Cohort sheet that names the slides.")] = None,
    ihc: Annotated[
        list[str] | None,
        typer.Option(help="SECTION=FILE: a stained neighbour to show beside; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    quiet: Quiet = False,
) -> None:
    """Look at slides, measurements and predictions in the browser of this machine."""
    from deepspace.viewer.serve import view as run

    with show(quiet=quiet):
        run(path, sheet=sheet, ihc=_pairs(ihc or []), port=port, browser=browser, tell=typer.echo)


def _pairs(given: list[str]) -> dict[str, Path]:
    found = {}
    for text in given:
        name, _, file = text.partition("=")
        if not name or not file:
            raise InputError(f"--ihc {text}: must be SECTION=FILE, as --ihc S3=S3_ESR1.tif")
        found[name] = Path(file)
    return found
