"""Picture of a training: losses and correlation by epoch."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from deepspace.output.canvas import new_figure

TRAIN_COLOUR = "#0047ab"
HELD_COLOUR = "#d55e00"


def training_history(history: pd.DataFrame) -> Figure:
    """Draw how a network was trained.

    Parameters
    ----------
    history : DataFrame
        One row per epoch: `phase` (``search`` with held-out spots, ``refit`` without), `epoch`,
        `train_loss`, and for the search `loss` and `correlation` of the held-out spots.

    Returns
    -------
    Figure
        Left the losses, right the held-out correlation; a line marks the epoch that was kept.
    """
    search = history[history["phase"] == "search"]
    refit = history[history["phase"] == "refit"]
    figure = new_figure(8.0, 3.4)
    losses = figure.add_axes((0.09, 0.2, 0.38, 0.66))
    right = figure.add_axes((0.58, 0.2, 0.38, 0.66))
    losses.plot(search["epoch"], search["train_loss"], "o-", color=TRAIN_COLOUR, label="training")
    losses.plot(search["epoch"], search["loss"], "s-", color=HELD_COLOUR, label="held out")
    if refit["train_loss"].notna().any():
        again = "trained again on everything"
        losses.plot(refit["epoch"], refit["train_loss"], ".:", color=TRAIN_COLOUR, label=again)
    losses.set_ylabel("loss")
    losses.set_title("Loss", fontsize=10)
    right.plot(search["epoch"], search["correlation"], "s-", color=HELD_COLOUR)
    right.set_ylabel("mean Pearson r")
    right.set_title("Correlation at held-out spots, inside the training data", fontsize=9)
    best = float(search["epoch"].iloc[int(search["loss"].to_numpy().argmin())])
    for axes in (losses, right):
        axes.axvline(best, color="0.6", linewidth=1, linestyle="--", zorder=0)
        axes.set_xlabel("epoch (0: before training)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
    right.annotate(
        "kept",
        (best, right.get_ylim()[0]),
        xytext=(-3, 3),
        textcoords="offset points",
        ha="right",
        color="0.4",
    )
    losses.legend(fontsize=8, frameon=False)
    return figure
