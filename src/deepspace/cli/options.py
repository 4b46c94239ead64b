"""Options that several commands share, and what they do with them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepspace.core.errors import InputError

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


_OPTION_OF = {
    "split.how": "--split",
    "split.folds": "--folds",
    "target.genes": "--genes",
    "target.kind": "--target",
    "seed": "--seed",
    "device": "--device",
}


def make_config(source: str | None, **options: Any) -> Config:
    """Configuration file with the command line's options on top; unset options change nothing."""
    from deepspace.core.config import load_config

    weights = options.get("weights")
    config = load_config(source)
    with _told_as_options():
        return config.with_values(
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


@contextmanager
def _told_as_options() -> Iterator[None]:
    """Faults of options name the options, not the keys that they set."""
    try:
        yield
    except InputError as error:
        text = str(error)
        for key, option in _OPTION_OF.items():
            text = re.sub(rf"(?m)^(options: |  - ){re.escape(key)} = ", rf"\1{option} ", text)
        raise InputError(re.sub("^options: (?=--)", "", text)) from error


def print_result(values: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result as text or as JSON; of several processes the first speaks."""
    if not MAIN:
        return
    typer.echo(json.dumps(values, indent=1) if as_json else text)
