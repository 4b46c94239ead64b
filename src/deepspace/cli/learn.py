"""``train`` and ``evaluate``."""

from __future__ import annotations

from typing import Annotated

import typer

from deepspace.cli.options import (
    MAIN,
    ConfigFile,
    Device,
    Genes,
    Json,
    Out,
    Overwrite,
    Quiet,
    Seed,
    Sheet,
    Target,
    Weights,
    make_config,
    print_result,
)
from deepspace.core.progress import show


def train(
    sheet: Sheet,
    out: Out,
    model: Annotated[
        str | None,
        typer.Option(help="kriging, probe, cnn, probe-student or cnn-student; see the README."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="What turns a patch into features.")] = None,
    genes: Genes = None,
    target: Target = None,
    weights: Weights = None,
    config: ConfigFile = None,
    seed: Seed = None,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Learn expression or clusters from measured sections, with honest scores; save the model."""
    from deepspace.output.text import NOUNS, format_summary
    from deepspace.workflows.train import train as run

    settings = make_config(
        config,
        encoder=encoder,
        genes=genes,
        target=target,
        weights=weights,
        seed=seed,
        device=device,
    )
    with show(quiet=quiet or not MAIN):
        trained = run(sheet, out, model=model, config=settings, overwrite=overwrite)
    print_result(trained.card.scores, format_summary(trained.card.scores), as_json)
    if not as_json:
        found = trained.card.columns
        good, noun = sum(column.predictable for column in found), NOUNS[trained.card.kind]
        typer.echo(f"{good} of {len(found)} {noun} are predictable. Model: {out}")


def evaluate(
    sheet: Sheet,
    out: Out,
    model: Annotated[
        list[str] | None, typer.Option(help="As for train; repeat to compare.")
    ] = None,
    encoder: Annotated[list[str] | None, typer.Option(help="Repeat to compare encoders.")] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="section, patient, block; blob or alternate (inside a section); spot (leaks)."
        ),
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Folds of block, blob and spot splits.")] = None,
    genes: Genes = None,
    target: Target = None,
    weights: Weights = None,
    config: ConfigFile = None,
    seed: Seed = None,
    device: Device = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Save the models of all folds.")
    ] = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Score models on held-out data, beside baselines and the noise ceiling."""
    from deepspace.output.text import format_summary
    from deepspace.workflows.evaluate import evaluate as run

    settings = make_config(
        config,
        genes=genes,
        target=target,
        weights=weights,
        seed=seed,
        split=split,
        folds=folds,
        device=device,
    )
    with show(quiet=quiet or not MAIN):
        found = run(
            sheet,
            out,
            models=model or [settings.model],
            encoders=encoder or [settings.encoder.name],
            config=settings,
            keep_models=keep_models,
            overwrite=overwrite,
        )
    print_result(found.summary, format_summary(found.summary), as_json)
    if not as_json:
        typer.echo(f"Tables and pictures: {out}")
