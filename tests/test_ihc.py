"""IHC check: unmixing, chance by moved maps, and the whole check on a block of known truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, stats

from calls import call
from deepspace.core.errors import InputError
from deepspace.data.ihc import STAINS, brown, optical_density, stain_map, unmix
from deepspace.data.shift_null import correlations, move_map, p_values, rank_correlations
from deepspace.data.tissue import TissueMask
from deepspace.io.sheet import read_sheet
from deepspace.io.slide import open_slide
from deepspace.output.write import prediction_anndata, write_prediction
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.simulate.ihc import draw_ihc
from deepspace.workflows.ihc import IHCResult, IHCSettings, ihc_check

AMOUNT = st.floats(0.0, 1.5)
GENE, UNTIED = "IMG001", "NONE001"


@given(AMOUNT, AMOUNT)
def test_a_mixture_of_the_two_dyes_is_told_apart(blue: float, dab: float) -> None:
    found = unmix(blue * STAINS[0] + dab * STAINS[1])
    assert found == pytest.approx([blue, dab], abs=1e-9)


@given(st.lists(st.floats(0.0, 2.0), min_size=3, max_size=3))
def test_unmixing_is_the_best_fit_with_no_negative_amount(density: list[float]) -> None:
    from scipy.optimize import nnls  # noqa: PLC0415

    found = unmix(np.array(density))
    assert found == pytest.approx(nnls(STAINS.T, np.array(density))[0], abs=1e-8)


def test_light_through_dab_is_unmixed_again() -> None:
    amounts = np.stack(np.meshgrid([0.0, 0.2, 0.6], [0.0, 0.3, 0.8]), axis=-1).reshape(-1, 2)
    light = 246 * 10 ** -(amounts @ STAINS) - 1
    pixels = np.clip(np.rint(light), 0, 255).astype(np.uint8)
    found = unmix(optical_density(pixels, 245.0))
    # 8 bit: half a grey value where it is darkest
    assert np.abs(found - amounts).max() < 0.03


def test_dab_is_brown_and_the_dyes_of_he_are_not() -> None:
    eosin = np.array([0.07, 0.99, 0.11])
    assert brown(0.5 * STAINS[1])
    assert not brown(np.stack([STAINS[0], eosin, STAINS[0] + eosin])).any()


def test_the_mean_over_a_disc_is_that_of_its_tissue(tmp_path: Path) -> None:
    pixels = np.full((200, 400, 3), 245, np.uint8)
    light = np.clip(np.rint(246 * 10 ** -(np.outer([0.3, 0.6], STAINS[1])) - 1), 0, 255)
    pixels[:, 100:200], pixels[:, 200:300] = light
    Image.fromarray(pixels).save(tmp_path / "a.png")
    slide = open_slide(tmp_path / "a.png").with_mpp(1.0, "test")
    tissue = TissueMask(np.arange(400)[None, :].repeat(200, 0) // 100 % 3 > 0, 1.0)
    found = stain_map(slide, tissue, (100.0, 50.0, 300.0, 150.0), 40.0)
    values = found.at([[150, 100], [250, 100], [200, 100], [100, 100], [60, 100]])
    assert values["dab"][:3] == pytest.approx([0.3, 0.6, 0.45], abs=0.02)
    assert values["covered"] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0], abs=0.04)
    assert np.isnan(values["dab"][4])
    assert values["positive"][:2] == pytest.approx([0.0, 1.0], abs=0.02)


def field(seed: int, wide: float = 5.0, side: int = 80) -> np.ndarray:
    """Smooth random map."""
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), wide)


def look_up(values: np.ndarray, mask: np.ndarray, points: np.ndarray) -> np.ndarray:
    found = ndimage.map_coordinates(values, points.T[::-1], order=1, cval=np.nan)
    return np.where(
        ndimage.map_coordinates(mask * 1.0, points.T[::-1], order=1) > 0.5, found, np.nan
    )


def test_p_values_of_unrelated_smooth_maps_are_uniform_where_the_usual_ones_are_not() -> None:
    rows, columns = np.indices((80, 80)) - 40
    mask = np.hypot(rows, columns) < 31 + 6 * np.cos(3 * np.arctan2(rows, columns))
    axis = np.arange(2.0, 78.0, 4.0)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    found, usual = [], []
    for k in range(120):
        gene, stain = field(2 * k), field(2 * k + 1)
        moved = move_map(lambda at, s=stain: look_up(s, mask, at), points, moves=199, seed=k)
        used = np.isfinite(moved.there)
        values = look_up(gene, np.ones_like(mask), points)[used, None]
        r = correlations(values, np.column_stack([moved.there, moved.moved])[used])
        counts = np.isfinite(moved.moved).sum(axis=0)
        found.append(p_values(r[:, 0], int(used.sum()), r[:, 1:], counts)[0])
        usual.append(stats.pearsonr(values[:, 0], moved.there[used], alternative="greater").pvalue)
    assert stats.kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) < 0.12
    assert np.mean(np.array(usual) <= 0.05) > 0.2


def test_correlations_are_those_of_scipy_with_points_left_out() -> None:
    rng = np.random.default_rng(0)
    values, maps = rng.normal(size=(40, 3)) + 100.0, rng.normal(size=(40, 4))
    values[:, 2] = 7.0
    maps[rng.random(maps.shape) < 0.3] = np.nan
    found = correlations(values, maps)
    ranks = rank_correlations(values[:, 0], maps)
    for column in range(4):
        known = np.isfinite(maps[:, column])
        for gene in range(2):
            expected = stats.pearsonr(values[known, gene], maps[known, column])[0]
            assert found[gene, column] == pytest.approx(expected)
        expected = stats.spearmanr(values[known, 0], maps[known, column])[0]
        assert ranks[column] == pytest.approx(expected)
    assert np.isnan(found[2]).all()


def test_moves_repeat_with_their_seed_and_too_few_points_are_refused() -> None:
    stain, mask = field(0), np.ones((80, 80))
    points = np.random.default_rng(1).uniform(5, 75, (60, 2))

    def look(at: np.ndarray) -> np.ndarray:
        return look_up(stain, mask, at)

    first, again, other = (move_map(look, points, moves=199, seed=s).moved for s in (1, 1, 2))
    assert np.array_equal(first, again, equal_nan=True)
    assert not np.array_equal(first, other, equal_nan=True)
    with pytest.raises(InputError, match="only 19 of 19 points"):
        move_map(look, points[:19], moves=199)
    with pytest.raises(InputError, match="at least 199"):
        move_map(look, points, moves=50)


class Case:
    """A simulated prediction and stained sections of the same block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.block = simulate_block(BlockConfig.preset("tiny", n_sections=2))
        self.block.write(folder / "block")
        section = read_sheet(folder / "block" / "sheet.csv", only=["S1"])[0]
        coords = section.coords
        truth = self.block.truth("S1", coords)
        noise = np.random.default_rng(0).normal(size=truth.shape) * (0.5 * truth.std(axis=0) + 0.01)
        names = section.counts.obs_names
        flags = {"measured": True, "in_tissue": True, "ood": False}
        self.prediction: AnnData = prediction_anndata(
            {"mean": truth + noise, "sd": 0 * truth + 1, "sd_latent": 0 * truth + 1},
            coords,
            pd.DataFrame(flags, index=names),
            pd.DataFrame({"predictable": True, "score": 0.5}, index=self.block.genes),
            section=section,
            provenance={"inputs": {}, "target": "expression"},
            spot_diameter_px=55.0 / section.slide.require_mpp(),
        )
        self.file = folder / "S1.h5ad"
        write_prediction(self.prediction, self.file)
        self.he = folder / "block" / "S1" / "image.ome.tif"
        self.ihc = draw_ihc(self.block, GENE, z_um=10.0).write(folder / "ihc.ome.tif")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("ihc"))


