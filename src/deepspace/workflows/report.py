"""`report`: one page that says what was found and what to trust, from what lies in a folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from deepspace.core.errors import InputError
from deepspace.core.files import atomic_path
from deepspace.core.resume import STAMP
from deepspace.models.base import SavablePredictor
from deepspace.models.store import ModelCard, read_card, write_model
from deepspace.models.watch import Watch
from deepspace.output.model_card import model_card_markdown
from deepspace.output.report import Chapter, Page
from deepspace.output.write import write_json
from deepspace.workflows.figures import write_history
from deepspace.workflows.report_chapters import (
    NOT_RECORDED,
    calibration_chapter,
    completed_chapters,
    data_chapter,
    genes_chapter,
    leak_chapter,
    made_chapter,
    maps_chapter,
    metrics_chapter,
    odd_chapter,
    read_json,
    scores_chapter,
    within_chapter,
)

REPORT = "report.html"
CONFIG = "config.toml"
EVALUATION = "evaluation"


@dataclass(frozen=True)
class Kind:
    """A result that can be reported.

    Attributes
    ----------
    files : tuple of str
        What its folder holds; tells the kind.
    title : str
    evaluation : str
        Where its scores are, relative to the folder.
    record : callable
        Gives the provenance of a folder.
    command : callable
        The command line that repeats it, from the provenance and the summary of the scores.
    """

    files: tuple[str, ...]
    title: str
    evaluation: str
    record: Callable[[Path], Mapping[str, Any]]
    command: Callable[[Mapping[str, Any], Mapping[str, Any]], str]


KINDS: dict[str, Kind] = {
    "complete": Kind(
        (STAMP, "sections"),
        "A completed experiment",
        EVALUATION,
        lambda folder: read_json(folder / STAMP),
        lambda record, summary: "deepspace complete SHEET --config config.toml --out DIR",
    ),
    "train": Kind(
        ("model.json",),
        "A trained model",
        EVALUATION,
        lambda folder: read_json(folder / "model.json")["provenance"],
        lambda record, summary: "deepspace train SHEET --config config.toml --out DIR",
    ),
    "evaluate": Kind(
        ("summary.json", "scores.csv"),
        "Scores on held-out data",
        ".",
        lambda folder: read_json(folder / "summary.json").get("provenance", {}),
        lambda record, summary: _evaluate_command(summary),
    ),
}


def _evaluate_command(summary: Mapping[str, Any]) -> str:
    """Models are named `model (encoder)` in a summary."""
    compared = {row["model"] for row in summary.get("comparisons", [])}
    names = [name.partition(" (") for name in summary["models"] if name in compared]
    models = dict.fromkeys(name for name, _, _ in names)
    encoders = dict.fromkeys(encoder.rstrip(")") for _, _, encoder in names)
    options = [f"--model {name}" for name in models] + [f"--encoder {name}" for name in encoders]
    return " ".join(["deepspace evaluate SHEET --config config.toml", *options, "--out DIR"])


def write_report(folder: Path | str) -> Path:
    """Write ``report.html`` and ``config.toml`` into the folder of a result.

    Parameters
    ----------
    folder : Path or str
        What `train`, `evaluate` or `complete` wrote.

    Returns
    -------
    Path
        The page. It needs no network and no file beside it.

    Raises
    ------
    InputError
        If the folder is none of these.
    """
    folder = Path(folder)
    kind = _kind_of(folder)
    scores = folder / kind.evaluation
    summary = read_json(scores / "summary.json") if (scores / "summary.json").exists() else {}
    record = kind.record(folder)
    page = Page(
        title=kind.title,
        under=_under(summary),
        verdict=summary.get("verdict", [NOT_RECORDED]),
        chapters=_chapters(folder, scores, summary, kind, record),
        warn=not _all_beaten(summary),
    )
    if record:
        with atomic_path(folder / CONFIG) as temporary:
            temporary.write_text(tomli_w.dumps(_without_none(record["config"])), encoding="utf-8")
    with atomic_path(folder / REPORT) as temporary:
        temporary.write_text(page.html(), encoding="utf-8")
    return folder / REPORT


def _kind_of(folder: Path) -> Kind:
    for kind in KINDS.values():
        if all((folder / name).exists() for name in kind.files):
            return kind
    raise InputError(
        f"{folder}: not a result of deepspace train, evaluate or complete (no model.json, "
        "summary.json with scores.csv, or run.json with sections/); give such a folder"
    )


def _chapters(
    folder: Path,
    scores: Path,
    summary: Mapping[str, Any],
    kind: Kind,
    record: Mapping[str, Any],
) -> list[Chapter]:
    chapters = [data_chapter(folder, summary)]
    if summary:
        chapters += [
            leak_chapter(summary),
            scores_chapter(scores, summary),
            genes_chapter(scores, summary),
            maps_chapter(scores),
            metrics_chapter(scores),
            calibration_chapter(scores, summary),
        ]
    chapters += [within_chapter(folder / "evaluation-within"), *completed_chapters(folder)]
    return [*chapters, odd_chapter(folder), made_chapter(record, kind.command(record, summary))]


def _under(summary: Mapping[str, Any]) -> str:
    if not summary:
        return ""
    what = {"expression": f"genes {summary.get('genes')}", "clusters": "clusters"}
    return f"{what[summary['target']]}, split by {summary['split']}"


def _all_beaten(summary: Mapping[str, Any]) -> bool:
    """Whether the first model is better than all that it stands beside."""
    first = next(iter(summary.get("models", {})), None)
    rows = [row for row in summary.get("comparisons", []) if row["model"] == first]
    return bool(rows) and all(row["beats"] for row in rows)


def _without_none(values: Mapping[str, Any]) -> dict[str, Any]:
    """TOML has no word for nothing: an option that is not set is left out."""
    return {
        name: _without_none(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if value is not None
    }


def save_model(folder: Path, predictor: SavablePredictor, card: ModelCard, watch: Watch) -> None:
    """Write a model into a folder: weights, cards, and how a network was trained."""
    write_model(folder, predictor, card, watch)
    write_history(card, folder)
    saved = read_card(folder)
    values = saved.model_dump(mode="json") | {"columns": [c.model_dump() for c in saved.columns]}
    (folder / "MODEL_CARD.md").write_text(model_card_markdown(values), encoding="utf-8")
    kept = ("model", "kind", "training", "columns", "scores", "provenance", "weights_sha256")
    write_json({name: values[name] for name in kept}, folder / "model_card.json")
