"""A saved model described for whoever finds it: what it is for, what it is worth, where it ends."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BEST = 20
NOUNS = {"expression": "genes", "clusters": "clusters"}


def model_card_markdown(card: Mapping[str, Any]) -> str:
    """Model card as Markdown, from the content of `model.json`.

    Parameters
    ----------
    card : mapping
        As `deepspace.models.store.ModelCard` dumps it, with `columns`: its genes or clusters.
    """
    parts = [_head(card), _use(card), _training(card), _worth(card), _limits(card), _made(card)]
    return "\n\n".join(parts) + "\n"


def _head(card: Mapping[str, Any]) -> str:
    encoder = card["encoder"]["config"]["name"]
    fov = ", ".join(f"{um:g}" for um in card["encoder"]["fov_um"])
    count, noun = len(card["columns"]), NOUNS[card["kind"]]
    return (
        f"# Model card: {card['model']} ({encoder})\n\n"
        f"Predicts {count} {noun} of spatial transcriptomics from H&E images; field of view "
        f"{fov} um."
    )


def _use(card: Mapping[str, Any]) -> str:
    return (
        "## What it is for\n\n"
        "Completing an experiment: points between spots, failed spots, unmeasured sections of the "
        "tissue it was trained on, and research on similar tissue stained and scanned alike.\n\n"
        "Not for diagnosis or treatment, and not for tissue unlike the training sections: points "
        "marked `ood` and genes of verdict `no` must not be used."
    )


def _training(card: Mapping[str, Any]) -> str:
    rows = "\n".join(
        f"| {_cell(t['section'])} | {_cell(t['patient'])} | {t['spots']} | {t['mpp']:.4g} |"
        for t in card["training"]
    )
    patients = len({t["patient"] for t in card["training"]})
    return (
        "## What it learnt from\n\n"
        f"{len(card['training'])} sections of {patients} patients.\n\n"
        "| section | patient | spots | um per pixel |\n|---|---|---|---|\n" + rows
    )


def _worth(card: Mapping[str, Any]) -> str:
    scores = card["scores"]
    lines = [f"- {line}" for line in scores.get("verdict", [])]
    table = ["| | score |", "|---|---|"]
    key = {"expression": "mean_pearson", "clusters": "accuracy"}[card["kind"]]
    for name, found in scores["models"].items():
        table.append(f"| {_cell(name)} | {_number(found.get(key))} |")
    if "ceiling" in scores:
        table.append(f"| noise ceiling | {_number(scores['ceiling']['mean_pearson'])} |")
    known = [c for c in card["columns"] if c["score"] is not None]
    best = sorted(known, key=lambda c: -c["score"])[:BEST]
    named = ", ".join(f"{c['name']} ({c['score']:.2f})" for c in best)
    title = {"expression": "mean held-out Pearson correlation", "clusters": "held-out accuracy"}
    return "\n".join(
        [
            "## What it is worth",
            "",
            *lines,
            "",
            f"Split by {scores['split']}; {title[card['kind']]} beside baselines:",
            "",
            *table,
            "",
            f"Best {NOUNS[card['kind']]}: {named or 'none was scored'}.",
        ]
    )


def _limits(card: Mapping[str, Any]) -> str:
    return (
        "## Where it ends\n\n"
        "- Scores are of the split named above; a new patient, scanner or staining is harder.\n"
        "- Intervals hold on average over spots and genes, not for each gene alone.\n"
        "- What the counts do not show (isoforms, lowly expressed genes) cannot be learnt."
    )


def _made(card: Mapping[str, Any]) -> str:
    record = card["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        "## How it was made\n\n"
        f"Seed {record['seed']}; {len(record['inputs'])} input files, their SHA-256 in "
        f"`model.json`; weights SHA-256 `{card['weights_sha256'] or 'not saved'}`.\n\n{versions}."
    )


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
