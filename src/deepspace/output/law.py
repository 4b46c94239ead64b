"""Picture of predictions against a simulated truth, by what each gene follows."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from deepspace.output.canvas import new_figure

KINDS = {
    "image": "follow the\nimage",
    "mixed": "follow image\nand place",
    "neighbours": "follow a field that\nthe image does not show",
}
COLOURS = {True: "#0047ab", False: "0.6"}


def law_scores(truth: pd.DataFrame) -> Figure:
    """Draw each gene's correlation with the simulated truth, in one column per kind of gene.

    Parameters
    ----------
    truth : DataFrame
        One row a gene: `kind`, `truth` (Pearson correlation of the prediction with the noiseless
        expression) and `predictable` (the model's verdict from held-out sections).

    Returns
    -------
    Figure
        Blue: genes the model calls predictable; grey: genes it does not.
    """
    figure = new_figure(7.2, 4.2)
    axes = figure.add_axes((0.1, 0.2, 0.87, 0.64))
    truth = truth.dropna(subset="truth")  # a constant truth has no correlation
    kinds = [kind for kind in KINDS if (truth["kind"] == kind).any()]
    rng = np.random.default_rng(0)  # jitter that is the same in every run
    for place, kind in enumerate(kinds):
        chosen = truth[truth["kind"] == kind]
        across = place + rng.uniform(-0.28, 0.28, len(chosen))
        for verdict, colour in COLOURS.items():
            rows = (chosen["predictable"] == verdict).to_numpy()
            label = "called predictable" if verdict else "called not predictable"
            axes.scatter(
                across[rows],
                chosen["truth"][rows],
                s=14,
                color=colour,
                alpha=0.75,
                linewidths=0,
                label=label if place == 0 else None,
            )
        middle = float(chosen["truth"].median())
        axes.plot([place - 0.34, place + 0.34], [middle, middle], color="black", linewidth=1.6)
    axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(kinds)), [KINDS[kind] for kind in kinds], fontsize=9)
    axes.set(xlim=(-0.5, len(kinds) - 0.5), ylim=(-0.4, 1.02))
    axes.set_ylabel("correlation with the truth")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", fontsize=8, frameon=False)
    text = "A section that was never measured: prediction against simulated truth"
    figure.text(0.02, 0.94, text, fontsize=11, va="center")
    figure.text(0.02, 0.885, "one dot a gene; bar: median", fontsize=8.5, color="0.35", va="center")
    return figure
