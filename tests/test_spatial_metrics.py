"""Scores of maps against scikit-image, scanpy, squidpy, scikit-learn; the two tables."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, roc_auc_score

from deepspace.core.metrics import PATTERN_METRICS, VALUE_METRICS
from deepspace.core.spatial_metrics import (
    cluster_agreement,
    expression_clusters,
    gene_correlation_error,
    moran_agreement,
    morans_i,
    neighbour_graph,
    row_normalised,
    smoothed,
    spot_pitch,
    ssim_map,
    ssim_values,
    svg_recovery,
)
from deepspace.workflows.cluster_scoring import POOLED
from deepspace.workflows.expression_scoring import HeldOut, score_table
from deepspace.workflows.metric_tables import GENE_COLUMNS, SECTION_COLUMNS, metric_tables
from make_sections import lattice, make_section

seeds = st.integers(0, 2**32 - 1)


def hexagons(n: int, pitch: float = 100.0) -> np.ndarray:
    """Hexagonal lattice of n x n points, as Visium's."""
    row, col = np.mgrid[:n, :n]
    return np.stack([(col + row % 2 / 2) * pitch, row * pitch * 3**0.5 / 2], -1).reshape(-1, 2)


LATTICES = {"square": lattice(9), "hexagonal": hexagons(9)}


def pattern(coords: np.ndarray, seed: int = 0, genes: int = 4) -> np.ndarray:
    """Waves of different lengths, and noise."""
    rng = np.random.default_rng(seed)
    span = np.ptp(coords, axis=0).max()
    waves = np.sin(coords @ rng.normal(0, 6 / span, (2, genes)) + rng.uniform(0, 6, genes))
    return 2 + waves + rng.normal(0, rng.uniform(0.1, 1, genes), waves.shape)


@pytest.mark.parametrize(("name", "most"), [("square", 8), ("hexagonal", 6)])
@pytest.mark.parametrize("jitter", [0.0, 0.04])
def test_neighbours_are_the_nearest_ring(name: str, most: int, jitter: float) -> None:
    coords = LATTICES[name]
    coords = coords + np.random.default_rng(0).normal(0, jitter / 3, coords.shape) * spot_pitch(
        coords
    )
    graph = neighbour_graph(coords)
    degree = np.asarray(graph.sum(axis=1)).ravel()
    assert degree.max() == most
    assert degree[40] == most  # in the middle
    assert abs(graph - graph.T).sum() == 0
    assert graph.diagonal().sum() == 0
    np.testing.assert_allclose(row_normalised(graph).sum(axis=1), 1.0)


def test_a_lonely_spot_has_no_neighbour_and_stays_as_it_is() -> None:
    coords = np.concatenate([lattice(4), [[900.0, 900.0]]])
    graph = neighbour_graph(coords)
    values = pattern(coords)
    assert graph[-1].nnz == 0
    np.testing.assert_allclose(smoothed(values, graph)[-1], values[-1])
    assert np.isfinite(morans_i(values, graph)).all()


@given(seeds)
def test_smoothing_by_hand_and_its_invariances(seed: int) -> None:
    coords = LATTICES["hexagonal"]
    values = pattern(coords, seed)
    graph = neighbour_graph(coords)
    found = smoothed(values, graph)
    away = np.linalg.norm(coords - coords[31], axis=1)
    np.testing.assert_allclose(found[31], values[away < 120].mean(axis=0))
    order = np.random.default_rng(seed).permutation(len(coords))
    again = smoothed(values[order] * 3 - 1, neighbour_graph(coords[order]))
    np.testing.assert_allclose(again, found[order] * 3 - 1)
    assert (found.min(axis=0) >= values.min(axis=0) - 1e-12).all()
    assert (found.max(axis=0) <= values.max(axis=0) + 1e-12).all()


@pytest.mark.parametrize("name", LATTICES)
def test_morans_i_by_hand(name: str) -> None:
    coords = LATTICES[name]
    values = pattern(coords)
    apart = np.linalg.norm(coords[:, None] - coords, axis=2)
    weights = ((apart > 0) & (apart < 1.5 * apart[apart > 0].min())).astype(float)
    weights /= weights.sum(axis=1, keepdims=True)
    z = values - values.mean(axis=0)
    expected = np.einsum("ij,ig,jg->g", weights, z, z) / (z**2).sum(axis=0)
    np.testing.assert_allclose(morans_i(values, neighbour_graph(coords)), expected)


