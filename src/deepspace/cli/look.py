"""``demo`` and ``inspect``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepspace.cli.options import (
    MAIN,
    Json,
    Out,
    Overwrite,
    Quiet,
    Seed,
    Sheet,
)
from deepspace.core.progress import show


def demo(
    out: Out = Path("deepspace-demo"),
    seed: Seed = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Simulate a block of serial sections, train, evaluate, predict, draw."""
    from deepspace.workflows.demo import demo as run

    with show(quiet=quiet or not MAIN):
        report = run(out, seed=seed or 0, overwrite=overwrite)
    typer.echo(report)


def inspect(
    path: Sheet,
    out: Annotated[Path, typer.Option("--out", help="Folder for the overview pictures.")] = Path(
        "deepspace-inspect"
    ),
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Read, validate and describe; say what is wrong. Exits 2 if there are problems."""
    from deepspace.output.text import format_description
    from deepspace.workflows.inspect import inspect as run

    with show(quiet=quiet or not MAIN):
        found = run(path, out, overwrite=overwrite)
    typer.echo(json.dumps(found, indent=1) if as_json else format_description(found))
    if found["problems"]:
        raise typer.Exit(2)
