"""Quality control, gene choice and transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st

from deepspace.core.config import QCConfig, TargetConfig
from deepspace.core.errors import InputError
from deepspace.data.ceiling import reliability
from deepspace.data.targets import ExpressionTarget, apply_qc, fit_target, qc_mask
from deepspace.data.transforms import Null, log1p_cp10k, pearson_residuals
from deepspace.io.section import Section
from make_sections import lattice, make_section

GENES = ["MT-CO1", "RPL10A", "RPSA", "mt-Nd1", "QUIET", "LOUD", "PATCHY", "RPS6KA1"]


@pytest.fixture
def sections(tmp_path: Path) -> list[Section]:
    """LOUD is everywhere, PATCHY in half of the spots, QUIET hardly anywhere."""
    rng = np.random.default_rng(0)
    coords = lattice(6)
    half = (coords[:, 0] > 70).astype(float)
    rates = np.full((36, 8), 30.0)
    rates[:, 4], rates[:, 5], rates[:, 6], rates[:, 7] = 0.3, 60.0, 40 * half + 1, 20.0
    return [
        make_section(tmp_path, name, rng.poisson(rates), coords, genes=GENES) for name in ("A", "B")
    ]


def test_log1p_by_hand() -> None:
    found = log1p_cp10k(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([100.0, 0.0]))
    np.testing.assert_allclose(found, [[np.log(101), 0.0], [0.0, 0.0]])


def test_pearson_residuals_by_hand() -> None:
    null = Null(np.array([0.02]), depth=100.0, spots=16)
    found = pearson_residuals(np.array([[5.0], [90.0]]), np.array([100.0, 100.0]), null)
    np.testing.assert_allclose(found[:, 0], [(5 - 2) / np.sqrt(2 + 4 / 100), 4.0])  # one clipped


@given(st.integers(0, 10_000), st.floats(500, 50_000))
def test_residuals_decode_to_the_expression_they_came_from(seed: int, depth: float) -> None:
    """At the median training depth a residual says the same as the count."""
    rng = np.random.default_rng(seed)
    null = Null(rng.uniform(1e-4, 1e-2, 5), depth=depth, spots=10**6)
    target = ExpressionTarget(tuple("ABCDE"), "pearson_residuals", null)
    counts = rng.poisson(depth * null.fractions, (50, 5)).astype(float)
    adata = AnnData(sp.csr_matrix(np.hstack([counts, depth - counts.sum(axis=1, keepdims=True)])))
    adata.var_names = [*"ABCDE", "REST"]
    decoded = target.decode(target.encode(adata))
    np.testing.assert_allclose(decoded, np.log1p(counts * 1e4 / depth), atol=1e-6)
    one = np.ones((1, 5))
    assert (target.decode_sd(-1e3 * one, one) > 0).all()  # flat at zero counts is no certainty


def test_qc_thresholds(sections: list[Section]) -> None:
    counts = sections[0].require_counts().copy()
    rows = np.repeat(np.arange(36), np.diff(counts.X.indptr))
    counts.X.data[rows == 3] = 0  # zeros that are stored, as some files have them
    counts.X.data[(rows == 4) & (counts.X.indices > 0)] = 0
    assert list(np.flatnonzero(~qc_mask(counts, QCConfig(min_counts=1, min_genes=2)))) == [3, 4]


def test_qc_that_drops_nearly_all_is_refused(sections: list[Section]) -> None:
    with pytest.raises(InputError, match=r"section A: only 0 of 36 spots.*lower"):
        apply_qc(sections, QCConfig(min_counts=10**6, min_genes=1))


def test_rules_leave_out_mitochondrial_and_ribosomal(sections: list[Section]) -> None:
    by_mean = fit_target(sections, TargetConfig(genes="expressed:10")).names
    assert set(by_mean) == {"LOUD", "PATCHY", "RPS6KA1", "QUIET"}
    assert by_mean[0] == "LOUD"
    assert by_mean[-1] == "QUIET"
    assert fit_target(sections, TargetConfig(genes="variable:1")).names == ("PATCHY",)
    assert "RPSA" in fit_target(sections, TargetConfig(genes="expressed:9", exclude=())).names


def test_named_genes(sections: list[Section], tmp_path: Path) -> None:
    (tmp_path / "g.txt").write_text("# mine\nLOUD\n\nMT-CO1\nLOUD\n")
    named = TargetConfig(genes=str(tmp_path / "g.txt"))
    assert fit_target(sections, named).names == ("LOUD", "MT-CO1")
    assert fit_target(sections, TargetConfig(genes="QUIET, LOUD")).names == ("QUIET", "LOUD")
    with pytest.raises(InputError, match=r"2 of 3 genes.*LOUT \(did you mean LOUD\?\).*XYZZY"):
        fit_target(sections, TargetConfig(genes="QUIET,LOUT,XYZZY"))
    for wrong in ("expressed:0", "variable:many"):
        with pytest.raises(ValueError, match="whole number"):
            TargetConfig(genes=wrong)


def test_only_genes_of_every_section(sections: list[Section]) -> None:
    counts = sections[1].require_counts()
    sections[1].counts = counts[:, counts.var_names != "LOUD"].copy()
    assert "LOUD" not in fit_target(sections, TargetConfig(genes="expressed:10")).names


def test_ceiling_is_what_the_truth_itself_scores() -> None:
    """The true rate's correlation with the counts is what thinning predicts from counts alone."""
    rng = np.random.default_rng(1)
    n = 4000
    signal = rng.normal(0, [0.0, 0.2, 0.5, 1.0], (n, 4))
    rate = np.exp(signal + np.log([5.0, 5.0, 5.0, 2.0]))
    rest = np.full((n, 1), 2000.0)
    counts = rng.poisson(np.hstack([rate, rest]))
    adata = AnnData(sp.csr_matrix(counts.astype(float)))
    adata.var_names = [*"ABCD", "REST"]
    target = ExpressionTarget(tuple("ABCD"), "log1p_cp10k", Null(np.full(4, 1e-3), 2000.0, n))
    found = reliability(adata, target)
    truth = log1p_cp10k(rate, rest[:, 0])
    reached = [np.corrcoef(truth[:, j], target.encode(adata)[:, j])[0, 1] for j in range(1, 4)]
    np.testing.assert_allclose(found.ceiling[1:], reached, atol=0.04)
    assert found.ceiling[0] < 0.15