@pytest.mark.slow  # an import of many seconds
@pytest.mark.parametrize("name", LATTICES)
def test_morans_i_is_that_of_scanpy(name: str) -> None:
    metrics = pytest.importorskip("scanpy.metrics")
    coords = LATTICES[name]
    values, graph = pattern(coords), neighbour_graph(coords)
    expected = metrics.morans_i(row_normalised(graph), values.T)
    np.testing.assert_allclose(morans_i(values, graph), expected, rtol=1e-6)


@pytest.mark.slow
def test_morans_i_is_that_of_squidpy() -> None:
    squidpy = pytest.importorskip("squidpy")
    coords = LATTICES["hexagonal"]
    values, graph = pattern(coords), neighbour_graph(coords)
    adata = AnnData(values, obsp={"spatial_connectivities": graph})
    squidpy.gr.spatial_autocorr(adata, mode="moran", n_perms=None, transformation=True)
    expected = adata.uns["moranI"].loc[adata.var_names, "I"].to_numpy()
    np.testing.assert_allclose(morans_i(values, graph), expected, rtol=1e-6)


@given(seeds, st.sampled_from([-2.0, 0.5, 4.0]), st.floats(-5, 5))
def test_morans_i_ignores_order_scale_and_shift(seed: int, scale: float, shift: float) -> None:
    coords = LATTICES["square"]
    values = pattern(coords, seed)
    found = morans_i(values, neighbour_graph(coords))
    rng = np.random.default_rng(seed)
    spots, genes = rng.permutation(len(coords)), rng.permutation(values.shape[1])
    turned = coords[spots][:, ::-1] * 2 + 7  # places in another unit and mirrored
    again = morans_i(values[spots][:, genes] * scale + shift, neighbour_graph(turned))
    np.testing.assert_allclose(again, found[genes], atol=1e-9)
    assert (np.abs(found) <= 1.1).all()


def test_morans_i_knows_patches_chequers_and_nothing() -> None:
    coords = lattice(10)
    graph = neighbour_graph(coords)
    halves = (coords[:, 0] > coords[:, 0].mean()).astype(float)
    shuffled = np.random.default_rng(0).permutation(halves)
    found = morans_i(np.stack([halves, shuffled, np.full(100, 0.3)], axis=1), graph)
    assert found[0] > 0.7
    assert abs(found[1]) < 0.15
    assert np.isnan(found[2])


@given(seeds)
def test_moran_agreement(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-0.2, 0.9, (2, 20))
    found = moran_agreement(a, b)
    assert found["moran_pearson"] == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert found["moran_error"] == pytest.approx(np.abs(a - b).mean())
    order = rng.permutation(20)
    again = moran_agreement(a[order], b[order])
    assert again == pytest.approx(found)
    assert moran_agreement(a, 0.5 * a + 0.1)["moran_pearson"] == pytest.approx(1.0)
    assert moran_agreement(a, a) == pytest.approx({"moran_pearson": 1.0, "moran_error": 0.0})
    # unmeasured patterns are left out, predicted constants have none
    a[0] = b[1] = np.nan
    expected = np.abs(a[1:] - np.where(np.arange(20) == 1, 0.0, b)[1:]).mean()
    assert moran_agreement(a, b)["moran_error"] == pytest.approx(expected)


@given(seeds)
def test_recovery_of_spatially_variable_genes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.uniform(-0.2, 0.9, (2, 40))
    found = svg_recovery(a, b, top=10)
    truth, called = set(np.argsort(-a)[:10]), set(np.argsort(-b)[:10])
    assert found["svg_overlap"] == pytest.approx(len(truth & called) / 10)
    assert found["svg_auroc"] == pytest.approx(roc_auc_score(np.isin(range(40), list(truth)), b))
    order = rng.permutation(40)
    assert svg_recovery(a[order], b[order] ** 3, top=10) == pytest.approx(found)
    assert svg_recovery(a, a, top=10) == {"svg_auroc": 1.0, "svg_overlap": 1.0}
    nothing = svg_recovery(a, np.full(40, np.nan), top=10)
    assert nothing == pytest.approx({"svg_auroc": 0.5, "svg_overlap": 0.25})


def test_recovery_needs_genes_that_vary_and_genes_that_do_not() -> None:
    for measured in (np.array([0.3]), np.full(6, 0.3), np.full(6, np.nan)):
        assert all(np.isnan(v) for v in svg_recovery(measured, measured).values())


def test_correlations_between_genes_are_those_of_numpy() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(60, 6)) @ rng.normal(size=(6, 6))
    p = y + rng.normal(size=(60, 6))
    error = (np.corrcoef(y.T) - np.corrcoef(p.T))[np.triu_indices(6, 1)]
    found = gene_correlation_error(y, p)
    assert found["gene_correlation_mae"] == pytest.approx(np.abs(error).mean())
    assert found["gene_correlation_rmse"] == pytest.approx((error**2).mean() ** 0.5)
    # the most variable ones, where there are too many
    best = np.argsort(-y.std(axis=0))[:3]
    assert gene_correlation_error(y, p, 3) == pytest.approx(
        gene_correlation_error(y[:, best], p[:, best])
    )


