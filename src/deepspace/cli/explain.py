"""``explain``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from deepspace.cli.options import (
    MAIN,
    Device,
    Json,
    Out,
    Overwrite,
    Quiet,
    Sheet,
    Weights,
    print_result,
)
from deepspace.core.errors import InputError
from deepspace.core.progress import show


def explain(
    model: Annotated[Path, typer.Argument(help="Folder written by train.")],
    sheet: Sheet,
    section: Annotated[str, typer.Option(help="Which section of the sheet.")],
    genes: Annotated[str, typer.Option(help="Genes (or clusters) of the model: A,B,C.")],
    out: Out,
    points: Annotated[
        int, typer.Option(help="Tiles a gene, from the highest to the lowest prediction.")
    ] = 3,
    at: Annotated[
        list[str] | None,
        typer.Option(help="Tiles at X,Y instead (full-resolution pixels); may be repeated."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="occlusion, gradients or contributions; may be repeated."),
    ] = None,
    window: Annotated[
        float | None, typer.Option(help="Side of what occlusion covers, micrometres.")
    ] = None,
    fill: Annotated[
        str, typer.Option(help="What covers it: the tile's mean colour (mean) or a blur.")
    ] = "mean",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="Contributions at every spot of the section too.")
    ] = False,
    weights: Weights = None,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Show which part of a tile, or which of its features, drives the prediction of a gene."""
    places = [_place(text) for text in at or ()]
    wanted = list(dict.fromkeys(name.strip() for name in genes.split(",") if name.strip()))

    from deepspace.models.attribution import Settings
    from deepspace.workflows.explain import ExplainOptions
    from deepspace.workflows.explain import explain as run

    options = ExplainOptions(
        points=points,
        at=places,
        methods=tuple(method or ()),
        settings=Settings(window_um=window, fill=fill),
        overlay=overlay,
        weights=None if weights is None else Path(weights).expanduser(),
        device=device,
    )
    with show(quiet=quiet or not MAIN):
        found = run(
            model,
            sheet,
            section=section,
            genes=wanted,
            out=out,
            options=options,
            overwrite=overwrite,
        )
    facts = {"out": str(out), **found.summary()}
    print_result(facts, f"{_text(facts)}\nEverything is in {out}", as_json)


def _place(text: str) -> tuple[float, float]:
    """Place given as X,Y."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--at {text}: give x,y in full-resolution pixels, as 1200,3400") from None
    return x, y


def _text(facts: Mapping[str, Any]) -> str:
    """Text of what `explain` found: a line for each gene and tile.

    Examples
    --------
    >>> tile = {"gene": "MS4A1", "tile": "highest", "point": "4x5", "x": 10.0, "y": 20.0,
    ...         "predicted": 2.5, "contributions": {"colour": 0.25, "nuclei": -0.5}}
    >>> print(_text({"section": "A", "methods": ["contributions"], "tiles": [tile]}))
    Image of A, by contributions
    MS4A1     highest          at 10, 20         predicted 2.50   nuclei -0.50, colour +0.25
    """
    lines = [f"Image of {facts['section']}, by {', '.join(facts['methods'])}"]
    for row in facts["tiles"]:
        parts = sorted(row.get("contributions", {}).items(), key=lambda item: -abs(item[1]))
        told = ", ".join(f"{name} {value:+.2f}" for name, value in parts[:3])
        place = f"at {row['x']:.0f}, {row['y']:.0f}"
        line = f"{row['gene']:<9} {row['tile']:<16} {place:<17} predicted {row['predicted']:.2f}"
        lines.append(f"{line}   {told}".rstrip())
    return "\n".join(lines)
