"""Options that several commands share, and what they do with them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepspace.core.config import Config

# of several processes that torchrun starts, the first speaks
MAIN = os.environ.get("RANK", "0") == "0"

Sheet = Annotated[
    Path, typer.Argument(help="Cohort sheet (CSV), or one Space Ranger outs/ folder.")
]
Out = Annotated[Path, typer.Option("--out", help="Where the result goes.")]
Genes = Annotated[
    str | None,
    typer.Option(help="expressed:N, variable:N, a file with one gene a line, or A,B,C."),
]
Weights = Annotated[
    str | None, typer.Option(help="Encoder weights: a file, or a folder that holds them.")
]
Target = Annotated[
    str | None, typer.Option(help="What is predicted: expression (of genes) or clusters.")
]
ConfigFile = Annotated[str | None, typer.Option("--config", help="TOML file or preset name.")]
Seed = Annotated[int | None, typer.Option(help="Seed of everything random.")]
Device = Annotated[
    str | None, typer.Option(help="Where networks run: cpu, cuda, or auto (a GPU if there is one).")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing result.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def make_config(source: str | None, **options: Any) -> Config:
    """Configuration file with the command line's options on top; unset options change nothing."""
    from deepspace.core.config import load_config

    weights = options.get("weights")
    return load_config(source).with_values(
        seed=options.get("seed"),
        device=options.get("device"),
        target={"genes": options.get("genes"), "kind": options.get("target")},
        encoder={
            "name": options.get("encoder"),
            "weights": weights
            if weights is None or weights.startswith("random:")
            else str(Path(weights).expanduser().absolute()),
        },
        split={"how": options.get("split"), "folds": options.get("folds")},
        complete=options.get("complete", {}),
    )


def print_result(values: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as text or as JSON; of several processes the first speaks."""
    if not MAIN:
        return
    typer.echo(json.dumps(values, indent=1) if as_json else text)
