"""Chapters of a report, each made from what lies in a result's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import read_h5ad

from deepspace.core import keys
from deepspace.core.errors import InputError
from deepspace.output.report import Chapter, Code, Folded, Picture, Table, Text
from deepspace.output.text import LEAK_COLUMNS, NOUNS
from deepspace.output.write import read_provenance
from deepspace.workflows.cluster_scoring import POOLED
from deepspace.workflows.verdicts import NO, PREDICTABLE, WEAK

SHOWN_GENES = 50
NOT_RECORDED = "Not recorded by the version of deepspace that made this result."
SCORE_COLUMNS = {
    "expression": {
        "mean_pearson": "mean r",
        "best50_pearson": "best 50 genes",
        "mean_spearman": "mean Spearman",
        "mean_rmse": "RMSE",
        "mean_r2": "R2",
        "coverage_90": "in 90 % interval",
    },
    "clusters": {
        "accuracy": "accuracy",
        "macro_f1": "macro F1",
        "balanced_accuracy": "balanced accuracy",
        "log_loss": "log loss",
    },
}


def read_json(path: Path) -> dict[str, Any]:
    """Content of a JSON file that deepspace wrote.

    Raises
    ------
    InputError
        If it is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); make the result again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: damaged (no table of values); make the result again")
    return found


