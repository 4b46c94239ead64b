"""Pictures of an evaluation: models beside baselines and the noise ceiling."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from deepspace.output.canvas import new_figure

# as many genes as a picture can name one by one
NAMED = 30
BEST = 50
MODEL_COLOUR = "#0047ab"
OTHER_MODELS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00")
BASELINE_STYLES = ("--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 4)), (0, (8, 4)))
CEILING_COLOUR = "#b8860b"
CEILING = "noise ceiling"
RANGE = "range of sections"
LIST_IN = 3.6
CURVE_IN = 5.4
AXIS = "held-out Pearson r"
SPLITS = {
    "spot": "split by random spots (LEAKS)",
    "blob": "regions of a section blanked",
    "alternate": "every second spot of a section blanked",
}


def split_text(scores: pd.DataFrame) -> str:
    """How the data were held out, for a heading; random spots are called what they are."""
    if "split" not in scores:
        return ""
    how = str(scores["split"].iloc[0])
    return ", " + SPLITS.get(how, f"split by {how}")


def score_summary(scores: pd.DataFrame, baselines: Sequence[str] = ()) -> Figure:
    """Draw the mean Pearson correlation of every model and baseline, section by section.

    Parameters
    ----------
    scores : DataFrame
        Tidy: one row per `model`, `section` and `gene` with `pearson` and `ceiling`.
    baselines : sequence of str
        Names in `model` that are baselines; they are drawn grey, under the models.

    Returns
    -------
    Figure
        One panel over all genes, and one over the best 50 where there are more than that.
    """
    names = list(dict.fromkeys(scores["model"]))
    names = [n for n in names if n not in baselines] + [n for n in names if n in baselines]
    genes = scores["gene"].nunique()
    wide = [None, BEST] if genes > BEST else [None]
    label_in, panel_in = label_inches(names), 3.3
    width = label_in + len(wide) * (panel_in + 0.25)
    height = 0.32 * len(names) + 1.2
    figure = new_figure(width, height)
    for number, best in enumerate(wide):
        left = label_in + number * (panel_in + 0.25)
        axes = figure.add_axes(
            (left / width, 0.85 / height, panel_in / width, 0.32 * len(names) / height)
        )
        _draw_summary(axes, scores, names, baselines, best)
        which = f"all {genes:,} genes" if best is None else f"best {best} genes"
        axes.set_title(which + split_text(scores), fontsize=10)
        axes.set_yticks(range(len(names)), names if number == 0 else [""] * len(names), fontsize=9)
        if number == 0:
            for text, name in zip(axes.get_yticklabels(), names, strict=True):
                text.set_color("0.4" if name in baselines else "black")
    handles = [
        round_mark("0.2", 8, "mean of genes and sections"),
        round_mark("0.2", 3.5, "one section", alpha=0.6),
        Line2D([], [], color=CEILING_COLOUR, linewidth=1.6, label=CEILING),
    ]
    figure.legend(handles=handles, loc="lower right", ncols=3, fontsize=8, frameon=False)
    return figure


def _draw_summary(
    axes: Axes,
    scores: pd.DataFrame,
    names: Sequence[str],
    baselines: Sequence[str],
    best: int | None,
) -> None:
    """One dot a section and a larger one for their mean, a row a model."""
    lowest = 0.0
    for row, name in enumerate(names):
        table = scores[scores["model"] == name]
        table = table[table["gene"].isin(_best_genes(table, best))]
        per_section = table.groupby("section", sort=False)["pearson"].mean().dropna()
        mean = table.groupby("gene")["pearson"].mean().mean()
        colour = "0.5" if name in baselines else MODEL_COLOUR
        if np.isnan(mean):
            axes.text(0.01, row, "not defined", fontsize=8, color="0.4", va="center")
            continue
        lowest = min(lowest, float(per_section.min()), mean)
        axes.plot(per_section, [row] * len(per_section), "o", ms=3.5, color=colour, alpha=0.6)
        axes.plot(mean, row, "o", ms=8, color=colour, zorder=4)
        axes.annotate(
            f"{mean:.3f}",
            (mean, row),
            xytext=(0, 6),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="black",
        )
    ceiling = scores.groupby("gene")["ceiling"].mean()
    level = ceiling.nlargest(best).mean() if best else ceiling.mean()
    if np.isfinite(level):
        axes.axvline(level, color=CEILING_COLOUR, linewidth=1.6, zorder=1)
    axes.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    first = sum(name not in baselines for name in names)
    if 0 < first < len(names):
        axes.axhline(first - 0.5, color="0.85", linewidth=0.8)
    axes.set_xlim(lowest - 0.05, max(level if np.isfinite(level) else 0, 0.5) + 0.08)
    axes.set_ylim(len(names) - 0.5, -0.75)
    plain_axes(axes)
    axes.set_xlabel(AXIS, fontsize=9)


def _best_genes(table: pd.DataFrame, best: int | None) -> pd.Index:
    means = table.groupby("gene", sort=False)["pearson"].mean()
    return means.index if best is None else means.nlargest(best).index


def gene_scores(scores: pd.DataFrame, model: str, baselines: Sequence[str] = ()) -> Figure:
    """Draw how well each gene is predicted where it was held out.

    Parameters
    ----------
    scores : DataFrame
        Tidy: one row per `model`, `section` and `gene` with `pearson` and `ceiling`.
    model : str
        Genes are ranked by their mean Pearson correlation under this model.
    baselines : sequence of str
        Names in `model` that are baselines; they are drawn grey and broken.

    Returns
    -------
    Figure
        The best genes by name and, where there are more than those, the curve of all genes,
        with the range over sections; other models, baselines and the noise ceiling in the same
        order of genes, as running means.

    Raises
    ------
    ValueError
        If `model` has no scores.
    """
    table = scores[scores["model"] == model]
    means = table.groupby("gene")["pearson"].mean().dropna()
    ranked = means.sort_values(ascending=False, kind="stable").index
    if not len(ranked):
        raise ValueError(f"no scores of {model}")
    shown = ranked[:NAMED]
    many = len(ranked) > NAMED
    curves = _curves(scores, model, ranked, baselines)
    name_in, curve_in = label_inches(shown), CURVE_IN + 0.5 if many else 0.0
    columns = 4 if many else 2
    foot_in = 0.6 + 0.18 * -(-(len(curves) + 3) // columns)
    body_in = max(0.19 * len(shown), 4.2 if many else 0.6)
    width, height = name_in + LIST_IN + 0.2 + curve_in, body_in + foot_in + 0.55
    figure = new_figure(width, height)

    def place(left: float, wide: float) -> tuple[float, float, float, float]:
        return left / width, foot_in / height, wide / width, body_in / height

    named = figure.add_axes(place(curve_in + name_in, LIST_IN))
    _draw_named(named, table, shown, curves)
    named.set_title(f"best {len(shown)} genes" if many else "all genes", fontsize=10, loc="left")
    if many:
        axes = figure.add_axes(place(0.65, CURVE_IN - 0.15))
        _draw_curves(axes, table, ranked, curves)
        axes.set_title(f"all {len(ranked):,} genes, best first", fontsize=10, loc="left")
    title = model + split_text(scores)
    figure.text(0.1 / width, 1 - 0.16 / height, title, fontsize=12, va="center")
    handles = [
        round_mark(MODEL_COLOUR, 6, "mean over sections"),
        round_mark(MODEL_COLOUR, 3, "one section", alpha=0.45),
        *([Patch(color=MODEL_COLOUR, alpha=0.15, linewidth=0, label=RANGE)] if many else []),
        *(Line2D([], [], label=name, **style) for name, (_, style) in curves.items()),
    ]
    figure.legend(handles=handles, loc="lower left", ncols=columns, fontsize=8, frameon=False)
    return figure


def label_inches(names: Iterable[object]) -> float:
    """Inches that names take at the left of a panel."""
    return 0.085 * max(len(str(name)) for name in names) + 0.35


def _curves(
    scores: pd.DataFrame, model: str, ranked: pd.Index, baselines: Sequence[str]
) -> dict[str, tuple[pd.Series, dict[str, Any]]]:
    """Noise ceiling, other models and baselines in the order of `ranked`, with their styles."""
    found: dict[str, tuple[pd.Series, dict[str, Any]]] = {}
    by_gene = scores.groupby("gene")["ceiling"].mean().reindex(ranked)
    if by_gene.notna().any():
        found[CEILING] = (by_gene, {"color": CEILING_COLOUR, "linewidth": 1.6})
    models = iter(itertools.cycle(OTHER_MODELS))
    plain = iter(itertools.cycle(BASELINE_STYLES))
    for name in dict.fromkeys(scores["model"]):
        values = scores[scores["model"] == name].groupby("gene")["pearson"].mean().reindex(ranked)
        if name == model or values.isna().all():
            continue
        if name in baselines:
            style = {"color": "0.45", "linestyle": next(plain)}
        else:
            style = {"color": next(models)}
        found[name] = (values, {"linewidth": 1.1, **style})
    return found


def _draw_named(
    axes: Axes,
    table: pd.DataFrame,
    genes: pd.Index,
    curves: Mapping[str, tuple[pd.Series, dict[str, Any]]],
) -> None:
    """A row a gene: its sections and their mean, over the lines of everything else."""
    means = table.groupby("gene")["pearson"].mean().loc[genes]
    rows = np.arange(len(genes))
    dots = table[table["gene"].isin(genes)]
    where = dots["gene"].map(dict(zip(genes, rows, strict=True)))
    axes.hlines(rows, -1, 1, color="0.93", linewidth=0.8, zorder=0)
    for values, style in curves.values():
        axes.plot(values.loc[genes], rows, zorder=1, **style)
    axes.plot(dots["pearson"], where, "o", ms=3, color=MODEL_COLOUR, alpha=0.45, mew=0)
    axes.plot(means, rows, "o", ms=6, color=MODEL_COLOUR, zorder=4)
    axes.set_yticks(rows, list(genes), fontsize=8, fontstyle="italic")
    lines = [float(values.loc[genes].min()) for values, _ in curves.values()]
    low = min(0.0, float(np.nanmin([dots["pearson"].min(), *lines])))
    axes.set(xlim=(low - 0.05, 1.0), ylim=(len(genes) - 0.4, -0.6))
    axes.axvline(0, color="0.7", linewidth=0.8, zorder=0)
    plain_axes(axes)
    axes.set_xlabel(AXIS, fontsize=9)


def _draw_curves(
    axes: Axes,
    table: pd.DataFrame,
    ranked: pd.Index,
    curves: Mapping[str, tuple[pd.Series, dict[str, Any]]],
) -> None:
    """Curves over all genes in the order of `ranked`; single genes would be too ragged."""
    rank = np.arange(1, len(ranked) + 1)
    own = table.groupby("gene")["pearson"].agg(["mean", "min", "max"]).loc[ranked]
    window = max(1, len(ranked) // 15)
    low = own["mean"] - running_mean(own["mean"] - own["min"], window)
    high = own["mean"] + running_mean(own["max"] - own["mean"], window)
    axes.fill_between(rank, low, high, color=MODEL_COLOUR, alpha=0.15, linewidth=0)
    axes.plot(rank, own["mean"], color=MODEL_COLOUR, linewidth=2.2, zorder=4)
    for values, style in curves.values():
        axes.plot(rank, running_mean(values, window), **style)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlim=(1, len(ranked)), ylim=(min(-0.1, float(low.min())), 1.0))
    plain_axes(axes)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_xlabel("rank of gene (lines other than the model's: running means)", fontsize=9)
    axes.set_ylabel(AXIS, fontsize=9)


def running_mean(values: pd.Series, window: int) -> pd.Series:
    """Mean of the `window` values around each one, of fewer at the ends.

    Examples
    --------
    >>> running_mean(pd.Series([0.0, 9.0, 3.0, 3.0]), 3).tolist()
    [4.5, 4.0, 5.0, 3.0]
    """
    return values.rolling(window, center=True, min_periods=1).mean()


def round_mark(colour: str, size: float, label: str, alpha: float = 1.0) -> Line2D:
    """A dot for a legend."""
    return Line2D([], [], color=colour, marker="o", ls="", ms=size, alpha=alpha, label=label)


def plain_axes(axes: Axes) -> None:
    """Leave away what a row of dots does not need."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.tick_params(axis="y", length=0)