@given(seeds)
def test_correlations_between_genes_ignore_order_and_units(seed: int) -> None:
    rng = np.random.default_rng(seed)
    y, p = rng.normal(size=(2, 40, 5))
    found = gene_correlation_error(y, p)
    spots, genes = rng.permutation(40), rng.permutation(5)
    scale, shift = rng.uniform(0.5, 3, 5), rng.normal(size=5)
    again = gene_correlation_error(y[spots][:, genes] * 2, (p * scale + shift)[spots][:, genes])
    assert again == pytest.approx(found)
    assert 0 <= found["gene_correlation_mae"] <= found["gene_correlation_rmse"] <= 2
    assert max(gene_correlation_error(y, y).values()) < 1e-12
    # a constant measured gene has no pairs; predicted constant, it goes with nothing
    y[:, 0], p[:, 1] = 1.0, 1.0
    expected = np.corrcoef(y[:, 1:].T)[0, 1:]
    assert gene_correlation_error(y[:, [0, 1, 2]], p[:, [0, 1, 2]])[
        "gene_correlation_mae"
    ] == pytest.approx(abs(expected[0]))


@pytest.mark.parametrize("shape", [(15, 18), (7, 30)])
def test_ssim_of_a_map_is_that_of_scikit_image_inside(shape: tuple[int, int]) -> None:
    height, width = shape
    coords = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).reshape(-1, 2) * 50.0
    y, p = pattern(coords, 1), pattern(coords, 2)
    found = ssim_values(y, p, coords)
    for j in range(y.shape[1]):
        one, other = y[:, j].reshape(shape), p[:, j].reshape(shape)
        _, full = structural_similarity(one, other, win_size=7, data_range=np.ptp(one), full=True)
        inside = np.s_[3 : height - 3, 3 : width - 3]
        np.testing.assert_allclose(found[:, j].reshape(shape)[inside], full[inside], atol=1e-9)
    np.testing.assert_allclose(ssim_map(y, p, coords), found.mean(axis=0))


@given(seeds, st.floats(0.2, 5), st.floats(-100, 100))
@settings(max_examples=30)
def test_ssim_of_a_map_and_its_invariances(seed: int, unit: float, away: float) -> None:
    coords = LATTICES["hexagonal"]
    y, p = pattern(coords, seed), pattern(coords, seed + 1)
    found = ssim_map(y, p, coords)
    rng = np.random.default_rng(seed)
    spots, genes = rng.permutation(len(coords)), rng.permutation(y.shape[1])
    again = ssim_map(y[spots][:, genes] * 4, p[spots][:, genes] * 4, coords[spots])
    np.testing.assert_allclose(again, found[genes], atol=1e-9)
    np.testing.assert_allclose(ssim_map(y, p, coords * 2.0 + 8.0), found, atol=1e-9)
    assert (np.abs(found) <= 1 + 1e-9).all()
    np.testing.assert_allclose(ssim_map(y, y, coords), 1.0)
    np.testing.assert_allclose(ssim_map(y * unit + away, y * unit + away, coords), 1.0)


def test_ssim_of_a_map_counts_every_spot_once_and_nothing_outside() -> None:
    coords = LATTICES["hexagonal"]
    coords = coords[np.linalg.norm(coords - coords[40], axis=1) > 230]  # a hole
    y, p = pattern(coords, 1), pattern(coords, 2)
    near = (np.abs(coords - coords[20]) < 325).all(axis=1)
    one, other, extent = y[near, 0], p[near, 0], np.ptp(y[:, 0])
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    cov = np.cov(one, other)
    expected = (2 * one.mean() * other.mean() + c1) * (2 * cov[0, 1] + c2)
    expected /= (one.mean() ** 2 + other.mean() ** 2 + c1) * (cov[0, 0] + cov[1, 1] + c2)
    assert ssim_values(y, p, coords)[20, 0] == pytest.approx(expected)


def test_ssim_of_a_map_depends_on_places_and_that_of_all_spots_does_not() -> None:
    coords = lattice(12)
    y = 1 + np.sin(coords / 40.0)
    p = np.maximum(y + np.random.default_rng(1).normal(0, 0.3, y.shape), 0.0)
    order = np.random.default_rng(0).permutation(len(coords))
    both = VALUE_METRICS["ssim_global"]
    np.testing.assert_allclose(both(y[order], p[order]), both(y, p))
    # the same pairs of values at other places: no smooth map is left that noise could spoil
    assert (ssim_map(y[order], p[order], coords) > ssim_map(y, p, coords) + 0.02).all()


