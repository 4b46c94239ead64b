"""Fine-tuned network, probe on the same network, and stain ridge, side by side over seeds.

    python benchmarks/compare_cnn.py SHEET --weights WEIGHTS --out DIR [--genes A,B,C] [--seeds 3]

Every section is left out in turn. Prints, and writes to DIR, the mean Pearson correlation of each
gene with its spread over sections and seeds, and the paired difference to the probe.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from deepspace.core.config import Config, load_config
from deepspace.core.progress import show
from deepspace.workflows.evaluate import evaluate

# the genes of the comparison in docs/decisions/008-fine-tuning.md
GENES = (
    "ERBB2,GRB7,CD24,FASN,BGN,COL1A1,COL1A2,COL3A1,SPARC,FN1,POSTN,LUM,CTSK,MMP14,ISG15,IFI27,"
    "B2M,CD74,IGKC,IGLC2,IGHG3,TMSB10,IGHA1,PSMB3"
)


def scores_of(sheet: Path, config: Config, models: list[str], out: Path) -> pd.DataFrame:
    """Tidy scores; an evaluation with the same configuration that is there already is read."""
    done = out / "summary.json"
    if done.exists():
        used = json.loads(done.read_text())["provenance"]["config"]
        if used != config.model_dump(mode="json"):
            raise SystemExit(
                f"{out}: holds an evaluation with other settings; choose another --out"
            )
    else:
        evaluate(sheet, out, models=models, config=config)
    return pd.read_parquet(out / "scores.parquet")


def paired(scores: pd.DataFrame, model: str, other: str) -> str:
    """Mean difference with a t interval over sections, whose seeds are averaged first."""
    means = scores.groupby(["model", "section", "seed"])["pearson"].mean()
    pairs = (means[model] - means[other]).dropna()
    gains = pairs.groupby(level="section").mean()
    half = stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains))
    wins = int((pairs > 0).sum())
    gain = f"{gains.mean():+.4f} +- {half:.4f} (95 %)"
    return f"{model} - {other}: {gain}, better in {wins} of {len(pairs)}"


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--genes", default=GENES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size-px", type=int, default=112, help="side of a patch in pixels")
    parser.add_argument("--config", help="TOML file or preset with more settings")
    args = parser.parse_args()
    parts = []
    with show():
        for seed in range(args.seeds):
            base = load_config(args.config).with_values(
                seed=seed, target={"genes": args.genes}, split={"how": "section"}
            )
            deep = base.with_values(
                encoder={"name": "vgg16", "weights": args.weights, "size_px": args.size_px}
            )
            found = scores_of(args.sheet, deep, ["cnn", "probe"], args.out / f"vgg16-{seed}")
            stain = scores_of(args.sheet, base, ["probe"], args.out / f"stain-{seed}")
            own = stain[stain["model"] == "probe (stain)"]
            parts.append(pd.concat([found, own]).assign(seed=seed))
    scores = pd.concat(parts, ignore_index=True)
    table = scores.groupby(["gene", "model"])["pearson"].agg(["mean", "std"]).unstack()
    table.to_csv(args.out / "genes.csv")
    print(table.round(3).to_string())
    print(scores.groupby("model")["pearson"].mean().round(4).to_string())
    print("ceiling", round(scores.groupby("gene")["ceiling"].mean().mean(), 4))
    for other in ("probe (vgg16)", "probe (stain)", "colour ridge"):
        print(paired(scores, "cnn (vgg16)", other))


if __name__ == "__main__":
    main()
