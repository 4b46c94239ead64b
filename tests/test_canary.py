"""The canary: where nothing can be learnt, nothing may be found. If anything leaks, it sings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy.sparse import csr_matrix

from deepspace.core.config import Config
from deepspace.io.section import Section
from deepspace.models.registry import ORACLE, Workbench
from deepspace.output.text import format_law
from deepspace.simulate import Block, BlockConfig, simulate_block
from deepspace.simulate.config import Genes
from deepspace.workflows.chance import chance_scores, p_values
from deepspace.workflows.cohort import default_cache, read_cohort
from deepspace.workflows.scoring import Evaluation, evaluate_sections
from deepspace.workflows.stacking import with_stack
from deepspace.workflows.trial import Trial
from deepspace.workflows.verdicts import FDR, gene_verdicts

pytestmark = pytest.mark.slow
SHUFFLES = 10
COHORTS = 6
CONFIG = Config().with_values(
    target={"genes": "expressed:120"}, evaluate={"leak_gap": "none"}, split={"how": "section"}
)


@pytest.fixture(scope="module")
def block() -> Block:
    genes = Genes(image=40, neighbours=25, mixed=20, none=45, mitochondrial=4)
    return simulate_block(
        BlockConfig.preset("tiny", seed=4, side_um=1200.0, n_sections=4, genes=genes)
    )


@pytest.fixture(scope="module")
def sections(block: Block, tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    return read_cohort(block.write(tmp_path_factory.mktemp("canary") / "block"))


@pytest.fixture(scope="module")
def bench(sections: list[Section]) -> Workbench:
    return with_stack(Workbench.of(CONFIG, default_cache()), sections)


def with_shuffled_counts(sections: Sequence[Section], seed: int) -> list[Section]:
    """The whole experiment with the counts of each section dealt out to its spots at random."""
    rng, found = np.random.default_rng(seed), []
    for section in sections:
        counts = section.require_counts().copy()
        counts.X = counts.X[rng.permutation(counts.n_obs)]
        found.append(replace(section, counts=counts))
    return found


def test_shuffled_experiments_score_nothing(sections: list[Section], bench: Workbench) -> None:
    quick = replace(bench, config=bench.config.with_values(evaluate={"moves": 3}))
    runs = [
        evaluate_sections(with_shuffled_counts(sections, seed), [quick], ["kriging", "probe"])
        for seed in range(SHUFFLES)
    ]
    for model in ("kriging (stain)", "probe (stain)"):
        means = [run.summary["models"][model]["mean_pearson"] for run in runs]
        assert abs(np.mean(means)) < 0.02, model
        called = [
            (run.verdicts.loc[run.verdicts["model"] == model, "verdict"] == "predictable").mean()
            for run in runs
        ]
        assert np.mean(called) <= FDR, model
    # nothing else finds anything either: neighbours, colours
    names = set(runs[0].summary["models"]) - {ORACLE}  # which looks
    for name in names:
        assert abs(np.mean([run.summary["models"][name]["mean_pearson"] for run in runs])) < 0.03


def with_smooth_nothing(sections: Sequence[Section], seed: int, genes: int = 100) -> list[Section]:
    """Counts that follow smooth maps of their own in every section, and nothing else."""
    rng, found = np.random.default_rng(seed), []
    for section in sections:
        xy = section.coords * section.slide.require_mpp()
        maps = np.zeros((len(xy), genes))
        for _ in range(4):
            turn = rng.uniform(0, 2 * np.pi, genes)
            wave = np.stack([np.cos(turn), np.sin(turn)]) / rng.uniform(400, 1600, genes)
            maps += np.cos(2 * np.pi * (xy @ wave + rng.uniform(0, 1, genes)))
        X = rng.poisson(20 * np.exp(0.35 * maps)).astype(np.float32)
        obs, names = section.require_counts().obs, [f"G{k}" for k in range(genes)]
        counts = AnnData(csr_matrix(X), obs=obs.copy(), var=pd.DataFrame(index=names))
        counts.obsm["spatial"] = section.coords.copy()
        found.append(replace(section, counts=counts))
    return found


@pytest.mark.parametrize("model", ["probe", "kriging"])
def test_smooth_maps_of_nothing_are_not_believed(
    sections: list[Section], bench: Workbench, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Smooth genes correlate with smooth features by chance: p-values must allow for that."""
    runs = [
        evaluate_sections(with_smooth_nothing(sections, seed), [bench], [model])
        for seed in range(COHORTS)
    ]
    p = np.concatenate([run.verdicts["p_value"] for run in runs])
    least = [run.verdicts["q_value"].min() for run in runs]
    with capsys.disabled():
        print(
            f"\n{model}: p < 0.05 in {(p < 0.05).mean():.3f}, p < 0.01 in {(p < 0.01).mean():.3f}"
        )
        print("least q of each cohort:", np.round(least, 3))
    assert (p < 0.05).mean() <= 0.08
    assert (p < 0.01).mean() <= 0.025
    # of cohorts in which nothing is to be found, FDR may find something
    assert np.sum(np.array(least) <= FDR) <= 1


def test_moved_labels_are_judged_as_nothing(sections: list[Section], bench: Workbench) -> None:
    trial = Trial.of(sections, [bench])
    null = chance_scores(trial, bench.bridging("section"), SHUFFLES)
    assert abs(null.to_numpy().mean()) < 0.02
    discoveries = []
    for name in null:
        # each against the others, as a model is
        others = null.drop(columns=name)
        scores = pd.DataFrame(
            {
                "model": "m", "section": "S", "gene": null.index, "spots": 300,
                "pearson": null[name].to_numpy(), "ceiling": 1.0,
            }
        )  # fmt: skip
        verdicts = gene_verdicts(scores, {}, "m", [others])
        discoveries.append((verdicts["verdict"] == "predictable").mean())
    assert np.mean(discoveries) <= FDR
    p = np.concatenate(
        [p_values(null[n].to_numpy(), null.drop(columns=n).to_numpy()) for n in null]
    )
    assert 0.3 < p.mean() < 0.7


@pytest.fixture(scope="module")
def honest(sections: list[Section], bench: Workbench) -> Evaluation:
    return evaluate_sections(sections, [bench], ["kriging", "probe"])


def test_verdicts_agree_with_the_law(
    honest: Evaluation, block: Block, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, follows in (
        ("kriging (stain)", ["image", "mixed", "neighbours"]),
        ("probe (stain)", ["image", "mixed"]),
    ):
        rows = honest.verdicts[honest.verdicts["model"] == model].set_index("gene")
        kind = block.law.loc[rows.index, "kind"].to_numpy()
        called = (rows["verdict"] == "predictable").to_numpy()
        sensitivity = called[np.isin(kind, follows)].mean()
        false = (called & (kind == "none")).sum() / max(called.sum(), 1)
        with capsys.disabled():
            print(f"\n{model}: sensitivity {sensitivity:.3f}, false discoveries {false:.3f}")
        assert sensitivity > 0.7
        assert false <= FDR


def test_the_law_is_printed() -> None:
    truth = pd.DataFrame(
        {"kind": ["image"] * 3 + ["none"], "truth": [0.9, 0.8, 0.1, np.nan]}
    ).assign(predictable=[True, True, False, False])
    text = format_law(truth, "S3")
    assert "67 % of the genes that follow something" in text
    assert "0 % of those called so follow nothing" in text