def test_log1p_keeps_its_sd(sections: list[Section]) -> None:
    target = fit_target(sections, TargetConfig(genes="LOUD,PATCHY"))
    sd = np.array([[0.3, 0.7]])
    np.testing.assert_allclose(target.decode_sd(np.array([[2.0, 5.0]]), sd), sd)


def test_a_named_gene_without_counts_stays_finite(sections: list[Section]) -> None:
    for section in sections:
        counts = section.require_counts()
        counts.X.data[counts.X.indices == GENES.index("QUIET")] = 0
    config = TargetConfig(genes="QUIET,LOUD", transform="pearson_residuals")
    target = fit_target(sections, config)
    assert np.isfinite(target.encode(sections[0].require_counts())).all()
    assert "QUIET" not in fit_target(sections, TargetConfig(genes="expressed:9")).names


def test_context_genes_are_learnt_along_and_not_named(tmp_path: Path) -> None:
    counts = np.random.default_rng(0).poisson(np.arange(3.0, 9.0), (36, 6))
    sections = [make_section(tmp_path, "A", counts, lattice(6), genes=list("abcdef"))]
    target = fit_target(sections, TargetConfig(genes="b,a", context=4))
    assert target.names == ("b", "a")
    assert target.wide.names == ("b", "a", "f", "e")
    assert target.wide.encode(sections[0].require_counts())[:, :2] == pytest.approx(
        target.encode(sections[0].require_counts())
    )
    alone = fit_target(sections, TargetConfig(genes="b,a", context=0))
    assert alone.wide.names == ("b", "a")
    assert target.subset(["a"]).wide.names == ("a",)


@pytest.mark.parametrize(
    ("transform", "share", "ratio"),
    [("log1p_cp10k", 0.05, 8.0), ("pearson_residuals", 0.001, 1.0)],
)
def test_thinness_is_how_the_noise_of_counting_grows(
    transform: str, share: float, ratio: float
) -> None:
    rng = np.random.default_rng(8)
    shares = np.array([share, 2 * share, 1 - 3 * share])
    depths = np.repeat([1000, 8000], 4000)
    counts = AnnData(rng.multinomial(depths, shares).astype(np.float32))
    counts.var_names = list("ABC")
    null = Null(shares[:2], float(np.median(depths)), 8000, 1.0 / np.mean(1.0 / depths))
    expression = ExpressionTarget(("A", "B"), transform, null)
    shallow, deep = (expression.encode(counts)[depths == d].var(axis=0) for d in (1000, 8000))
    np.testing.assert_allclose(shallow / deep, ratio, rtol=0.12)
    thinness = expression.thinness(counts)
    assert thinness.mean() == pytest.approx(1.0)
    assert thinness[0] / thinness[-1] == pytest.approx(ratio)
