"""Annotation: gene sets, module scores, markers, enrichment, drawn regions, the whole command."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from calls import call
from deepspace.core.errors import InputError
from deepspace.data.genesets import GeneSet, gene_sets, match_sets, read_gmt, write_gmt
from deepspace.data.markers import (
    UNNAMED,
    MarkerRule,
    compare_groups,
    enrichment_table,
    group_names,
    marker_table,
    markers_of,
)
from deepspace.data.modules import expected_sd, module_scores
from deepspace.io.geojson import read_regions
from deepspace.output.write import prediction_anndata, read_provenance, write_prediction
from deepspace.workflows.annotate import AnnotateSettings, annotate
from make_sections import lattice, make_section

NAMES = st.text("ABCXYZ019-. ", min_size=1, max_size=12).map(str.strip).filter(bool)
GENES = st.lists(st.text("ABCDEGHK0123", min_size=1, max_size=6), min_size=1, unique=True)
ROWS, SIDE, PITCH = 10, 20.0, 30.0
PLANTED = {"left": "epithelium", "right": "T cells"}


# ---- gene sets


@given(st.lists(st.tuples(NAMES, NAMES, GENES), min_size=1, unique_by=lambda row: row[0]))
def test_sets_come_back_from_a_gmt_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, list[str]]]
) -> None:
    path = tmp_path_factory.mktemp("gmt") / "a.gmt"
    sets = [GeneSet(name, about, tuple(genes), "a.gmt") for name, about, genes in rows]
    write_gmt(sets, path)
    assert read_gmt(path) == sets


def test_all_faults_of_a_gmt_file_are_told_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "bad.gmt"
    lines = ["# head", "ok\tabout\tA\tB\t\t", "", "no tabs at all", "empty\tabout", "\tx\tA"]
    path.write_text("\n".join([*lines, "ok\tagain\tC", "weights\tx\tA,1.0\tB", "gap\tx\tA\t\tB"]))
    with pytest.raises(InputError) as caught:
        read_gmt(path)
    message = str(caught.value)
    assert "6 problems" in message
    for text in (
        "line 4: has no tabs",
        "line 5: set 'empty' has no genes",
        "line 6: has no name",
        "line 7: set 'ok' is also in line 2",
        "line 8: set 'weights': 'A,1.0' is no gene",
        "line 9: set 'gap': '' is no gene",
    ):
        assert text in message
    path.write_text("# nothing\n")
    with pytest.raises(InputError, match="holds no gene set"):
        read_gmt(path)
    with pytest.raises(InputError, match="no such file"):
        read_gmt(tmp_path / "none.gmt")


def test_a_set_of_the_user_takes_the_place_of_ours_and_two_of_them_are_refused(
    tmp_path: Path,
) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.gmt").write_text("adipose\tmine\tA\tB\tB\n")
    a, b = tmp_path / "a.gmt", tmp_path / "b.gmt"
    ours = gene_sets([], builtin=True)
    mixed = gene_sets([a], builtin=True)
    assert len(mixed) == len(ours)
    assert [s.genes for s in mixed if s.name == "adipose"] == [("A", "B")]
    assert [s.source for s in gene_sets([a], builtin=False)] == ["a.gmt"]
    with pytest.raises(InputError, match=r"'adipose' is in a\.gmt and"):
        gene_sets([a, b], builtin=True)
    with pytest.raises(InputError, match="no gene sets"):
        gene_sets([], builtin=False)


def test_our_sets_are_clean_and_say_where_they_come_from() -> None:
    sets = gene_sets([], builtin=True)
    assert len({s.name for s in sets}) == len(sets) >= 12
    for one in sets:
        assert len(one.genes) >= 10
        assert one.genes == tuple(gene.upper() for gene in one.genes)
        # author, year, journal volume:page
        assert pd.Series([one.description]).str.contains(r"[12][90]\d\d, [\w ]+ \d+:\d+").all()


def test_genes_match_as_written_first_and_then_in_capitals() -> None:
    sets = [GeneSet("a", "", ("ERBB2", "Esr1", "KRT8", "PGR"), "x")]
    assert match_sets(sets, ["Erbb2", "Esr1", "ESR1", "Krt8", "KRt8", "X"])[0].columns == (0, 1)
    with pytest.raises(InputError, match="of the same species"):
        match_sets(sets, ["A", "B"])
    with pytest.raises(InputError, match="Ensembl identifiers"):
        match_sets(sets, ["ENSG00000141736", "ENSG00000141737"])


# ---- module scores


def test_a_module_score_is_the_mean_in_sd_units_and_its_sd_the_mean_of_the_sds() -> None:
    values = np.array([[0.0, 4.0, 9.0], [2.0, 0.0, 9.0], [4.0, 2.0, 0.0], [50.0, 50.0, 5.0]])
    sd = np.array([[1.0, 2.0, 9.0]] * 3 + [[3.0, 4.0, 9.0]])
    reference = np.array([True, True, True, False])
    found = module_scores(values, sd, [[0, 1]], reference)
    units = np.sqrt([8 / 3 + 1, 8 / 3 + 4])
    assert found.score[:3, 0] == pytest.approx(
        [(-2 / units[0] + 2 / units[1]) / 2, -1 / units[1], 1 / units[0]]
    )
    assert found.sd[0, 0] == pytest.approx((1 / units[0] + 2 / units[1]) / 2)
    assert found.sd_independent[3, 0] == pytest.approx(math.hypot(3 / units[0], 4 / units[1]) / 2)
    assert found.mean[:, 0] == pytest.approx([2.0, 1.0, 3.0, 50.0])
    shown = found.score[:3, 0].var()
    expected = shown / (shown + np.mean(found.sd[:3, 0] ** 2))
    assert found.support(reference)[0] == pytest.approx(expected)


@given(st.integers(0, 10_000))
def test_the_sd_of_a_score_bounds_that_of_errors_of_any_correlation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    genes = int(rng.integers(2, 8))
    values, sd = rng.normal(size=(12, genes)), rng.uniform(0.1, 2, (12, genes))
    found = module_scores(values, sd, [range(genes)], np.ones(12, bool))
    mixing = rng.normal(size=(genes, genes))
    correlation = np.corrcoef(mixing @ mixing.T)
    scaled = sd[0] / expected_sd(values, sd)
    true = np.sqrt(scaled @ correlation @ scaled) / genes
    assert true <= found.sd[0, 0] * (1 + 1e-9)
    assert found.sd_independent[0, 0] <= found.sd[0, 0] * (1 + 1e-9)


def test_support_is_the_squared_correlation_with_a_truth_of_that_uncertainty() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(size=(20_000, 1))
    sd = np.full_like(predicted, 0.7)
    truth = predicted + rng.normal(size=predicted.shape) * sd
    found = module_scores(predicted, sd, [[0]], np.ones(len(predicted), bool))
    r = np.corrcoef(truth.ravel(), found.score.ravel())[0, 1]
    assert found.support(np.ones(len(predicted), bool))[0] == pytest.approx(r**2, abs=0.02)
    assert truth.std() == pytest.approx(expected_sd(predicted, sd)[0], rel=0.02)


# ---- markers, enrichment, names


def test_enrichment_is_the_share_of_all_draws() -> None:
    universe = [f"G{k}" for k in range(9)]
    markers, members = universe[:4], ["G0", "G1", "G2", "G7", "elsewhere"]
    draws = list(itertools.combinations(universe, 4))
    as_many = np.mean([len(set(draw) & set(members)) >= 3 for draw in draws])
    found = enrichment_table({"1": markers}, {"s": members}, universe).iloc[0]
    assert found["p_value"] == pytest.approx(as_many)
    assert (found["shared"], found["set_genes"], found["markers"], found["universe"]) == (
        3,
        4,
        4,
        9,
    )
    assert found["expected"] == pytest.approx(16 / 9)
    assert found["genes"] == "G0;G1;G2"
    none = enrichment_table({"1": []}, {"s": members}, universe).iloc[0]
    assert none["p_value"] == 1.0


def test_q_values_are_those_of_benjamini_and_hochberg() -> None:
    universe = [f"G{k}" for k in range(40)]
    sets = {str(k): universe[k : k + 6] for k in range(0, 30, 5)}
    table = enrichment_table({"a": universe[:8], "b": universe[20:25]}, sets, universe)
    p = np.sort(table["p_value"].to_numpy())
    by_hand = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    assert np.sort(table["q_value"]) == pytest.approx(np.minimum(by_hand, 1.0))


def test_markers_are_compared_as_scipy_does_gene_by_gene() -> None:
    rng = np.random.default_rng(3)
    values, inside = rng.normal(size=(40, 5)), np.arange(40) < 15
    values[inside, 2] += 3.0
    unit = np.full(5, 2.0)
    table = marker_table(values, unit, list("abcde"), {"x": inside, "few": np.arange(40) < 3}, RULE)
    assert set(table["group"]) == {"x"}
    found = table.set_index("gene")
    assert table["gene"].iloc[0] == "c"
    assert markers_of(table)["x"][0] == "c"
    for k, gene in enumerate("abcde"):
        a, b = values[inside, k], values[~inside, k]
        assert found.loc[gene, "difference"] == pytest.approx((a.mean() - b.mean()) / 2)
        assert found.loc[gene, "p_separation"] == pytest.approx(
            stats.ranksums(a, b).pvalue, rel=0.2
        )
        assert found.loc[gene, "auc"] == pytest.approx((a[:, None] > b).mean())


RULE = MarkerRule()


def test_a_second_set_joins_a_name_only_with_genes_of_its_own() -> None:
    def row(name: str, p: float, genes: str) -> dict[str, Any]:
        q = {"p_value": p, "q_value": 2 * p, "fold": 3.0}
        return {"group": "1", "set": name, "genes": genes, "shared": genes.count(";") + 1, **q}

    rows = [row("a", 1e-5, "A;B;C"), row("same", 1e-4, "A;B;C;D"), row("b", 1e-3, "C;E;F")]
    table = pd.DataFrame([*rows, row("lone", 1e-6, "Z"), row("late", 0.02, "X;Y")])
    assert group_names(table, ["1"], RULE) == {"1": "a + b (q 0.002)"}
    assert group_names(table, ["1"], MarkerRule(fdr=1e-9)) == {"1": UNNAMED}


def test_regions_and_clusters_are_compared_by_points_and_genes() -> None:
    r, c = np.array([1, 1, 1, 0, 0, 0], bool), np.array([0, 1, 1, 1, 0, 0], bool)
    row = compare_groups({"r": r}, {"c": c}, {"r": ["A", "B"]}, {"c": ["B", "C"]}, 10).iloc[0]
    assert (row["points"], row["jaccard"], row["markers"]) == (2, 0.5, 1)
    assert row["marker_jaccard"] == pytest.approx(1 / 3)
    assert row["marker_p_value"] == pytest.approx(1 - math.comb(8, 2) / math.comb(10, 2))


def test_random_sets_name_hardly_any_cluster() -> None:
    """Genes that go together in a few programmes, as predictions do, and sets drawn at random."""
    runs, named, tested = 60, 0, 0
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        genes = [f"G{k}" for k in range(150)]
        groups = {name: np.arange(90) // 30 == k for k, name in enumerate("abc")}
        programmes = rng.normal(size=(3, 4))[np.arange(90) // 30] + 0.3 * rng.normal(size=(90, 4))
        values = programmes @ rng.normal(size=(4, 150)) + 0.2 * rng.normal(size=(90, 150))
        table = marker_table(values, values.std(axis=0), genes, groups, RULE)
        sets = {str(k): list(rng.choice(genes, 12, replace=False)) for k in range(12)}
        found = enrichment_table(markers_of(table), sets, genes)
        names = group_names(found, list(groups), RULE)
        named += any(name != UNNAMED for name in names.values())
        tested += int(table["marker"].sum())
    assert tested > 100 * runs  # there was something to name
    # at most 5 % of the runs, but for the luck of 60 draws
    assert named / runs <= 0.12


# ---- drawn regions


def square(x0: float, y0: float, x1: float, y1: float) -> list[list[float]]:
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(kind: str, coordinates: Any, **properties: Any) -> dict[str, Any]:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def write_regions(path: Path, *features: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_holes_and_all_parts_of_a_region_count(tmp_path: Path) -> None:
    path = write_regions(
        tmp_path / "r.geojson",
        feature(
            "Polygon",
            [square(0, 0, 10, 10), square(4, 4, 6, 6)],
            classification={"name": "Tumor", "color": [1, 2, 3]},
            name="not this",
        ),
        feature("MultiPolygon", [[square(20, 0, 30, 10)], [square(40, 0, 50, 10)]], name="edge"),
        feature("Polygon", [square(60, 0, 70, 10)], classification={"name": "Tumor"}),
        feature("Point", [1, 1]),
        feature("Polygon", [square(80, 0, 90, 10)]),
    )
    regions = {region.name: region for region in read_regions(path)}
    assert list(regions) == ["Tumor", "edge", "unnamed"]
    points = np.array([[1, 1], [5, 5], [25, 5], [45, 5], [65, 5], [85, 5], [35, 5]], float)
    inside = {name: region.contains(points).tolist() for name, region in regions.items()}
    assert inside["Tumor"] == [True, False, False, False, True, False, False]
    assert inside["edge"] == [False, False, True, True, False, False, False]
    content = json.loads(path.read_text())["features"]
    path.write_text(json.dumps(content))  # older QuPath
    assert [region.name for region in read_regions(path)] == list(regions)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no GeoJSON"),
        ('{"type": "Topology"}', "is no FeatureCollection or Feature"),
        ('{"type": "FeatureCollection", "features": []}', "holds no Polygon"),
        (json.dumps(feature("LineString", [[0, 0], [1, 1]])), "holds no Polygon"),
        (json.dumps(feature("Polygon", [])), "feature 1: its polygon has no outline"),
        (json.dumps(feature("Polygon", [[[0, 0], [1, "a"]]])), "feature 1: a corner is not a pair"),
        (json.dumps(feature("Polygon", [[[0], [1], [2]]])), "feature 1: a corner is not a pair"),
        (json.dumps(feature("Polygon", [[[0, 0], [1, 1], [0, 0]]])), "fewer than three corners"),
        (json.dumps(feature("MultiPolygon", 3)), "its polygon has no outline"),
        ('[{"type": "Feature"}]', "feature 1: has no geometry"),
    ],
)
def test_damaged_regions_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "r.geojson"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        read_regions(path)


# ---- the whole


def make_prediction(
    folder: Path, *, seed: int = 0, genes: list[str] | None = None, planted: bool = True
) -> AnnData:
    """Two halves: the left one high in our epithelium set, the right one in that of T cells."""
    sets = {s.name: s.genes for s in gene_sets([], builtin=True)}
    left, right = (list(sets[name][:10]) for name in PLANTED.values())
    others = [f"OTHER{k}" for k in range(100)]
    names = genes or [*left, *right, *others]
    coords = lattice(ROWS, PITCH)
    rng = np.random.default_rng(seed)
    values = 0.3 * rng.normal(size=(len(coords), len(names))) + 2.0
    half = coords[:, 0] < coords[:, 0].mean()
    # others tell the halves apart as well, with no set of their own
    effect = dict.fromkeys(others[:20], 0.6) | dict.fromkeys(others[20:40], -0.6)
    if planted:
        effect |= dict.fromkeys(left, 1.0) | dict.fromkeys(right, -1.0)
    for k, gene in enumerate(names):
        values[:, k] += effect.get(gene, 0.0) * np.where(half, 0.5, -0.5)
    section = make_section(folder, "S1", np.ones((len(coords), 1)), coords)
    verdicts = ["no" if gene == others[-1] else "predictable" for gene in names]
    sd = np.full(values.shape, 0.3)
    return prediction_anndata(
        {"mean": values, "sd": 2 * sd, "sd_latent": sd},
        coords,
        pd.DataFrame(
            {"measured": True, "in_tissue": True, "ood": [True] + [False] * (len(coords) - 1)},
            index=[f"p{k}" for k in range(len(coords))],
        ),
        pd.DataFrame({"predictable": True, "score": 0.5, "verdict": verdicts}, index=names),
        section=section,
        provenance={"target": "expression", "inputs": {}},
        spot_diameter_px=SIDE,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("annotate")


@pytest.fixture(scope="module")
def prediction(folder: Path) -> AnnData:
    return make_prediction(folder)


TWO = AnnotateSettings(n_clusters=2)


def test_planted_tissues_are_scored_and_named(prediction: AnnData) -> None:
    found = annotate(prediction, settings=TWO)
    half = prediction.obsm["spatial"][:, 0] < 155
    scores = found.modules.to_df()
    for side, name in PLANTED.items():
        here = half if side == "left" else ~half
        assert scores.loc[here, name].min() > scores.loc[~here, name].max()
        cluster = found.modules.obs.loc[here, "cluster_name"].mode()[0]
        assert cluster.startswith(f"{name} (q ")
    assert not found.modules.obs["used"].iloc[0]
    assert found.modules.obs["cluster"].iloc[0] == ""
    facts = found.summary
    assert (facts["points"]["points_used"], facts["points"]["points_unlike_training"]) == (99, 1)
    assert facts["genes"] | {} == {
        "genes": 120,
        "genes_used": 119,
        "genes_not_told_from_chance": 1,
        "genes_constant": 0,
    }
    assert "OTHER99" not in set(found.markers["gene"])
    unused = {s["set"] for s in facts["gene_sets"] if not s["used"]}
    assert "adipose" in unused
    assert unused.isdisjoint(scores.columns)


def test_without_planted_tissue_clusters_stay_unnamed(folder: Path) -> None:
    named = [
        annotate(make_prediction(folder, seed=seed, planted=False), settings=TWO).summary[
            "clusters_named"
        ]
        for seed in range(20)
    ]
    assert sum(count > 0 for count in named) <= 3


def test_neither_the_order_of_genes_nor_of_points_matters(prediction: AnnData) -> None:
    settings = AnnotateSettings(n_clusters=3)
    first = annotate(prediction, settings=settings)
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(prediction.n_obs), rng.permutation(prediction.n_vars)
    again = annotate(prediction[rows, columns].copy(), settings=settings)
    order = prediction.obs_names
    assert (again.modules.obs["cluster"][order] == first.modules.obs["cluster"][order]).all()
    pd.testing.assert_frame_equal(
        again.modules.to_df().loc[order], first.modules.to_df(), atol=1e-5, rtol=0
    )
    ours, theirs = (f.enrichment.drop(columns="genes") for f in (first, again))
    pd.testing.assert_frame_equal(ours, theirs)
    assert first.summary["clusters"][0]["name"] == again.summary["clusters"][0]["name"]


def test_mouse_names_are_scored_alike(folder: Path, prediction: AnnData) -> None:
    mouse = prediction.copy()
    mouse.var_names = [name.capitalize() for name in prediction.var_names]
    a, b = (annotate(table, settings=TWO).modules.to_df() for table in (prediction, mouse))
    pd.testing.assert_frame_equal(a, b)


def test_an_older_file_without_verdicts_uses_its_predictable_genes(prediction: AnnData) -> None:
    older = prediction.copy()
    del older.var["verdict"]
    older.var["predictable"] = [k >= 5 for k in range(older.n_vars)]
    found = annotate(older, settings=TWO)
    assert found.summary["genes"]["genes_used"] == older.n_vars - 5
    del older.var["predictable"]
    with pytest.raises(InputError, match="does not say which genes"):
        annotate(older)


def test_given_clusters_are_taken(prediction: AnnData) -> None:
    half = prediction.obsm["spatial"][:, 0] < 155
    labels = np.where(half, "west", "east")
    with_own = prediction.copy()
    with_own.obs["cluster"] = pd.Categorical(labels)
    found = annotate(with_own)
    assert [g["group"] for g in found.summary["clusters"]] == ["east", "west"]
    other = with_own[::-1, :2].copy()
    same = annotate(prediction, clusters=other)
    assert (same.modules.obs["cluster"] == found.modules.obs["cluster"]).all()
    assert annotate(with_own, settings=TWO).summary["clusters_from"].startswith("k-means")
    other.obsm["spatial"] = other.obsm["spatial"] + 10
    with pytest.raises(InputError, match="is of other points"):
        annotate(prediction, clusters=other)
    with pytest.raises(InputError, match="has no obs"):
        annotate(prediction, clusters=prediction)


def test_regions_are_named_and_compared_with_the_clusters(
    folder: Path, prediction: AnnData
) -> None:
    path = write_regions(
        folder / "halves.geojson",
        feature("Polygon", [square(0, 0, 155, 400)], classification={"name": "west"}),
        feature("Polygon", [square(155, 0, 400, 400)], classification={"name": "east/south"}),
        feature("Polygon", [square(900, 900, 950, 950)], name="nowhere"),
    )
    found = annotate(prediction, regions=path, settings=TWO)
    assert found.regions is not None
    assert found.regions_vs_clusters is not None
    regions = found.regions.set_index("region")
    assert regions.loc["west", "name"].startswith("epithelium (q ")
    assert regions.loc["east/south", "name"].startswith("T cells (q ")
    assert regions["points"].to_dict() == {"west": 49, "east/south": 50, "nowhere": 0}
    assert found.summary["adjusted_rand"] == pytest.approx(1.0)
    versus = found.regions_vs_clusters
    assert sorted(versus[versus["region"] == "west"]["jaccard"]) == [0.0, 1.0]
    best = versus.sort_values("jaccard").groupby("region").tail(1).set_index("region")
    assert (best.loc[["west", "east/south"], "marker_p_value"] < 1e-10).all()


def test_bad_requests_say_what_to_do(folder: Path, prediction: AnnData) -> None:
    far = write_regions(folder / "far.geojson", feature("Polygon", [square(900, 900, 950, 950)]))
    with pytest.raises(InputError, match="no predicted point lies in any region: regions span x 9"):
        annotate(prediction, regions=far)
    with pytest.raises(InputError, match="--n-clusters 60: 99 points allow 2 to 19"):
        annotate(prediction, settings=AnnotateSettings(n_clusters=60))
    with pytest.raises(InputError, match="--n-clusters 0: 99 points allow 2 to 19"):
        annotate(prediction, settings=AnnotateSettings(n_clusters=0))
    with pytest.raises(InputError, match="give one of the two"):
        annotate(prediction, clusters=prediction, settings=TWO)
    with pytest.raises(InputError, match="no gene set has 50 genes"):
        annotate(prediction, settings=AnnotateSettings(least_genes=50))
    with pytest.raises(InputError, match="is not a prediction"):
        annotate(AnnData(np.zeros((2, 2))))
    bare = prediction.copy()
    del bare.layers["sd_latent"]
    with pytest.raises(InputError, match="has no layer sd_latent"):
        annotate(bare)
    hollow = prediction.copy()
    hollow.X[3, 3] = np.nan
    with pytest.raises(InputError, match="are not numbers"):
        annotate(hollow)
    odd = prediction.copy()
    odd.obs["ood"] = True
    with pytest.raises(InputError, match="0 of 100 points"):
        annotate(odd)


def test_command(
    folder: Path, prediction: AnnData, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "S1.h5ad", tmp_path / "out"
    write_prediction(prediction, file)
    own = tmp_path / "own.gmt"
    own.write_text("odd ones\tmine\tOTHER0\tOTHER1\tOTHER2\tOTHER3\n")
    regions = write_regions(
        tmp_path / "r.geojson", feature("Polygon", [square(0, 0, 155, 400)], name="west")
    )
    args = ("annotate", file, "--gmt", own, "--regions", regions, "--n-clusters", 2)
    code, text, err = call(*args, "--out", out, "--quiet", capsys=capsys)
    assert (code, err) == (0, "")
    assert "epithelium" in text
    assert sorted(path.name for path in out.iterdir()) == [
        "annotation.json",
        "annotation.png",
        "enrichment.csv",
        "enrichment.png",
        "genesets.gmt",
        "markers.csv",
        "modules.h5ad",
        "regions.csv",
        "regions_vs_clusters.csv",
    ]
    saved = json.loads((out / "annotation.json").read_text())
    assert len(saved["provenance"]["inputs"]) == 3
    assert saved["provenance"]["prediction"] == {"target": "expression", "inputs": {}}
    modules = anndata.read_h5ad(out / "modules.h5ad")
    assert "odd ones" in modules.var_names
    assert set(modules.layers) == {"sd", "sd_independent", "mean"}
    assert read_provenance(modules)["target"] == "modules"
    assert modules.uns["spatial"]["S1"]["images"]["hires"].shape[2] == 3
    assert len(read_gmt(out / "genesets.gmt")) == len(gene_sets([own], builtin=True))
    assert min(Image.open(out / "annotation.png").size) > 500
    code, _, err = call(*args, "--out", out, capsys=capsys)
    assert code == 2
    assert "already exists" in err
    code, _, err = call("annotate", tmp_path / "none.h5ad", "--out", tmp_path / "o", capsys=capsys)
    assert code == 2
    assert "no such prediction" in err
    code, printed, _ = call(*args, "--out", out, "--overwrite", "--json", "--quiet", capsys=capsys)
    assert code == 0
    assert json.loads(printed)["clusters_named"] == 2