@pytest.fixture(scope="module")
def checked(case: Case) -> IHCResult:
    return ihc_check(case.file, case.ihc, gene=GENE, out=case.folder / "out")


@pytest.mark.slow
def test_the_stained_gene_is_found(case: Case, checked: IHCResult) -> None:
    score = checked.summary["pearson"]
    assert score["r"] > 0.5
    assert score["p"] == pytest.approx(0.001)
    assert checked.summary["verdict"].startswith(f"The stain supports the prediction of {GENE}")
    used = checked.points[checked.points["used"]]
    share = np.expm1(case.block.truth("S1", used[["x", "y"]].to_numpy()))
    column = share[:, case.block.genes.index(GENE)]
    # DAB is proportional to the expression, up to where matter is and to what lies between
    assert stats.pearsonr(column, used["dab"]).statistic > 0.6
    untied = checked.genes.set_index("gene").loc[[g for g in case.block.genes if "NONE" in g]]
    assert (untied["p_value"] < 0.05).mean() < 0.3
    assert checked.genes["gene"].iloc[0].startswith(("IMG", "MIX"))


@pytest.mark.slow
def test_a_gene_that_follows_nothing_is_not_supported(case: Case) -> None:
    stained = draw_ihc(case.block, UNTIED, z_um=10.0).write(case.folder / "untied.ome.tif")
    found = ihc_check(case.prediction, stained, gene=UNTIED)
    assert found.summary["pearson"]["p"] > 0.05
    assert "does not support" in found.summary["verdict"]