def number(value: object, digits: int = 3) -> str:
    """A number as a cell; a dash where there is none."""
    if not isinstance(value, int | float) or pd.isna(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"


def data_chapter(folder: Path, summary: Mapping[str, Any]) -> Chapter:
    """What was measured, and which spots were left out."""
    blocks: list[Any] = []
    model = (
        folder / "model.json" if (folder / "model.json").exists() else folder / "model/model.json"
    )
    if model.exists():
        rows = [
            [
                t["section"],
                t["patient"],
                number(t["spots"]),
                f"{t['mpp']:.4g}",
                t["mpp_source"] or "-",
            ]
            for t in read_json(model)["training"]
        ]
        head = ["section", "patient", "spots learnt from", "mpp (um per pixel)", "mpp from"]
        blocks.append(Table(head, rows, frozenset({2, 3})))
    whole = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    if "points" in whole:
        rows = [
            [name, number(s["spots"]), number(s["failed"]), _reasons(s["reasons"])]
            for name, s in whole["sections"].items()
        ]
        note = "Failed spots are not learnt from but predicted. failed.csv names them."
        blocks.append(
            Table(["section", "spots", "failed", "why"], rows, frozenset({1, 2}), note=note)
        )
    lines = summary.get("quality_control", [])
    blocks += [Text(line) for line in lines]
    return Chapter("data", "Data and quality control", blocks or [Text(NOT_RECORDED)])


def _reasons(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in found.items()) or "-"


def leak_chapter(summary: Mapping[str, Any]) -> Chapter:
    """The same model under every split."""
    rows = summary.get("leak_gap", [])
    if not rows:
        return Chapter("leak", "How much a split flatters", [Text(NOT_RECORDED)])
    metric, name = LEAK_COLUMNS[summary["target"]]
    body = [
        [r["split"], r["meaning"], number(r.get(metric)), r["note"] or f"{r['folds']} folds"]
        for r in rows
    ]
    classes = ["strong" if r["split"] == summary["split"] else "" for r in rows]
    note = (
        f"The same model ({rows[0]['model']}) on the same data, held out in different ways. The "
        "row in bold is the split that the scores below come from. Random spots are what many "
        "papers report."
    )
    table = Table(["split", "what is held out", name, ""], body, frozenset({2}), classes, note)
    return Chapter("leak", "How much a split flatters", [table])


def scores_chapter(folder: Path, summary: Mapping[str, Any]) -> Chapter:
    """Models beside baselines and the noise ceiling."""
    columns = SCORE_COLUMNS[summary["target"]]
    compared = {(c["model"], c["against"]): c for c in summary.get("comparisons", [])}
    first = next(iter(summary["models"]))
    baselines = {against for _, against in compared}
    rows, classes = [], []
    for name, found in summary["models"].items():
        rows.append(
            [name, *(number(found.get(k)) for k in columns), _gain(compared.get((first, name)))]
        )
        classes.append("quiet" if name in baselines else "strong" if name == first else "")
    ceiling = summary.get("ceiling")
    if ceiling:
        cells = [number(ceiling.get(key)) for key in columns]
        rows.append(["noise ceiling", *cells, ""])
        classes.append("")
    for name in summary.get("not_applicable", []):
        rows.append([name, *["-"] * len(columns), "does not apply here"])
        classes.append("quiet")
    head = ["", *columns.values(), f"{first} is better by (95 % interval)"]
    note = (
        "Baselines in grey. The noise ceiling is the correlation that the true expression itself "
        "would reach with such noisy counts. The tissue-domain oracle knows the cluster of every "
        "held-out spot from its own counts, which no prediction may. Intervals are paired, over "
        "patients or sections where there are three, else over four regions a section, which then "
        "tell of these sections alone."
    )
    numbers = frozenset(range(1, len(columns) + 1))
    blocks: list[Any] = [Table(head, rows, numbers, classes, note)]
    blocks += _pictures(
        folder,
        "scores.png",
        "Every model and baseline: large dot the mean, small "
        "dots single held-out sections; the line is the noise ceiling.",
    )
    blocks += _pictures(folder, "recall.png", "Which clusters are mistaken for which.")
    blocks += _pictures(folder, "history.png", "How the network was trained.")
    return Chapter("scores", "Scores on held-out data", blocks)


def _gain(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    between = "" if row["low"] is None else f" ({row['low']:+.3f} to {row['high']:+.3f})"
    return f"{row['difference']:+.3f}{between}" + (
        "" if row["beats"] else ", not shown to be better"
    )


def genes_chapter(folder: Path, summary: Mapping[str, Any]) -> Chapter:
    """Verdict of every gene or cluster."""
    noun = NOUNS[summary["target"]]
    title = f"Which {noun} may be believed"
    path = folder / "genes.csv"
    if not path.exists():
        return Chapter("genes", title, [Text(NOT_RECORDED)])
    table = pd.read_csv(path, dtype={"gene": str}, keep_default_na=False, na_values=[""])
    table = table[table["model"] == table["model"].iloc[0]]
    table = table.sort_values("score", ascending=False, kind="stable", na_position="last")
    counts = table["verdict"].value_counts()
    told = (
        f"{counts.get(PREDICTABLE, 0)} {noun} are predictable (held-out correlation at least 0.2, "
        "above chance at a false discovery rate of 5 %, in every held-out section), "
        f"{counts.get(WEAK, 0)} weakly (above chance, but not all of that), {counts.get(NO, 0)} "
        "are not told from chance and are left out of predictions."
    )
    rows = [
        [
            row["gene"], row["verdict"], number(row["score"]),
            "-" if pd.isna(row["low"]) else f"{row['low']:.2f} to {row['high']:.2f}",
            number(row["ceiling"]), _small(row["p_value"]), _small(row["q_value"]),
        ]
        for row in table.to_dict("records")
    ]  # fmt: skip
    head = ["", "verdict", "held-out score", "95 % over sections", "ceiling", "p", "q (FDR)"]
    numbers = frozenset({2, 3, 4, 5, 6})
    blocks: list[Any] = [
        Text(told),
        Table(head, rows[:SHOWN_GENES], numbers, searchable=f"find among {len(rows)} {noun}"),
    ]
    if len(rows) > SHOWN_GENES:
        rest = Table(head, rows[SHOWN_GENES:], numbers)
        blocks.append(Folded(f"the other {len(rows) - SHOWN_GENES} {noun}", [rest]))
    blocks += _pictures(
        folder,
        "genes.png",
        "The best genes by name, and all genes in order, beside baselines and the noise ceiling.",
    )
    return Chapter("genes", title, blocks)


def _small(value: float) -> str:
    if pd.isna(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def metrics_chapter(folder: Path) -> Chapter:
    """The field's other metrics, means over genes; what each row is of is named in it."""
    path = folder / "metrics.parquet"
    if not path.exists():
        return Chapter("metrics", "Other metrics of the field", [])
    table = pd.read_parquet(path)
    level = np.where(table["section"] == POOLED, "all spots", "sections")
    keys_of = ["model", "values", "level"]
    rows = _means(table.assign(level=level), keys_of, GENE_METRICS)
    told = (
        "Raw: predictions against the measurement of every spot. Smoothed: both averaged over a "
        "spot and its ring of neighbours first, which takes out noise and flatters. Means over "
        "genes; higher is better but for NRMSE and Jensen-Shannon."
    )
    head = ["", "values", "over", *GENE_METRICS.values()]
    numbers = frozenset(range(3, len(head)))
    section = pd.read_parquet(folder / "section_metrics.parquet")
    heads = ["", "values", *SECTION_METRICS.values()]
    more = _means(section, ["model", "values"], SECTION_METRICS)
    note = (
        "Means of sections. Moran's I: correlation over genes of predicted with measured spatial "
        "autocorrelation. Variable genes: AUROC of finding the most spatially variable ones. "
        "Gene pairs: mean error of gene-gene correlations (lower is better). ARI, NMI: clusters of "
        "predicted against clusters of measured expression."
    )
    tables = [
        Table(head, rows, numbers),
        Table(heads, more, frozenset(range(2, len(heads))), note=note),
    ]
    return Chapter("metrics", "Other metrics of the field", [Text(told), *tables])


def _means(table: pd.DataFrame, by: list[str], metrics: Mapping[str, str]) -> list[list[str]]:
    """Rows of cells: means of the metrics in every group."""
    means = table.groupby(by, sort=False)[list(metrics)].mean().reset_index()
    return [
        [*(str(row[name]) for name in by), *(number(row[name]) for name in metrics)]
        for row in means.to_dict("records")
    ]


GENE_METRICS = {
    "pearson": "Pearson",
    "spearman": "Spearman",
    "nrmse_range": "NRMSE (range)",
    "nrmse_sd": "NRMSE (sd)",
    "mutual_information": "mutual information",
    "jensen_shannon": "Jensen-Shannon",
    "auc_above_q75": "AUC, upper quarter",
    "ssim_map": "SSIM of the map",
    "ssim_global": "SSIM, global (2025 benchmark)",
}
SECTION_METRICS = {
    "moran_pearson": "Moran's I",
    "svg_auroc": "variable genes",
    "gene_correlation_mae": "gene pairs",
    "cluster_ari": "ARI",
    "cluster_nmi": "NMI",
}


def maps_chapter(folder: Path) -> Chapter:
    """Maps of held-out sections, for genes chosen by rule."""
    told = (
        "Each picture is one section that was held out. Rows are chosen by rule, not by eye: the "
        "two genes with the best mean held-out correlation, the middle one and the worst. Measured "
        "and predicted share their colours."
    )
    seen = "held out: measured, predicted, both."
    found = [
        Picture.of(path, f"Section {path.stem.removeprefix('maps-')}, {seen}")
        for path in sorted(folder.glob("maps-*.png"))
    ]
    return Chapter("maps", "Best, typical and worst genes", [Text(told), *found] if found else [])


def calibration_chapter(folder: Path, summary: Mapping[str, Any]) -> Chapter:
    """Whether intervals hold what they promise."""
    path = folder / "scores.csv"
    table = pd.read_csv(path, dtype={"section": str}) if path.exists() else pd.DataFrame()
    if "coverage_90" not in table:
        return Chapter("calibration", "Do the intervals hold?", [])
    first = next(iter(summary["models"]))
    own = table[table["model"] == first].groupby("section", sort=False)["coverage_90"].mean()
    rows = [[str(name), f"{100 * share:.1f} %"] for name, share in own.items()]
    note = "Share of held-out measurements inside their 90 % interval; 90 % is what it should be."
    blocks: list[Any] = [Table(["held-out section", first], rows, frozenset({1}), note=note)]
    blocks += _pictures(
        folder,
        "uncertainty.png",
        "Errors against the standard deviations that were given with the predictions.",
    )
    return Chapter("calibration", "Do the intervals hold?", blocks)


def within_chapter(folder: Path) -> Chapter:
    """Scores of regions blanked inside sections."""
    if not (folder / "summary.json").exists():
        return Chapter("within", "Inside measured sections", [])
    inner = scores_chapter(folder, read_json(folder / "summary.json"))
    told = "Regions of a section blanked, all around them measured: what failed spots are worth."
    return Chapter("within", "Inside measured sections", [Text(told), *inner.blocks])


def completed_chapters(folder: Path) -> list[Chapter]:
    """Registration, sections and volume of a completion."""
    pairs = [
        Picture.of(
            path,
            f"{path.stem.replace('-', ' ')}: tiles of both sections in turn; edges of "
            "the tissue should run through.",
        )
        for path in sorted((folder / "registration").glob("*.png"))
    ]
    sections = [
        Picture.of(
            path,
            f"{path.stem.removesuffix('-maps')}: measured where it was measured, "
            "predicted, and the standard deviation.",
        )
        for path in sorted((folder / "sections").glob("*-maps.png"))
    ]
    planes = [
        Picture.of(path, "The block in depth: planes through the sections and between them.")
        for path in sorted(folder.glob("volume*.png"))
    ]
    return [
        Chapter("registration", "Serial sections laid over each other", pairs),
        Chapter("sections", "Completed sections", sections),
        Chapter("volume", "Between the sections", planes),
    ]


def odd_chapter(folder: Path) -> Chapter:
    """Predicted slides that are unlike the training slides, and the share of odd points."""
    rows, seen = [], set()
    blocks: list[Any] = []
    for path in sorted((folder / "sections").glob("*.h5ad")):
        found = read_h5ad(path, backed="r")
        odd = found.obs[keys.OOD].to_numpy(dtype=bool)
        reasons = found.obs.get(keys.OOD_REASON)
        main = "" if reasons is None or not odd.any() else str(reasons[odd].mode().iloc[0])
        rows.append([path.stem, number(len(odd)), f"{100 * odd.mean():.1f} %", main or "-"])
        record = read_provenance(found)
        if "images" in record and record["section"] not in seen:
            seen.add(record["section"])
            blocks.append(Text(f"Section {record['section']}: {record['images']['sentence']}."))
        found.file.close()
    if not rows:
        return Chapter("odd", "Odd images", [])
    note = (
        "About 5 % of the points of a slide like the training slides are called odd. Predictions "
        "at odd points rest on images unlike any that were learnt from: do not use them."
    )
    head = ["section and points", "points", "odd", "main reason"]
    return Chapter("odd", "Odd images", [*blocks, Table(head, rows, frozenset({1, 2}), note=note)])


def made_chapter(record: Mapping[str, Any] | None, command: str) -> Chapter:
    """Versions, inputs and the command that repeats it."""
    if not record:
        return Chapter("made", "How it was made", [Text(NOT_RECORDED)])
    inputs = [[name, digest] for name, digest in record["inputs"].items()]
    versions = [[name, version] for name, version in record["versions"].items()]
    settings = json.dumps(record["config"], indent=1, sort_keys=True)
    blocks = [
        Text(
            f"The same inputs, settings, versions and seed ({record['seed']}) give the same "
            "result. SHEET is the cohort sheet; config.toml lies beside this report."
        ),
        Code(command),
        Folded(
            f"{len(inputs)} input files with their SHA-256", [Table(["file", "SHA-256"], inputs)]
        ),
        Folded("versions", [Table(["package", "version"], versions)]),
        Folded("all settings", [Code(settings)]),
    ]
    return Chapter("made", "How it was made", blocks)


def _pictures(folder: Path, name: str, caption: str) -> Sequence[Picture]:
    path = folder / name
    return [Picture.of(path, caption)] if path.exists() else []
