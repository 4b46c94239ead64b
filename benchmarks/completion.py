"""What is known where nothing was measured: sections, regions and every second spot left out.

    python benchmarks/completion.py SHEET [--genes expressed:1000] [--encoder stain] [--config FILE]
        [--splits section blob alternate] [--folds 5]

For every kind of hole: mean Pearson correlation over genes and that of the best 50, of kriging, of
the image alone, of kriging without image, of the nearest spot; the paired difference of kriging to
each over holes, with a 95 % t interval over sections (holes of a section averaged first); and the
share of measurements inside the 90 % intervals, by section.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from deepspace.core.config import load_config
from deepspace.core.metrics import mean_of_best, pearson
from deepspace.core.progress import show
from deepspace.models.registry import Workbench
from deepspace.workflows.cohort import default_cache, prepare_cohort
from deepspace.workflows.scoring import COVERAGE, Evaluation, evaluate_sections, gene_means

MODELS = ["kriging", "probe"]


def by_hole(found: Evaluation) -> pd.DataFrame:
    """Mean correlation over genes of every model in every hole, one row each."""
    rows = []
    for name, slot in found.held_out.items():
        for fold in np.unique(slot.fold):
            own = slot.fold == fold
            for model, values in slot.predicted.items():
                # a fold chooses its own genes, the same for every model
                genes = ~np.isnan(values[own]).any(axis=0) & ~np.isnan(slot.measured[own]).any(
                    axis=0
                )
                if not genes.any():
                    continue
                r = np.nanmean(pearson(slot.measured[own][:, genes], values[own][:, genes]))
                rows.append({"section": name, "hole": fold, "model": model, "r": r})
    return pd.DataFrame(rows)


def gains(holes: pd.DataFrame, model: str) -> pd.DataFrame:
    """Paired difference of `model` to all others."""
    table = holes.pivot(index=["section", "hole"], columns="model", values="r")
    rows = []
    for other in table.columns.drop(model):
        pairs = (table[model] - table[other]).dropna()
        means = pairs.groupby(level="section").mean()
        if len(means) < 2:
            continue
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
        rows.append(
            {
                "against": other,
                "gain": pairs.mean(),
                "+-": half,
                "better": int((pairs > 0).sum()),
                "holes": len(pairs),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Run all kinds of holes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--genes", default="expressed:1000")
    parser.add_argument("--encoder")
    parser.add_argument("--weights")
    parser.add_argument("--config", help="TOML file or preset with more settings")
    parser.add_argument("--splits", nargs="+", default=["section", "blob", "alternate"])
    parser.add_argument("--folds", type=int, default=5)
    args = parser.parse_args()
    config = load_config(args.config).with_values(
        target={"genes": args.genes}, encoder={"name": args.encoder, "weights": args.weights}
    )
    bench = Workbench.of(config, default_cache())
    ready = prepare_cohort(args.sheet, [bench], MODELS, None)
    for how in args.splits:
        split = config.split.model_copy(update={"how": how, "folds": args.folds})
        benches = [
            Workbench(
                b.config.model_copy(update={"split": split}),
                b.cache,
                b.extractors,
                stack=b.stack,
            )
            for b in ready.benches
        ]
        with show():
            found = evaluate_sections(ready.sections, benches, MODELS)
        print(f"\n== {how}")
        for model in found.scores["model"].unique():
            r = gene_means(found.scores, model)["pearson"]
            sections = found.summary["models"][model]["sections"]
            print(f"{model:24} {r.mean():.4f} {mean_of_best(r.to_numpy(), 50):.4f} {sections}")
        print("ceiling", found.summary["ceiling"])
        holes = by_hole(found)
        label = next(m for m in holes["model"].unique() if m.startswith("kriging ("))
        print(gains(holes, label).round(4).to_string(index=False))
        inside = found.scores.groupby(["model", "section"], sort=False)[COVERAGE].mean()
        print("inside the 90 % intervals", inside[label].round(3).to_dict())


if __name__ == "__main__":
    main()