def planted(seed: int, spots: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Three well separated clusters in 12 genes."""
    rng = np.random.default_rng(seed)
    truth = np.arange(spots) % 3
    return truth, rng.normal(0, 8, (3, 12))[truth] + rng.normal(size=(spots, 12))


@given(seeds)
@settings(max_examples=15)
def test_clusters_are_found_whatever_the_order(seed: int) -> None:
    truth, values = planted(seed)
    found = expression_clusters(values, 3)
    assert adjusted_rand_score(truth, found) > 0.95
    rng = np.random.default_rng(seed)
    spots, genes = rng.permutation(len(values)), rng.permutation(12)
    again = expression_clusters(values[spots][:, genes] * 2 + 5, 3)
    assert adjusted_rand_score(found[spots], again) == pytest.approx(1.0)


def test_agreement_of_clusters_is_that_of_scikit_learn() -> None:
    a, b = np.random.default_rng(0).integers(0, 4, (2, 50))
    found = cluster_agreement(a, b)
    assert found["cluster_ari"] == pytest.approx(adjusted_rand_score(a, b))
    assert found["cluster_nmi"] == pytest.approx(normalized_mutual_info_score(a, b))
    assert cluster_agreement(a, (a + 1) % 4) == pytest.approx({"cluster_ari": 1, "cluster_nmi": 1})


def test_clusters_of_few_distinct_spots() -> None:
    assert not expression_clusters(np.full((9, 3), 0.2), 4).any()
    two = expression_clusters(np.repeat([[0.0, 1.0], [3.0, 0.0]], 5, axis=0), 4)
    assert len(np.unique(two)) == 2


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, HeldOut]:
    """Two sections; a good model, and one that knows the mean of each section alone."""
    folder = tmp_path_factory.mktemp("slides")
    found = {}
    for k, name in enumerate("AB"):
        coords = lattice(8)
        measured = np.abs(pattern(coords, k, genes=12)) + 3 * k
        section = make_section(folder, name, np.ones((64, 12)), coords)
        # B lacks the last gene of A and has one of its own
        genes = [f"G{j + (k if j == 11 else 0)}" for j in range(12)]
        slot = HeldOut(section, genes, measured, np.ones(12), np.full(64, k + 1))
        noise = np.random.default_rng(k).normal(0, 0.3, measured.shape)
        slot.predicted["good"] = measured + noise
        slot.predicted["mean"] = np.tile(measured.mean(axis=0), (64, 1))
        slot.sd = {name: np.ones((64, 12), np.float32) for name in ("good", "mean")}
        found[name] = slot
    found["A"].predicted["good"][3, 2] = np.nan  # not chosen in every fold
    return found


def test_tables_have_a_row_for_everything(tables: dict[str, HeldOut]) -> None:
    genes, sections = metric_tables(tables, clusters=3)
    assert list(genes) == ["model", "section", "values", "gene", "spots", *GENE_COLUMNS]
    assert list(sections) == ["model", "section", "values", "spots", "genes", *SECTION_COLUMNS]
    size = genes.groupby(["model", "section", "values"]).size()
    assert size["good", "A", "raw"] == 11
    assert size["good", "B", "smoothed"] == 12
    assert size["good", POOLED, "raw"] == 10  # without G2, G11 and G12
    assert size["mean", POOLED, "smoothed"] == 11
    assert len(sections) == 2 * 3 * 2
    assert not genes.duplicated(["model", "section", "values", "gene"]).any()
    assert genes["ssim_map"].isna().equals(genes["section"] == POOLED)
    assert set(sections.set_index("section")["spots"].items()) == {
        ("A", 64),
        ("B", 64),
        (POOLED, 128),
    }


def test_tables_say_what_the_functions_say(tables: dict[str, HeldOut]) -> None:
    genes, sections = metric_tables(tables, ["good"], clusters=3)
    assert set(genes["model"]) == {"good"}
    slot = tables["B"]
    graph = neighbour_graph(slot.section.coords)
    y, p = smoothed(slot.measured, graph), smoothed(slot.predicted["good"], graph)
    here = genes[(genes["section"] == "B") & (genes["values"] == "smoothed")]
    for name, score in (PATTERN_METRICS | VALUE_METRICS).items():
        np.testing.assert_allclose(here[name], score(y, p), atol=1e-9, err_msg=name)
    np.testing.assert_allclose(here["moran_predicted"], morans_i(p, graph))
    raw = genes[genes["values"] == "raw"].drop(columns=["values", "spots"])
    scores = score_table(tables, "section")
    same = raw.merge(scores, on=["model", "section", "gene"], suffixes=("", "_scored"))
    assert len(same) == 23
    for name in ("pearson", "spearman", "rmse", "r2"):
        np.testing.assert_allclose(same[name], same[f"{name}_scored"])
    one = sections[(sections["section"] == "B") & (sections["values"] == "smoothed")].iloc[0]
    expected = moran_agreement(
        here["moran_measured"].to_numpy(), here["moran_predicted"].to_numpy()
    )
    assert one["moran_error"] == pytest.approx(expected["moran_error"])


def test_a_mean_of_each_section_says_nothing_of_all_together(tables: dict[str, HeldOut]) -> None:
    genes, sections = metric_tables(tables, clusters=3)
    flat = genes[(genes["model"] == "mean") & (genes["section"] == POOLED)]
    assert (flat[["pearson", "spearman", "mutual_information"]].abs() < 1e-12).all(axis=None)
    assert (flat[["auc_above_q50", "auc_above_q90"]] == 0.5).all(axis=None)
    ari = sections.groupby("model")["cluster_ari"].mean()
    assert ari["mean"] == pytest.approx(0.0)
    good = genes[genes["model"] == "good"].groupby("values")["pearson"].mean()
    assert good["smoothed"] > good["raw"] > 0.7


def test_means_of_blocks_say_nothing_even_where_they_are_smoothed(
    tables: dict[str, HeldOut],
) -> None:
    slot = tables["B"]
    fold = np.arange(64) // 16
    means = np.array([slot.measured[fold != k].mean(axis=0) for k in range(4)])
    blocks = HeldOut(slot.section, slot.genes, slot.measured, slot.ceiling, fold)
    blocks.predicted["mean"] = means[fold]
    genes, _ = metric_tables({"B": blocks})
    assert (genes[["pearson", "spearman", "mutual_information"]] == 0.0).all(axis=None)


def test_each_model_is_compared_with_its_own_sections(tables: dict[str, HeldOut]) -> None:
    """Two models of one section each, which have the same number of spots and the same genes."""
    alone = {}
    for name, slot in tables.items():
        values = {f"only {name}": slot.predicted["good"], "good": slot.predicted["good"]}
        alone[name] = replace(slot, predicted=values)
    genes, sections = metric_tables(alone)
    for table in (genes, sections):
        for name in alone:
            mine = table[table["model"] == f"only {name}"]
            own, pooled = (mine[mine["section"] == s] for s in (name, POOLED))
            known = own.columns.drop(["section", "ssim_map"], errors="ignore")
            pd.testing.assert_frame_equal(
                own[known].reset_index(drop=True), pooled[known].reset_index(drop=True)
            )


def test_of_one_section_all_together_are_the_same(tables: dict[str, HeldOut]) -> None:
    genes, sections = metric_tables({"B": tables["B"]}, clusters=3)
    both, _ = metric_tables(tables, clusters=3)
    pd.testing.assert_frame_equal(
        genes[genes["section"] == "B"].reset_index(drop=True),
        both[both["section"] == "B"].reset_index(drop=True),
    )
    pooled, own = (genes[genes["section"] == name].reset_index() for name in (POOLED, "B"))
    assert pooled["ssim_map"].isna().all()
    assert own["ssim_map"].notna().all()
    same = own.columns.drop(["index", "section", "ssim_map"])
    pd.testing.assert_frame_equal(pooled[same], own[same])
    assert len(sections) == 2 * sections["model"].nunique() * 2


def test_tables_do_not_depend_on_the_order_of_genes(tables: dict[str, HeldOut]) -> None:
    turned = {}
    for name, slot in tables.items():
        other = HeldOut(
            slot.section, slot.genes[::-1], slot.measured[:, ::-1], slot.ceiling, slot.fold
        )
        other.predicted = {k: v[:, ::-1] for k, v in slot.predicted.items()}
        turned[name] = other
    for found, again in zip(metric_tables(tables), metric_tables(turned), strict=True):
        keys = [k for k in ("model", "section", "values", "gene") if k in found]
        pd.testing.assert_frame_equal(
            found.sort_values(keys, ignore_index=True), again.sort_values(keys, ignore_index=True)
        )


def test_nothing_to_compare_gives_empty_tables(tables: dict[str, HeldOut]) -> None:
    genes, sections = metric_tables(tables, ["unknown"])
    assert genes.empty
    assert sections.empty
    assert set(GENE_COLUMNS) < set(genes)
