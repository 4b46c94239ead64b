"""``report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import Quiet
from deepspace.core.progress import show


def report(
    folder: Annotated[Path, typer.Argument(help="What train, evaluate or complete wrote.")],
    quiet: Quiet = False,
) -> None:
    """Write the page that says what to trust (report.html) into a result's folder, anew."""
    from deepspace.workflows.report import write_report

    with show(quiet=quiet):
        path = write_report(folder)
    typer.echo(str(path))
