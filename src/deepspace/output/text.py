"""Results as plain text for a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd


def format_summary(summary: Mapping[str, Any]) -> str:
    """Verdict, scores as a table (models, baselines, noise ceiling), and the leak gap."""
    lines = [*summary.get("verdict", []), "", *TABLES[summary["target"]](summary)]
    lines += _leak_lines(summary)
    lines += [_gain_line(gain) for gain in summary.get("gains", [])]
    if "warning" in summary:
        lines.insert(0, f"WARNING: {summary['warning']}")
    return "\n".join(lines)


def format_completion(summary: Mapping[str, Any]) -> str:
    """What a completion made, and how far it may be believed."""
    noun = NOUNS[summary["target"]]
    lines = [format_summary(summary["scores"])]
    if summary["within"]:
        lines += ["", format_summary(summary["within"])]
    lines.append("")
    for name, found in summary["sections"].items():
        reasons = ", ".join(f"{n} {reason}" for reason, n in found["reasons"].items())
        lines.append(
            f"{name}: {found['failed']} of {found['spots']} spots failed"
            + (f" ({reasons})" if reasons else "")
        )
    lines += [f"{name}: {points} points" for name, points in summary["points"].items()]
    if summary["volume"]:
        z, y, x = summary["volume"]["shape_zyx"]
        lines.append(
            f"volume: {z} planes of {x} x {y} voxels, {summary['volume']['columns']} {noun}"
        )
    lines.append(f"{summary['predictable']} of {summary['columns']} {noun} are predictable")
    return "\n".join(lines)


def _expression_table(summary: Mapping[str, Any]) -> list[str]:
    models: Mapping[str, Mapping[str, Any]] = summary["models"]
    width = max(len(name) for name in [*models, *summary["not_applicable"], "noise ceiling"])
    sections = list(next(iter(models.values()))["sections"])
    shown = sections if len(sections) <= 8 else []
    head = f"{'':{width}}  {'mean r':>7}  {'best 50':>7}  {'R2':>7}  {'in 90 %':>7}"
    lines = [
        f"Held-out Pearson correlation over genes, split by {summary['split']} "
        f"({summary['folds']} folds, genes {summary['genes']})",
        head + "".join(f"  {name[:7]:>7}" for name in shown),
    ]
    for name, scores in models.items():
        cells = [scores["mean_pearson"], scores["best50_pearson"], scores["mean_r2"]]
        cells.append(scores.get("coverage_90"))
        cells += [scores["sections"].get(section) for section in shown]
        lines.append(f"{name:{width}}" + "".join(f"  {_cell(value):>7}" for value in cells))
    ceiling = summary["ceiling"]
    lines.append(
        f"{'noise ceiling':{width}}  {_cell(ceiling['mean_pearson']):>7}"
        f"  {_cell(ceiling['best50_pearson']):>7}"
    )
    return lines + _not_applicable(summary, width)


def _cluster_table(summary: Mapping[str, Any]) -> list[str]:
    """Scores over all held-out spots, then the accuracy in each section."""
    models: Mapping[str, Mapping[str, Any]] = summary["models"]
    width = max(len(name) for name in [*models, *summary["not_applicable"]])
    sections = list(next(iter(models.values()))["sections"])
    shown = sections if len(sections) <= 8 else []
    heads = [*CLUSTER_COLUMNS.values(), *(name[:8] for name in shown)]
    lines = [
        f"Held-out clusters, split by {summary['split']} ({summary['folds']} folds, "
        f"{summary['spots']} spots, {summary['clusters']} clusters: {summary['labels']}); "
        "columns of sections: accuracy",
        f"{'':{width}}" + "".join(f"  {head:>8}" for head in heads),
    ]
    for name, scores in models.items():
        cells = [scores[metric] for metric in CLUSTER_COLUMNS]
        cells += [scores["sections"].get(s, {}).get("accuracy") for s in shown]
        lines.append(f"{name:{width}}" + "".join(f"  {_cell(value):>8}" for value in cells))
    return lines + _not_applicable(summary, width)


NOUNS = {"expression": "genes", "clusters": "clusters"}
CLUSTER_COLUMNS = {
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "balanced_accuracy": "bal.acc.",
    "log_loss": "log loss",
}
LEAK_COLUMNS = {"expression": ("mean_pearson", "mean r"), "clusters": ("accuracy", "accuracy")}
TABLES: dict[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "expression": _expression_table,
    "clusters": _cluster_table,
}


def _leak_lines(summary: Mapping[str, Any]) -> list[str]:
    """The same model under every split."""
    rows = [row for row in summary.get("leak_gap", []) if row["note"] is None]
    if len(rows) < 2:
        return []
    metric, name = LEAK_COLUMNS[summary["target"]]
    lines = [f"\nLeak gap: {rows[0]['model']} under every split that the cohort allows ({name})"]
    return lines + [f"{row['split']:8} {_cell(row[metric]):>7}  {row['meaning']}" for row in rows]


def _gain_line(gain: Mapping[str, Any]) -> str:
    """What a student gains over its teacher, with the interval over sections."""
    between = "" if gain["low"] is None else f" (95 % {gain['low']:+.4f} to {gain['high']:+.4f})"
    return (
        f"{gain['student']} over {gain['teacher']}: {gain['gain']:+.4f} {gain['score']}{between}, "
        f"better in {gain['better']} of {gain['sections']} sections"
    )


def _not_applicable(summary: Mapping[str, Any], width: int) -> list[str]:
    text = "does not apply: it needs measured spots beside the held-out"
    return [f"{name:{width}}  {text}" for name in summary["not_applicable"]]


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def format_description(found: Mapping[str, Any]) -> str:
    """What `inspect` found, one block a section, problems last."""
    blocks = [_section_block(facts) for facts in found["sections"]]
    problems = found["problems"]
    if problems:
        lines = "\n".join(f"  - {fault}" for fault in problems)
        blocks.append(f"{len(problems)} problem{'s' * (len(problems) > 1)}:\n{lines}")
    else:
        blocks.append("No problems found.")
    return "\n\n".join(blocks)


def _section_block(facts: Mapping[str, Any]) -> str:
    width, height = facts["image_size"]
    mpp = facts["mpp"]
    rows = [
        ("platform", facts["platform"]),
        ("image", f"{facts['image']} ({width} x {height} px)"),
        ("mpp", "unknown" if mpp is None else f"{mpp:.4g} um/px, from {facts['mpp_source']}"),
    ]
    if facts["spots"] is not None:
        rows.append(("spots", f"{facts['spots_in_tissue']} in tissue of {facts['spots']}"))
    if facts["spot_diameter_px"] is not None:
        size = f"{facts['spot_diameter_um']:.0f} um = {facts['spot_diameter_px']:.1f} px"
        rows.append(("spot size", size))
    if facts["spots_measured"] is None:
        rows.append(("counts", "none: an unmeasured section"))
    else:
        rows.append(("counts", f"{facts['spots_measured']} spots x {facts['genes']} genes"))
        if facts["median_umis"] is not None:
            genes = f"{facts['median_genes']:.0f} genes a spot"
            rows.append(("depth", f"median {facts['median_umis']:.0f} UMI and {genes}"))
    if facts.get("clusters"):
        rows.append(("clusters", str(facts["clusters"])))
    if facts.get("overview"):
        rows.append(("overview", facts["overview"]))
    rows += [("note", note) for note in facts["notes"]]
    head = f"section {facts['section']} (patient {facts['patient']})"
    return "\n".join([head, *(f"  {name:9} {value}" for name, value in rows)])


def format_law(truth: pd.DataFrame, section: str) -> str:
    """Predictions of a simulated section against the truth, one line per kind of gene."""
    lines = [
        f"Section {section} was never measured; its prediction against the simulated truth:",
        f"{'genes that follow':20}  {'genes':>5}  {'median r':>8}  {'called predictable':>18}",
    ]
    for kind, genes in truth.groupby("kind", sort=True):
        called = f"{int(genes['predictable'].sum())} of {len(genes)}"
        middle = genes["truth"].median()
        cell = "-" if math.isnan(middle) else f"{middle:.3f}"  # a constant truth has none
        lines.append(f"{kind:20}  {len(genes):5d}  {cell:>8}  {called:>18}")
    follows = truth["kind"] != FOLLOWS_NOTHING
    believed = truth["predictable"].astype(bool)
    right, false = _percent(believed & follows, follows), _percent(believed & ~follows, believed)
    lines.append(
        f"Verdicts against the law: {right} of the genes that follow something are called "
        f"predictable (sensitivity), {false} of those called so follow nothing (false discoveries)"
    )
    return "\n".join(lines)


FOLLOWS_NOTHING = "none"


def _percent(part: pd.Series, whole: pd.Series) -> str:
    return f"{100 * part.sum() / max(whole.sum(), 1):.0f} %"
