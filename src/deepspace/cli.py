"""The command line: one command is one call of a workflow.

Heavy modules are imported inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from deepspace.core.errors import InputError
from deepspace.core.progress import show

if TYPE_CHECKING:
    from deepspace.core.config import Config

# what typer exits with after Ctrl-C, and what a terminated command exits with
INTERRUPTED = 130
TERMINATED = 143
# of several processes that torchrun starts, the first speaks
MAIN = os.environ.get("RANK", "0") == "0"

app = typer.Typer(
    name="deepspace",
    help="Complete a spatial transcriptomics experiment from H&E images, and say what to trust.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)

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


def main() -> NoReturn:
    """Entry point: bad input ends with one clear message and exit code 2, never a traceback."""
    if not sys.warnoptions:
        # what libraries tell their developers is not for the user
        warnings.simplefilter("ignore")
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        # a scheduler's signal cleans up as Ctrl-C does
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        app()
    except InputError as error:
        typer.echo(f"deepspace: {error}", err=True)
        raise SystemExit(2) from None
    except SystemExit as end:
        if end.code in (INTERRUPTED, TERMINATED):
            typer.echo("deepspace: interrupted; run the same command again to go on", err=True)
        raise
    raise SystemExit(0)


def _version(wanted: bool) -> None:
    if wanted:
        from deepspace import __version__

        typer.echo(f"deepspace {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
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


@app.command()
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


@app.command()
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

    settings = _config(
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
    _print(trained.card.scores, format_summary(trained.card.scores), as_json)
    if not as_json:
        found = trained.card.columns
        good, noun = sum(column.predictable for column in found), NOUNS[trained.card.kind]
        typer.echo(f"{good} of {len(found)} {noun} are predictable. Model: {out}")


@app.command()
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

    settings = _config(
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
    _print(found.summary, format_summary(found.summary), as_json)
    if not as_json:
        typer.echo(f"Tables and pictures: {out}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by train.")],
    sheet: Sheet,
    section: Annotated[str, typer.Option(help="Which section of the sheet.")],
    out: Annotated[Path, typer.Option("--out", help="FILE.h5ad or DIR.zarr (SpatialData).")],
    at: Annotated[str, typer.Option(help="spots, between, or grid:UM.")] = "spots",
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Leave measured neighbours out.")
    ] = False,
    weights: Weights = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict one section at its spots, between them, or on a grid."""
    from deepspace.output.text import NOUNS
    from deepspace.output.write import read_provenance
    from deepspace.workflows.predict import predict as run

    with show(quiet=quiet or not MAIN):
        found = run(
            model,
            sheet,
            section=section,
            out=out,
            at=at,
            weights=None if weights is None else Path(weights).expanduser(),
            image_only=image_only,
            overwrite=overwrite,
        )
    noun = NOUNS[read_provenance(found)["target"]]
    good = int(found.var["predictable"].sum())
    odd = int(found.obs["ood"].sum())
    facts = {
        "out": str(out),
        "section": section,
        "points": found.n_obs,
        noun: found.n_vars,
        "predictable": good,
        "ood": odd,
    }
    text = (
        f"{found.n_obs} points x {found.n_vars} {noun} ({good} predictable; {odd} points unlike "
        f"the training images): {out}"
    )
    _print(facts, text, as_json)


@app.command()
def complete(
    sheet: Sheet,
    out: Out,
    at: Annotated[
        list[str] | None, typer.Option(help="spots, between, or grid:UM; repeat for several.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model to complete with.")] = None,
    encoder: Annotated[str | None, typer.Option(help="What turns a patch into features.")] = None,
    genes: Genes = None,
    target: Target = None,
    failed: Annotated[
        Path | None, typer.Option(help="Table of failed spots: columns section, barcode.")
    ] = None,
    sum_to_spots: Annotated[
        bool, typer.Option("--sum-to-spots", help="Finer predictions add up to each spot's.")
    ] = False,
    no_volume: Annotated[
        bool, typer.Option("--no-volume", help="Leave out the planes between sections.")
    ] = False,
    weights: Weights = None,
    config: ConfigFile = None,
    seed: Seed = None,
    device: Device = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict all that was not measured: failed spots, between spots, whole sections, volume."""
    from deepspace.output.text import format_completion
    from deepspace.workflows.complete import complete as run

    settings = _config(
        config,
        encoder=encoder,
        genes=genes,
        target=target,
        weights=weights,
        seed=seed,
        device=device,
        complete={
            "model": model,
            "at": tuple(at) if at else None,
            "sum_to_spots": sum_to_spots or None,
            "volume": False if no_volume else None,
        },
    )
    with show(quiet=quiet or not MAIN):
        found = run(sheet, out, config=settings, failed=failed, overwrite=overwrite)
    _print(found, f"{format_completion(found)}\nEverything is in {out}", as_json)


def _config(source: str | None, **options: Any) -> Config:
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


def _print(values: dict[str, Any], text: str, as_json: bool) -> None:
    if not MAIN:
        return
    typer.echo(json.dumps(values, indent=1) if as_json else text)
