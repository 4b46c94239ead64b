"""What a Noisy Student gains over its teacher, with few labels and with all.

    python benchmarks/noisy_student.py SHEET [--encoder stain] [--weights FOLDER] [--seeds 3]
        [--model cnn-student] [--regimes "60 spots"] [--draws 1]

Every section is held out in turn. The teacher learns from one other section, from 60 spots of one,
or from all; the student learns from the tiles between their spots as well. Prints the mean gain in
Pearson correlation, its 95 % t interval over held-out sections (seeds and training sections
averaged first: they share a held-out section), and how often the gate kept the student, with the
controls beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from compare_cnn import GENES
from deepspace.core.config import Config, load_config
from deepspace.core.metrics import pearson
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models.registry import MODELS, TEACHERS, Workbench
from deepspace.workflows.cohort import default_cache, prepare_cohort
from deepspace.workflows.scoring import remember
from deepspace.workflows.semi import controls

SPOTS = 60
MARKED = "SPARC"
GATED = "teacher"


def one_section(others: list[Section], seed: int) -> Iterator[list[Section]]:
    """Each other section alone."""
    for section in others:
        yield [section]


def few_spots(others: list[Section], seed: int) -> Iterator[list[Section]]:
    """Some random spots of each other section alone."""
    for number, section in enumerate(others):
        rng = np.random.default_rng([seed, number])
        rows = np.sort(rng.permutation(len(section.coords))[:SPOTS])
        yield [section.subset(rows)]


def all_sections(others: list[Section], seed: int) -> Iterator[list[Section]]:
    """All other sections together."""
    yield others


REGIMES = {"one section": one_section, "60 spots": few_spots, "all sections": all_sections}


def gains(
    bench: Workbench, sections: list[Section], student: str, options: argparse.Namespace
) -> pd.DataFrame:
    """One row per regime, held-out section, training set, seed and kind of pseudo-labels."""
    rows = []
    for seed in range(options.seeds):
        seeded = replace(bench, config=bench.config.with_values(seed=seed))
        kinds = {GATED: seeded} | ({} if options.no_controls else controls(seeded))
        for held_out in sections:
            others = [s for s in sections if s is not held_out]
            for regime in options.regimes:
                for training in islice(REGIMES[regime](others, seed), options.draws):
                    rows += compare(seeded, kinds, training, held_out, student, regime)
    return pd.DataFrame(rows)


def compare(
    bench: Workbench,
    kinds: dict[str, Workbench],
    training: list[Section],
    held_out: Section,
    student: str,
    regime: str,
) -> list[dict[str, object]]:
    """Students of true, permuted and random pseudo-labels against the teacher."""
    target = fit_target(training, bench.config.target)
    measured = target.encode(held_out.require_counts())

    def score(model: str, tools: Workbench) -> tuple[np.ndarray, str]:
        fitted = MODELS[model](tools).fit(training, target)
        found = pearson(measured, fitted.predict(held_out.slide, held_out.coords).mean)
        return found, getattr(fitted, "gate", {}).get("kept", "")

    teacher, _ = score(TEACHERS[student], bench)
    rows = []
    for kind, tools in kinds.items():
        found, kept = score(student, tools)
        gain = found - teacher
        rows.append(
            {
                "regime": regime,
                "labels": kind,
                "section": held_out.section,
                "teacher": np.nanmean(teacher),
                "gain": np.nanmean(gain),
                MARKED: gain[target.names.index(MARKED)] if MARKED in target.names else np.nan,
                "kept": kept == "student" if kind == GATED else np.nan,
            }
        )
    return rows


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means with a t interval over held-out sections."""
    found = []
    for (regime, labels), part in table.groupby(["regime", "labels"], sort=False):
        means = part.groupby("section")["gain"].mean()
        half = stats.t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / np.sqrt(len(means))
        found.append(
            {
                "regime": regime,
                "labels": labels,
                "teacher": part["teacher"].mean(),
                "gain": means.mean(),
                "+-": half,
                MARKED: part[MARKED].mean(),
                "kept": part["kept"].mean(),
                "worst": part["gain"].min(),
            }
        )
    return pd.DataFrame(found).round(4)


def main() -> None:
    """Run all regimes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sheet", type=Path)
    parser.add_argument("--encoder", default="stain")
    parser.add_argument("--weights")
    parser.add_argument("--model", default="probe-student", choices=list(TEACHERS))
    parser.add_argument("--genes", default=GENES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regimes", nargs="+", default=list(REGIMES), choices=list(REGIMES))
    parser.add_argument("--no-controls", action="store_true", help="the gated student alone")
    parser.add_argument("--draws", type=int, help="training sets per held-out section, if not all")
    parser.add_argument("--config", help="TOML file or preset with more settings")
    args = parser.parse_args()
    config: Config = load_config(args.config).with_values(
        target={"genes": args.genes}, encoder={"name": args.encoder, "weights": args.weights}
    )
    start = Workbench.of(config, default_cache())
    ready = prepare_cohort(args.sheet, [start], [args.model], None)
    (bench,) = ready.benches
    remember(ready.sections, ready.benches)
    table = gains(bench, ready.sections, args.model, args)
    print(summary(table).to_string(index=False))


if __name__ == "__main__":
    main()
