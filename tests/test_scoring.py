"""Scores put together from folds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepspace.core.config import Config
from deepspace.workflows.expression_scoring import HeldOut, score_table, summarise_expression
from deepspace.workflows.train import verdict_cards
from deepspace.workflows.verdicts import gene_verdicts
from make_sections import lattice, make_section


def held_out(folder: Path, seed: int, folds: int) -> HeldOut:
    """A section held out in pieces; two genes, one of them predicted well."""
    rng = np.random.default_rng(seed)
    coords = lattice(8)
    section = make_section(folder, "A", np.ones((64, 2)), coords)
    measured = rng.normal(3.0, 1.0, (64, 2))
    fold = np.arange(64) * folds // 64
    slot = HeldOut(section, ["G0", "G1"], measured, np.array([0.9, 0.9]), fold)
    slot.predicted["model"] = np.stack(
        [measured[:, 0] + rng.normal(0, 0.3, 64), rng.normal(size=64)], axis=1
    )
    means = np.array([measured[fold != k].mean(axis=0) for k in range(folds)])
    slot.predicted["gene mean"] = means[fold]
    slot.sd["model"] = np.tile(np.array([0.3, 0.1], np.float32), (64, 1))
    slot.sd["gene mean"] = np.full((64, 2), 1.0, np.float32)
    return slot


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@given(st.integers(0, 200), st.sampled_from([2, 4, 8]))
def test_the_gene_mean_says_nothing_however_it_is_pooled(
    folder: Path, seed: int, folds: int
) -> None:
    scores = score_table({"A": held_out(folder, seed, folds)}, "block")
    flat = scores[scores["model"] == "gene mean"]
    assert (flat["pearson"] == 0.0).all()
    assert (flat["spearman"] == 0.0).all()
    good = scores[(scores["model"] == "model") & (scores["gene"] == "G0")]
    assert good["pearson"].item() > 0.8


def test_coverage_is_the_share_inside_the_intervals(folder: Path) -> None:
    scores = score_table({"A": held_out(folder, 0, 4)}, "section").set_index(["model", "gene"])
    right, overconfident = (scores.loc[("model", g), "coverage_90"] for g in ("G0", "G1"))
    assert right == pytest.approx(0.9, abs=0.1)
    assert overconfident < 0.4


def test_genes_without_a_whole_prediction_are_left_out(folder: Path) -> None:
    slot = held_out(folder, 0, 4)
    slot.predicted["model"][5, 1] = np.nan
    scores = score_table({"A": slot}, "block")
    assert set(scores.loc[scores["model"] == "model", "gene"]) == {"G0"}


def test_summary_and_verdicts(folder: Path) -> None:
    scores = score_table({"A": held_out(folder, 1, 4)}, "spot")
    summary = summarise_expression(scores, Config(), "spot", 4)
    assert "leak" in summary["warning"]
    assert summary["models"]["gene mean"]["mean_pearson"] == 0
    assert "nearest spot" in summary["not_applicable"]
    verdicts = gene_verdicts(scores, {}, "model", None)
    good, bad, unknown = verdict_cards(verdicts, "model", ["G0", "G1", "G2"])
    assert good.predictable
    assert not bad.predictable
    assert not unknown.predictable
    assert unknown.score is None
