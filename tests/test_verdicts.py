"""Verdicts of genes, comparisons with baselines, and what an evaluation says in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from deepspace.models.registry import ORACLE
from deepspace.workflows.chance import moved_rows, own_chance, p_values, summarise_chance
from deepspace.workflows.cluster_scoring import HeldOutClusters
from deepspace.workflows.comparing import compare_models
from deepspace.workflows.expression_scoring import HeldOut, better_expression
from deepspace.workflows.verdicts import cluster_verdicts, gene_verdicts, in_plain_words
from make_sections import lattice, make_section


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slides")


@given(st.integers(0, 30), st.sampled_from([3, 10, 20]))
def test_p_values_of_nothing_are_uniform(seed: int, moves: int) -> None:
    rng = np.random.default_rng(seed)
    # genes differ in how far chance can take them
    spread = rng.uniform(0.03, 0.2, 400)[:, None]
    p = p_values((rng.normal(size=(400, 1)) * spread)[:, 0], rng.normal(size=(400, moves)) * spread)
    assert kstest(p, "uniform").statistic < 0.12
    assert (p < 0.01).mean() < 0.035


def test_p_values_see_what_exceeds_chance_and_know_no_score() -> None:
    null = np.random.default_rng(0).normal(0, 0.05, (50, 10))
    score = np.r_[np.full(10, 0.4), np.zeros(39), np.nan]
    p = p_values(score, null)
    assert (p[:10] < 1e-4).all()
    assert (p[10:49] > 0.1).all()
    assert p[49] == 1.0
    assert (p_values(score, np.full_like(null, np.nan)) == 1.0).all()


@given(st.permutations(range(12)))
def test_p_values_do_not_depend_on_the_order_of_genes(order: list[int]) -> None:
    rng = np.random.default_rng(5)
    score, null = rng.normal(0.1, 0.1, 12), rng.normal(0, 0.1, (12, 6))
    np.testing.assert_allclose(p_values(score[order], null[order]), p_values(score, null)[order])


def tidy(values: dict[str, list[float]]) -> pd.DataFrame:
    rows = [
        {"model": "m", "section": f"S{k}", "gene": gene, "spots": 100, "pearson": r, "ceiling": 0.9}
        for gene, scores in values.items()
        for k, r in enumerate(scores)
    ]
    return pd.DataFrame(rows).dropna()


def test_verdicts_ask_for_size_and_for_every_section() -> None:
    scores = tidy(
        {
            "good": [0.5, 0.6, 0.55],
            "small": [0.12, 0.14, 0.13],
            "partly": [0.6, 0.6, np.nan],
            "chance": [0.02, -0.03, 0.0],
            "wrong": [-0.5, -0.6, -0.5],
        }
    )
    null = pd.DataFrame(np.random.default_rng(1).normal(0, 0.02, (5, 10)), scores["gene"].unique())
    found = gene_verdicts(scores, {}, "m", [null]).set_index("gene")
    assert found["verdict"].to_dict() == {
        "good": "predictable", "small": "weak", "partly": "weak", "chance": "no", "wrong": "no",
    }  # fmt: skip
    # mean 0.55, standard error 0.0289, t(2) at 97.5 % = 4.303
    assert found.loc["good", "low"] == pytest.approx(0.55 - 4.303 * 0.05 / 3**0.5, abs=1e-4)
    assert found.loc["good", "high"] == pytest.approx(0.55 + 4.303 * 0.05 / 3**0.5, abs=1e-4)
    assert (found["q_value"] >= found["p_value"]).all()


def test_one_section_has_no_interval_and_no_moves_still_give_p() -> None:
    found = gene_verdicts(tidy({"a": [0.8], "b": [0.0]}), {}, "m", []).set_index("gene")
    assert found[["low", "high"]].isna().all(axis=None)
    assert found.loc["a", "p_value"] < 1e-6
    assert found.loc["b", "p_value"] > 0.4


def slot_of(folder: Path, noise: dict[str, float]) -> HeldOut:
    rng = np.random.default_rng(3)
    section = make_section(folder, "A", np.ones((144, 2)), lattice(12))
    truth = rng.normal(size=(144, 5))
    slot = HeldOut(section, list("abcde"), truth, np.full(5, 0.9), np.ones(144, np.int64))
    slot.predicted = {k: truth + rng.normal(0, sd, truth.shape) for k, sd in noise.items()}
    return slot


def test_the_better_model_beats_and_an_equal_one_does_not(folder: Path) -> None:
    slot = slot_of(folder, {"m": 0.5, "worse": 3.0, "equal": 0.5, "absent": 1.0})
    slot.predicted["absent"][:] = np.nan
    rows = compare_models(
        {"A": slot}, better_expression, ["m"], ["worse", "equal", "absent", "never run"]
    )
    assert [row["against"] for row in rows] == ["worse", "equal"]
    worse, equal = rows
    assert worse["beats"]
    assert worse["low"] > 0
    assert (worse["over"], worse["number"]) == ("regions", 4)
    assert not equal["beats"]
    assert equal["low"] < equal["difference"] < equal["high"]


def test_the_difference_is_that_of_the_mean_correlations(folder: Path) -> None:
    slot = slot_of(folder, {"m": 0.5, "worse": 2.0})
    difference = better_expression(slot, "m", "worse")
    means = [
        np.mean([np.corrcoef(slot.measured[:, g], slot.predicted[k][:, g])[0, 1] for g in range(5)])
        for k in ("m", "worse")
    ]
    assert difference is not None
    assert difference.mean() == pytest.approx(means[0] - means[1])


def summary(**changes: Any) -> dict[str, Any]:
    row = {"model": "m", "against": "gene mean", "difference": 0.3, "beats": True}
    return {
        "target": "expression",
        "split": "section",
        "models": {"m": {"mean_pearson": 0.3, "coverage_90": 0.897}},
        "comparisons": [row, {**row, "against": "nearest spot"}],
        "verdicts": {"predictable": 3, "weak": 1, "no": 2},
    } | changes


def test_the_first_line_names_what_is_not_beaten() -> None:
    first, genes, split, intervals = in_plain_words(summary(), "m")
    assert first == "m is better than every baseline (mean held-out correlation 0.300)."
    assert genes.startswith("3 of 6 genes are predictable")
    assert "not of a new patient" in split
    assert intervals.startswith("90 %")
    lost = [{"model": "m", "against": a, "beats": False} for a in ("nearest spot", ORACLE)]
    first = in_plain_words(summary(comparisons=lost, split="spot"), "m")[0]
    assert first.startswith(
        "m is NOT shown to be better than: nearest spot, tissue-domain oracle ("
    )
    assert "TOO GOOD" in in_plain_words(summary(split="spot"), "m")[2]


def test_moves_are_summed_up() -> None:
    null = pd.DataFrame({"move 1": [0.1, -0.1], "move 2": [0.3, 0.1]})
    found = summarise_chance(null)
    assert found == {"number": 2, "mean_pearson": 0.1, "sd_of_means": 0.1414}


def test_clusters_that_were_never_predicted_are_not_believed(folder: Path) -> None:
    section = make_section(folder, "A", np.ones((40, 2)), lattice(8)[:40])
    truth = np.array(["x", "y"] * 20, dtype=object)
    slot = HeldOutClusters(section, ["x", "y"], truth, np.ones(40, np.int64))
    slot.predicted["m"] = np.full((40, 2), np.nan)
    found = cluster_verdicts(pd.DataFrame(), {"A": slot}, "m", [])
    assert list(found["verdict"]) == ["no", "no"]
    slot.predicted["m"] = np.stack([truth == "x", truth == "y"], axis=1).astype(float)
    found = cluster_verdicts(pd.DataFrame(), {"A": slot}, "m", [])
    assert list(found["verdict"]) == ["predictable", "predictable"]
    assert (found["score"] == 1.0).all()


def test_moved_measurements_keep_their_neighbours() -> None:
    coords = lattice(12)
    for seed in range(10):
        rows = moved_rows(coords, np.random.default_rng(seed))
        assert (rows != np.arange(144)).mean() > 0.9
        beside = np.linalg.norm(coords[rows[1:]] - coords[rows[:-1]], axis=1)
        # 20 um apart before; only at the seams of the box are they torn apart
        assert np.median(beside) < 45
        assert len(np.unique(rows)) > 60


def test_smoothness_widens_what_chance_can_do(folder: Path) -> None:
    rng = np.random.default_rng(0)
    x, y = (lattice(12) / 240).T
    smooth = np.stack([np.sin(6 * x + a) + np.cos(6 * y + b) for a, b in rng.uniform(0, 6, (5, 2))])
    rough = rng.normal(size=(144, 5))
    spread = {}
    for name, values in (("smooth", smooth.T), ("rough", rough)):
        section = make_section(folder, name, np.ones((144, 2)), lattice(12))
        slot = HeldOut(section, list("abcde"), values, np.full(5, 0.9), np.ones(144, np.int64))
        slot.predicted["m"] = smooth.T[:, ::-1]
        spread[name] = own_chance({name: slot}, "m", 0).to_numpy().std()
    assert spread["rough"] < 0.15
    assert spread["smooth"] > 0.25
