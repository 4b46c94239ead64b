"""``predict`` and ``complete``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
from deepspace.core.errors import InputError
from deepspace.core.progress import show

# exit code where some of many parts failed
SOME_FAILED = 4

AllGenes = Annotated[
    bool, typer.Option("--all-genes", help="Write genes that chance would explain as well.")
]


def predict(
    model: Annotated[Path, typer.Argument(help="Folder written by train.")],
    sheet: Sheet,
    out: Annotated[
        Path,
        typer.Option(
            "--out", help="FILE.h5ad or DIR.zarr (SpatialData) of one section; a folder of several."
        ),
    ],
    section: Annotated[
        list[str] | None,
        typer.Option(help="Which section of the sheet; may be repeated. All where left out."),
    ] = None,
    at: Annotated[str, typer.Option(help="spots, between, or grid:UM.")] = "spots",
    image_only: Annotated[
        bool, typer.Option("--image-only", help="Leave measured neighbours out.")
    ] = False,
    all_genes: AllGenes = False,
    weights: Weights = None,
    device: Device = None,
    shard: Annotated[
        str | None, typer.Option(help="i/n: every n-th section from the i-th, for job arrays.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", help="h5ad or zarr, in a folder of several.")
    ] = None,
    executor: Annotated[
        str | None, typer.Option(help="local or dask: where several sections are predicted.")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Of a dask scheduler that runs.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes of a dask cluster here.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict sections at their spots, between them, or on a grid.

    One section goes into FILE.h5ad or DIR.zarr. Several go into a folder, a file each; one that
    fails does not stop the others, and the command then ends with exit code 4.
    """
    from deepspace.workflows.predict import PredictOptions

    options = PredictOptions(
        image_only=image_only,
        all_genes=all_genes,
        weights=None if weights is None else Path(weights).expanduser(),
        device=device,
    )
    common = {"at": at, "options": options, "overwrite": overwrite}
    several = {
        "--shard": shard,
        "--format": form,
        "--executor": executor,
        "--address": address,
        "--workers": workers,
    }
    one = _is_one_file(out)
    with show(quiet=quiet or not MAIN):
        found = (_predict_file if one else _predict_folder)(
            model, sheet, out, section or [], several, common
        )
    (_print_file if one else _print_folder)(found, out, as_json)


def _is_one_file(out: Path) -> bool:
    """Whether `out` is a file of one section; a folder of several has no file name's ending."""
    if out.suffix in (".h5ad", ".zarr"):
        return True
    # run-0.5 and a folder that is there already are folders whatever their names look like
    if out.suffix and not out.suffix[1:].isdigit() and not out.is_dir():
        raise InputError(
            f"--out {out}: {out.suffix} is not written; name FILE.h5ad or DIR.zarr for one "
            "section, or a folder without an ending for several"
        )
    return False


def _predict_file(
    model: Path,
    sheet: Path,
    out: Path,
    sections: list[str],
    several: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    """One section into one file."""
    from deepspace.workflows.predict import predict_to_file

    useless = [name for name, value in several.items() if value is not None]
    if useless or len(sections) > 1:
        what = ", ".join(useless) or "several sections"
        raise InputError(
            f"--out {out}: is one file; give a folder for {what}, as --out predictions"
        )
    only = sections[0] if sections else None
    return predict_to_file(model, sheet, out, section=only, **common)


def _print_file(found: dict[str, Any], out: Path, as_json: bool) -> None:
    noun = "genes" if "genes" in found else "clusters"
    text = (
        f"{found['points']} points x {found[noun]} {noun} ({found['predictable']} predictable; "
        f"{found['ood']} points unlike the training images): {out}"
    )
    print_result(found, text, as_json)


def _predict_folder(
    model: Path,
    sheet: Path,
    out: Path,
    sections: list[str],
    several: dict[str, Any],
    common: dict[str, Any],
) -> dict[str, Any]:
    """Many sections into a folder."""
    from deepspace.workflows.cohort_predict import CohortOptions, predict_cohort
    from deepspace.workflows.executors import Executor

    executor = Executor(
        several["--executor"] or "local", several["--address"], several["--workers"]
    )
    cohort = CohortOptions(
        tuple(sections), several["--shard"], several["--format"] or "h5ad", executor
    )
    return predict_cohort(model, sheet, out, cohort=cohort, **common)


def _print_folder(found: dict[str, Any], out: Path, as_json: bool) -> None:
    counts = ", ".join(f"{found[s]} {s}" for s in ("succeeded", "failed", "skipped"))
    failed = [row for row in found["sections"] if row["status"] == "failed"]
    lines = [f"  {row['section']}: {row['reason']}" for row in failed]
    print_result(found, "\n".join([f"{counts}: {out}", *lines]), as_json)
    if failed:
        raise typer.Exit(SOME_FAILED)


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
    all_genes: AllGenes = False,
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

    settings = make_config(
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
            "all_genes": all_genes or None,
        },
    )
    with show(quiet=quiet or not MAIN):
        found = run(sheet, out, config=settings, failed=failed, overwrite=overwrite)
    print_result(found, f"{format_completion(found)}\nEverything is in {out}", as_json)