@pytest.mark.slow
def test_what_is_written(case: Case, checked: IHCResult) -> None:
    out = case.folder / "out"
    assert sorted(p.name for p in out.iterdir()) == ["genes.csv", "ihc.csv", "ihc.json", "ihc.png"]
    saved = json.loads((out / "ihc.json").read_text())
    assert saved == json.loads(json.dumps(checked.summary))
    assert len(saved["provenance"]["inputs"]) == 2
    assert len(pd.read_csv(out / "ihc.csv")) == case.prediction.n_obs
    assert len(pd.read_csv(out / "genes.csv")) == case.prediction.n_vars
    with pytest.raises(InputError, match="already exists"):
        ihc_check(case.file, case.ihc, gene=GENE, out=out)


@pytest.mark.slow
def test_command(case: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("ihc", case.file, case.ihc, "--gene", GENE, "--slide", case.he, "--shifts", 199)
    code, out, err = call(*args, "--out", tmp_path / "out", "--quiet", capsys=capsys)
    assert (code, err) == (0, "")
    assert f"supports the prediction of {GENE}" in out
    assert "(--slide)" in out
    code, _, err = call(*args, "--out", tmp_path / "out", capsys=capsys)
    assert code == 2
    assert "already exists" in err


@pytest.mark.slow
def test_bad_requests_say_what_to_do(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean IMG00"):
        ihc_check(case.file, case.ihc, gene="IMG0001")
    with pytest.raises(InputError, match="no such image"):
        ihc_check(case.file, tmp_path / "none.tif", gene=GENE)
    with pytest.raises(InputError, match=r"must be the \.h5ad"):
        ihc_check(tmp_path / "a.zarr", case.ihc, gene=GENE)
    with pytest.raises(InputError, match="is not a prediction"):
        ihc_check(AnnData(np.zeros((2, 2))), case.ihc, gene=GENE)
    with pytest.raises(InputError, match="--shifts 10"):
        ihc_check(case.file, case.ihc, gene=GENE, settings=IHCSettings(shifts=10))
    Image.new("RGB", (300, 300)).save(tmp_path / "bare.png")
    with pytest.raises(InputError, match="give it with --mpp"):
        ihc_check(case.file, tmp_path / "bare.png", gene=GENE)
    with pytest.raises(InputError, match="give that slide"):
        ihc_check(case.file, case.ihc, gene=GENE, slide=tmp_path / "bare.png")


@pytest.mark.slow
def test_an_he_slide_and_a_foreign_section_are_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="shows no DAB"):
        ihc_check(case.file, case.folder / "block" / "S2" / "image.ome.tif", gene=GENE)
    other = simulate_block(BlockConfig.preset("tiny", seed=5))
    foreign = draw_ihc(other, GENE, z_um=0.0).write(tmp_path / "foreign.ome.tif")
    with pytest.raises(InputError, match="cannot be laid over the H&E"):
        ihc_check(case.file, foreign, gene=GENE)
