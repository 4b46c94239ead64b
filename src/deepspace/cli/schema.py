"""``schema``."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def schema(
    command: Annotated[
        str | None,
        typer.Argument(help="inspect, train, evaluate, predict, ...; all where left out."),
    ] = None,
) -> None:
    """Print the JSON Schema of what a command gives with --json."""
    from deepspace.workflows.schema import schema as run

    typer.echo(json.dumps(run(command), indent=1))
