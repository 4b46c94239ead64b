"""The simulated block: looks, law, geometry, files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree
from sklearn.linear_model import Ridge
from sklearn.model_selection import cross_val_predict

from deepspace.core.errors import InputError
from deepspace.simulate import Artefacts, Block, BlockConfig, Transform, simulate_block
from deepspace.simulate.counts import draw_counts
from deepspace.simulate.fields import RandomField
from deepspace.simulate.tissue import CLASSES

TROUBLED = BlockConfig.preset(
    "tiny",
    seed=1,
    unmeasured=("S2",),
    positions="v1",
    artefacts={
        "S1": Artefacts(failed_area=True, pen_mark=True),
        "S2": Artefacts(out_of_focus=True),
        "S3": Artefacts(tear=True),
    },
)


@pytest.fixture(scope="module")
def block() -> Block:
    return simulate_block(BlockConfig.preset("tiny"))


@pytest.fixture(scope="module")
def plain() -> Block:
    """The troubled block without its troubles."""
    return simulate_block(BlockConfig.preset("tiny", seed=1))


@pytest.fixture(scope="module")
def troubled() -> Block:
    return simulate_block(TROUBLED)


@pytest.fixture(scope="module")
def folder(troubled: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return troubled.write(tmp_path_factory.mktemp("block") / "out").parent


def spots_of(block: Block, section: str) -> np.ndarray:
    return block.sections[section].spots[["x", "y"]].to_numpy(float)


def logged(block: Block, section: str) -> np.ndarray:
    counts = np.asarray(block.counts(section).X.todense())
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True))


def correlate(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson correlation column by column."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("huge", {}, "preset 'huge' does not exist"),
        ("tiny", {"mmp": 0.5}, "mmp"),
        ("tiny", {"mpp": -1.0}, "mpp"),
        ("tiny", {"unmeasured": ("S9",)}, "S9"),
        ("tiny", {"unmeasured": ("S1", "S2", "S3")}, "at least one measured"),
    ],
)
def test_wrong_config_is_refused(name: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BlockConfig.preset(name, **changes)


def test_unknown_section_is_refused(block: Block) -> None:
    with pytest.raises(InputError, match="'S7' does not exist"):
        block.truth("S7", np.zeros((1, 2)))


def test_spots_lie_on_the_visium_lattice(block: Block) -> None:
    spots = block.sections["S2"].spots
    xy = spots_of(block, "S2") * block.config.mpp
    distance, neighbour = cKDTree(xy).query(xy, k=7)
    inner = np.abs(xy - xy.mean(axis=0)).max(axis=1) < 250
    assert inner.sum() > 10
    # whole pixels of 1 um: each end is off by up to half a pixel in x and in y
    np.testing.assert_allclose(distance[inner, 1:], 100.0, atol=1.5)
    steps = spots[["array_row", "array_col"]].to_numpy()
    apart = np.abs(steps[neighbour[inner, 1:]] - steps[inner][:, None])
    assert set(map(tuple, apart.reshape(-1, 2))) == {(0, 2), (1, 1)}
    assert spots["in_tissue"].any()
    assert not spots["in_tissue"].all()


@given(
    st.floats(-180, 180),
    st.tuples(st.floats(-500, 500), st.floats(-500, 500)),
    st.lists(st.tuples(st.floats(0, 5000), st.floats(0, 5000)), min_size=2, max_size=5),
)
def test_transform_inverts_and_keeps_lengths(
    turn: float, shift: tuple[float, float], points: list[tuple[float, float]]
) -> None:
    transform = Transform(mpp=0.7, rotation_deg=turn, shift_um=shift, size_px=4000)
    coords = np.array(points)
    there = transform.to_block(coords)
    np.testing.assert_allclose(transform.to_section(there), coords, atol=1e-6)
    np.testing.assert_allclose(
        np.hypot(*(there[0] - there[1])), 0.7 * np.hypot(*(coords[0] - coords[1])), atol=1e-6
    )
    np.testing.assert_allclose(transform.to_block(np.full((1, 2), 1999.5))[0], shift, atol=1e-6)


def test_random_field_has_the_stated_correlation() -> None:
    box = np.array([[0.0, 0.0, 0.0], [3000.0, 3000.0, 300.0]])
    field = RandomField(np.random.default_rng(0), box, 40.0)
    points = np.random.default_rng(1).uniform(100, 2900, (20000, 3)) * (1, 1, 0.1)
    here, there = field.at(points), field.at(points + np.array([60.0, 0.0, 0.0]))
    assert np.corrcoef(here, there)[0, 1] == pytest.approx(np.exp(-(60**2) / (4 * 40**2)), abs=0.05)
    assert here.std() == pytest.approx(1.0, abs=0.1)


def test_sections_share_the_tissue_where_the_transform_says(block: Block) -> None:
    first, second = block.sections["S1"], block.sections["S2"]
    coords = np.random.default_rng(0).uniform(200, 820, (3000, 2))
    mapped = second.transform.to_section(first.transform.to_block(coords))
    here = np.array(block.tissue_class("S1", coords))
    true = (here == np.array(block.tissue_class("S2", mapped))).mean()
    untrue = (here == np.array(block.tissue_class("S2", coords))).mean()
    chance = sum((here == name).mean() ** 2 for name in CLASSES)
    assert abs(second.transform.rotation_deg) > 3
    assert true > 0.7
    assert true > untrue + 0.1
    assert true > chance + 0.3


def test_counts_are_negative_binomial() -> None:
    mean, dispersion = np.array([0.5, 5.0, 80.0]), np.array([0.5, 0.2, 0.1])
    draws = draw_counts(np.tile(mean, (40000, 1)), dispersion, np.random.default_rng(0)).toarray()
    np.testing.assert_allclose(draws.mean(axis=0), mean, rtol=0.03)
    np.testing.assert_allclose(draws.var(axis=0), mean + dispersion * mean**2, rtol=0.05)
    zero = (1 + dispersion * mean) ** (-1 / dispersion)
    np.testing.assert_allclose((draws == 0).mean(axis=0), zero, atol=0.01)


def test_truth_is_the_mean_of_many_draws(block: Block) -> None:
    coords = spots_of(block, "S1")[[30, 50]]
    share = np.expm1(block.truth("S1", coords)) / 1e4
    np.testing.assert_allclose(share.sum(axis=1), 1.0, rtol=1e-5)
    rng = np.random.default_rng(0)
    dispersion = block.law["dispersion"].to_numpy()
    for row in share:
        draws = draw_counts(np.tile(5000 * row, (4000, 1)), dispersion, rng).toarray()
        np.testing.assert_allclose(draws.mean(axis=0), 5000 * row, rtol=0.05, atol=0.1)


def test_measured_counts_follow_the_truth(block: Block) -> None:
    counts = block.counts("S2")
    share = np.expm1(block.truth("S2", counts.obsm["spatial"])) / 1e4
    depth = np.asarray(counts.X.sum(axis=1))
    expected = share * depth
    surplus = np.asarray(counts.X.sum(axis=0)).ravel() / expected.sum(axis=0)
    assert np.median(np.abs(surplus - 1)) < 0.06
    # Pearson residuals with the law's own dispersion have variance 1
    spread = expected + block.law["dispersion"].to_numpy() * expected**2
    residual = (counts.X.toarray() - expected) / np.sqrt(spread)
    assert residual.var() == pytest.approx(1.0, abs=0.1)


def test_truth_at_a_point_depends_on_the_point_alone(block: Block) -> None:
    coords = np.random.default_rng(3).uniform(100, 900, (2100, 2))
    together = block.truth("S3", coords)
    np.testing.assert_array_equal(together[-5:], block.truth("S3", coords[-5:]))
    section = block.sections["S3"]
    xy = section.transform.to_block(coords[:4])
    lifted = np.column_stack([xy, np.full(4, section.z_um)])
    np.testing.assert_array_equal(together[:4], block.truth_at(lifted))
    assert np.isfinite(together).all()


def test_kinds_follow_the_image_the_neighbours_or_nothing(block: Block) -> None:
    """Leave S2 out: ridge on the true morphology, and the nearest spots of S1."""
    kind = block.law["kind"].to_numpy()
    coords = {s: block.counts(s).obsm["spatial"] for s in block.sections}
    seen = {s: block.morphology(s, xy).to_numpy() for s, xy in coords.items()}
    values = {s: logged(block, s) for s in block.sections}
    train = ["S1", "S3"]
    model = Ridge(10.0).fit(
        np.vstack([seen[s] for s in train]), np.vstack([values[s] for s in train])
    )
    image = correlate(model.predict(seen["S2"]), values["S2"])
    place = {s: block.sections[s].transform.to_block(xy) for s, xy in coords.items()}
    _, near = cKDTree(place["S1"]).query(place["S2"], k=3)
    neighbours = correlate(values["S1"][near].mean(axis=1), values["S2"])
    score = pd.DataFrame({"image": image, "neighbours": neighbours}).groupby(kind).mean()
    assert score.loc["image", "image"] > 0.6
    assert score.loc["neighbours", "neighbours"] > 0.5
    assert score.loc["neighbours", "image"] < 0.3
    assert score.loc["mixed"].min() > 0.35
    assert score.loc["none"].abs().max() < 0.15


def test_none_genes_are_constant_everywhere(block: Block) -> None:
    truth = block.truth("S1", np.random.default_rng(0).uniform(0, 1000, (200, 2)))
    none = (block.law["kind"] == "none").to_numpy()
    np.testing.assert_allclose(truth[:, none].std(axis=0), 0.0, atol=1e-5)
    assert truth[:, ~none].std(axis=0).min() > 0.05
    assert sum(name.startswith("MT-") for name in block.genes) == block.config.genes.mitochondrial


def test_image_shows_what_image_genes_follow(block: Block) -> None:
    """Colour and its spread around spots tell how many nuclei there are, and of what."""
    image = block.image("S1").astype(float)
    assert image.shape == (1020, 1020, 3)
    spots = block.counts("S1").obsm["spatial"].astype(int)
    patches = np.stack([image[y - 27 : y + 28, x - 27 : x + 28] for x, y in spots])
    dyed = -np.log(np.clip(patches, 1, 250) / 250)
    features = np.hstack([dyed.mean(axis=(1, 2)), dyed.std(axis=(1, 2))])
    seen = block.morphology("S1", spots.astype(float))
    # red light is what haematoxylin takes and eosin does not
    assert np.corrcoef(features[:, 0], seen["nuclei"])[0, 1] > 0.75
    for programme in ("tumour", "stroma", "fat"):
        guess = cross_val_predict(Ridge(1e-3), features, seen[programme], cv=5)
        assert np.corrcoef(guess, seen[programme])[0, 1] > 0.5


def test_image_is_tissue_on_white_glass(block: Block) -> None:
    image = block.image("S2")
    border = np.concatenate([image[:15].reshape(-1, 3), image[:, :15].reshape(-1, 3)])
    assert border.min() > 225
    spots = block.sections["S2"].spots
    inside = spots.loc[spots["in_tissue"], ["x", "y"]].to_numpy(int)
    colour = np.stack([image[y - 20 : y + 20, x - 20 : x + 20].mean((0, 1)) for x, y in inside])
    # pink to violet: green is always the weakest
    assert (colour[:, 1] <= colour[:, [0, 2]].min(axis=1) + 2).all()
    assert (colour.mean(axis=1) < 238).mean() > 0.9


def test_failed_area_hits_counts_and_not_the_image(troubled: Block, plain: Block) -> None:
    spots = troubled.sections["S1"].spots
    failed = (spots["failed"] & spots["in_tissue"]).to_numpy()
    depth = np.asarray(troubled.sections["S1"].counts.sum(axis=1)).ravel()
    sound = (~spots["failed"] & spots["in_tissue"]).to_numpy()
    assert failed.sum() >= 2
    assert np.median(depth[failed]) < 0.1 * np.median(depth[sound])
    xy = spots_of(troubled, "S1")
    assert np.ptp(xy[failed], axis=0).max() < 400  # one blob
    assert plain.sections["S1"].spots["in_tissue"].equals(spots["in_tissue"])


def test_pen_and_blur_change_the_image_and_not_the_counts(troubled: Block, plain: Block) -> None:
    marked, clean = troubled.image("S1").astype(int), plain.image("S1").astype(int)
    touched = (np.abs(marked - clean) > 40).any(axis=2)
    assert 0.01 < touched.mean() < 0.15
    blurred, sharp = troubled.image("S2").astype(float), plain.image("S2").astype(float)
    patch = troubled.sections["S2"].blur
    assert patch is not None
    x, y = (int(c / troubled.config.mpp + 509.5) for c in patch.centre)
    window = np.s_[y - 25 : y + 25, x - 25 : x + 25, 0]
    assert np.diff(blurred[window]).std() < 0.5 * np.diff(sharp[window]).std()
    np.testing.assert_array_equal(blurred[:, :40], sharp[:, :40])
    pd.testing.assert_frame_equal(
        troubled.sections["S2"].spots, plain.sections["S2"].spots, check_dtype=False
    )
    assert (troubled.sections["S2"].counts != plain.sections["S2"].counts).nnz == 0


def test_tear_takes_tissue_and_spots_away(troubled: Block, plain: Block) -> None:
    torn, whole = troubled.sections["S3"].spots, plain.sections["S3"].spots
    assert torn["in_tissue"].sum() <= whole["in_tissue"].sum()
    assert not (torn["in_tissue"] & ~whole["in_tissue"]).any()
    tear = troubled.sections["S3"].tear
    assert tear is not None
    size = plain.sections["S3"].transform.size_px
    rows, cols = (m.ravel() for m in np.mgrid[0:size, 0:size])
    depth = tear.depth(troubled.sections["S3"].centred(np.column_stack([cols, rows])))
    gap = (depth > 6).reshape(size, size)
    before, after = plain.image("S3")[gap], troubled.image("S3")[gap]
    assert (before.mean(axis=1) < 215).mean() > 0.2
    assert (after.mean(axis=1) < 215).mean() < 0.02


def test_sheet_names_measured_and_unmeasured_sections(folder: Path) -> None:
    sheet = pd.read_csv(folder / "sheet.csv", keep_default_na=False)
    assert list(sheet["section"]) == ["S1", "S2", "S3"]
    assert list(sheet["spaceranger"]) == ["S1/outs", "", "S3/outs"]
    assert list(sheet["spots"]) == ["", "S2/tissue_positions.csv", ""]
    assert list(sheet["z_um"]) == [0.0, 30.0, 60.0]
    for column in ("image", "spaceranger", "spots"):
        assert all((folder / path).exists() for path in sheet[column] if path)
    assert not (folder / "S2" / "outs").exists()
    assert (folder / "truth" / "S2" / "outs" / "filtered_feature_bc_matrix.h5").exists()


def test_matrix_reads_as_written(folder: Path, troubled: Block) -> None:
    scanpy = pytest.importorskip("scanpy")
    read = scanpy.read_10x_h5(folder / "S1" / "outs" / "filtered_feature_bc_matrix.h5")
    counts = troubled.counts("S1")
    assert list(read.var_names) == troubled.genes
    assert list(read.obs_names) == list(counts.obs_names)
    assert (read.X != counts.X).nnz == 0
    assert read.obs_names.str.fullmatch("[ACGT]{16}-1").all()
    assert set(read.var["feature_types"]) == {"Gene Expression"}
    assert read.var["gene_ids"].is_unique


def test_spatial_folder_agrees_with_the_image(folder: Path, troubled: Block) -> None:
    spatial = folder / "S1" / "outs" / "spatial"
    columns = ["in_tissue", "array_row", "array_col", "y", "x"]
    table = pd.read_csv(
        spatial / "tissue_positions_list.csv", header=None, names=columns, index_col=0
    )
    spots = troubled.sections["S1"].spots
    np.testing.assert_array_equal(table[["x", "y"]], spots[["x", "y"]])
    np.testing.assert_array_equal(table["in_tissue"] == 1, spots["in_tissue"])
    assert list(table.index) == list(spots.index)
    scales = json.loads((spatial / "scalefactors_json.json").read_text())
    assert scales["spot_diameter_fullres"] == pytest.approx(65 / troubled.config.mpp)
    full = tifffile.imread(folder / "S1" / "image.ome.tif")
    for label in ("hires", "lowres"):
        with Image.open(spatial / f"tissue_{label}_image.png") as small:
            assert small.width == round(full.shape[1] * scales[f"tissue_{label}_scalef"])
    graph = spatial.parent / "analysis" / "clustering" / "gene_expression_graphclust"
    clusters = pd.read_csv(graph / "clusters.csv", index_col="Barcode")
    assert list(clusters.index) == list(troubled.counts("S1").obs_names)
    assert clusters["Cluster"].between(1, 6).all()


def test_pyramid_keeps_colours_and_pixel_size(folder: Path, troubled: Block) -> None:
    image = troubled.image("S2").astype(int)
    with tifffile.TiffFile(folder / "S2" / "image.ome.tif") as tiff:
        levels = tiff.series[0].levels
        assert [level.shape for level in levels] == [(1020, 1020, 3), (510, 510, 3)]
        assert all(level.pages[0].is_tiled for level in levels)
        assert 'PhysicalSizeX="1.0"' in tiff.ome_metadata
        assert np.abs(levels[0].asarray() - image).mean() < 5
        reduced = image.reshape(510, 2, 510, 2, 3).mean(axis=(1, 3))
        assert np.abs(levels[1].asarray() - reduced).mean() < 5


def test_truth_files_hold_the_truth(folder: Path, troubled: Block) -> None:
    truth = anndata.read_h5ad(folder / "truth" / "S2.h5ad")
    np.testing.assert_array_equal(truth.X, troubled.truth("S2", truth.obsm["spatial"]))
    assert truth.obs["spot"].sum() == len(troubled.sections["S2"].spots)
    assert (~truth.obs["spot"]).any()
    assert list(truth.var["kind"]) == list(troubled.law["kind"])
    matrix = json.loads((folder / "truth" / "transforms.json").read_text())["S3"]
    expected = troubled.sections["S3"].transform.matrix
    np.testing.assert_allclose(matrix["pixel_to_block_um"], expected)


def test_folder_in_use_is_not_overwritten(folder: Path, troubled: Block) -> None:
    with pytest.raises(InputError, match="already exists"):
        troubled.write(folder)


def test_same_seed_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = simulate_block(TROUBLED).write(tmp_path / "again").parent

    def digests(root: Path) -> dict[str, str]:
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return {
            str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in files
        }

    assert len(digests(folder)) > 20
    assert digests(again) == digests(folder)


def test_another_seed_another_block(block: Block, plain: Block) -> None:
    assert not np.array_equal(spots_truth(block), spots_truth(plain))
    assert list(block.sections["S1"].spots.index) != list(plain.sections["S1"].spots.index)


def spots_truth(block: Block) -> np.ndarray:
    return block.truth("S1", spots_of(block, "S1"))


@pytest.mark.slow
def test_squidpy_reads_the_folder(folder: Path, troubled: Block) -> None:
    squidpy = pytest.importorskip("squidpy")
    read = squidpy.read.visium(folder / "S1" / "outs", library_id="S1")
    counts = troubled.counts("S1")
    assert list(read.obs_names) == list(counts.obs_names)
    np.testing.assert_array_equal(read.obsm["spatial"], counts.obsm["spatial"])
    assert set(read.uns["spatial"]["S1"]["images"]) == {"hires", "lowres"}


@pytest.mark.slow
def test_demo_block_has_the_promised_size() -> None:
    block = simulate_block()
    inside = [int(section.spots["in_tissue"].sum()) for section in block.sections.values()]
    assert all(300 <= n <= 400 for n in inside)
    median = np.median(np.asarray(block.counts("S1").X.sum(axis=1)))
    assert 3000 < median < 9000
    assert 3000 < block.image("S1").shape[0] < 4000


def test_a_block_is_replaced_only_by_a_block(tmp_path: Path) -> None:
    block = simulate_block(BlockConfig.preset("tiny", n_sections=1))
    sheet = block.write(tmp_path / "block")
    with pytest.raises(InputError, match="--overwrite"):
        block.write(tmp_path / "block")
    assert block.write(tmp_path / "block", overwrite=True) == sheet
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds no sheet\.csv"):
        block.write(tmp_path / "mine", overwrite=True)
