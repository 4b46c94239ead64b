"""Odd images: distance, calibration, reasons, verdicts on whole slides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageFilter
from scipy import ndimage
from scipy.stats import chi2

from deepspace.core.config import Config
from deepspace.data.image_checks import MEASURES, REASONS, Ranges, measure
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from deepspace.io.slide import open_slide
from deepspace.models.novelty import Novelty, Space, evenly
from deepspace.models.registry import Workbench
from deepspace.models.watch import OWN, Watch, watching
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.novelty import check_points, fit_novelty, slide_verdict

SIDE, UM = 224, 0.67


def groups(seed: int, sections: int = 4, tiles: int = 300, shift: float = 0.0) -> list[NDArray]:
    """Correlated Gaussian features of sections that differ by a random shift."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(12, 12)) * np.geomspace(5, 0.2, 12)[:, None]
    return [
        rng.normal(size=(tiles, 12)) @ mix + shift * rng.normal(size=12) for _ in range(sections)
    ]


def test_distance_follows_the_law_of_gaussian_tiles() -> None:
    rng = np.random.default_rng(1)
    scale = np.r_[10.0, 5.0, np.ones(6)]
    space = Space.of(rng.normal(size=(20000, 8)) * scale + 3.0)
    fresh = space.distance(rng.normal(size=(5000, 8)) * scale + 3.0) ** 2
    # scaling makes all directions alike, so the squared distance is chi squared with 8 degrees
    quantiles = [0.1, 0.5, 0.9, 0.99]
    assert np.quantile(fresh, quantiles) == pytest.approx(chi2(8).ppf(quantiles), rel=0.06)


def test_an_unusual_mixture_of_usual_values_is_far() -> None:
    rng = np.random.default_rng(2)
    common = rng.normal(size=(2000, 1))
    space = Space.of(common + 0.1 * rng.normal(size=(2000, 6)))
    along, across = np.full((1, 6), 1.5), np.tile([1.5, -1.5], 3)[None]
    assert space.distance(along)[0] < 4.0
    assert space.distance(across)[0] > 20.0


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_one_tile_in_twenty_of_a_new_section_is_flagged(shift: float) -> None:
    shares = []
    for seed in range(12):
        *train, new = groups(seed, sections=7, shift=shift)
        found = Novelty.fit(train)
        shares.append((found.distance(new) > 1).mean())
    assert np.mean(shares) == pytest.approx(0.05, abs=0.015)


def test_p_values_are_uniform_and_agree_with_the_limit() -> None:
    *train, new = groups(3, sections=6, tiles=1000)
    found = Novelty.fit(train)
    distance = found.distance(new)
    p = found.p_value(distance)
    assert np.quantile(p, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.05)
    assert ((distance > 1) == (p < 0.05)).mean() > 0.995
    assert p[np.argsort(distance)].tolist() == sorted(p, reverse=True)
    assert (p > 0).all()


def test_sections_weigh_the_same_however_large_they_are() -> None:
    a, b, c = groups(4, sections=3)
    few = Novelty.fit([a, b, c]).limit
    many = Novelty.fit([np.tile(a, (1, 1)), b, np.concatenate([c])]).limit
    assert few == many
    found = Novelty.fit([a, b, c[:30]])
    assert found.weights.sum() == pytest.approx(1.0)
    assert sorted(set(found.weights.round(9)))[-1] == pytest.approx(1 / 90)


def test_sections_that_differ_make_the_verdict_lenient() -> None:
    alike, apart = Novelty.fit(groups(5)), Novelty.fit(groups(5, shift=6.0))
    assert alike.most_odd == pytest.approx(0.1, abs=0.02)
    assert max(apart.shares) > 0.2
    assert apart.most_odd == pytest.approx(0.3)
    assert "4 held-out sections" in alike.basis()
    assert "other patients" in alike.basis()


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_a_distance_never_depends_on_the_other_tiles(seed: int, count: int) -> None:
    tiles = groups(seed, sections=1, tiles=40)[0]
    rows = np.random.default_rng(seed).permutation(40)[:count]
    assert np.array_equal(FITTED.distance(tiles)[rows], FITTED.distance(tiles[rows]))


def test_state_round_trip() -> None:
    values, arrays = FITTED.state()
    back = Novelty.restore(json.loads(json.dumps(values)), arrays)
    tiles = groups(9, sections=1)[0]
    assert np.array_equal(back.distance(tiles), FITTED.distance(tiles))
    assert np.array_equal(
        back.p_value(back.distance(tiles)), FITTED.p_value(FITTED.distance(tiles))
    )
    assert (back.shares, back.held, back.most_odd) == (
        FITTED.shares,
        FITTED.held,
        FITTED.most_odd,
    )


def test_a_feature_without_spread_and_too_few_groups() -> None:
    constant = [np.column_stack([g, np.full(len(g), 7.0)]) for g in groups(6)]
    assert np.isfinite(Novelty.fit(constant).distance(constant[0])).all()
    with pytest.raises(ValueError, match="two"):
        Novelty.fit(groups(6)[:1])
    with pytest.raises(ValueError, match="10"):
        Novelty.fit([*groups(6), groups(6)[0][:3]])
    assert evenly(1, 5).tolist() == [0]


FITTED = Novelty.fit(groups(7))


def he_tile(seed: int, *, density: float = 1.0) -> NDArray[np.uint8]:
    """Pink stroma with dark nuclei of 8 um, some of it pale."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(SIDE, SIDE)), 12)
    eosin = 0.45 + 0.12 * noise / noise.std()
    rows, columns = np.mgrid[:SIDE, :SIDE]
    nuclei = np.zeros((SIDE, SIDE))
    for y, x in rng.uniform(0, SIDE, (90, 2)):
        nuclei = np.maximum(nuclei, np.hypot(rows - y, columns - x) < rng.uniform(4, 7))
    nuclei = ndimage.gaussian_filter(nuclei, 0.7) * (0.8 + 0.2 * rng.random((SIDE, SIDE)))
    stains = np.array([[0.09, 0.85, 0.35], [0.65, 0.70, 0.40]])
    od = density * (np.maximum(eosin, 0.05)[..., None] * stains[0] + nuclei[..., None] * stains[1])
    od += 0.02 * rng.normal(size=od.shape)
    return np.clip(245 * np.exp(-od), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def ranges() -> Ranges:
    tiles = np.stack([he_tile(seed) for seed in range(24)])
    return Ranges.of([measure(tiles[:12], UM), measure(tiles[12:], UM)])


def reason(ranges: Ranges, tile: NDArray[np.uint8]) -> str:
    return str(ranges.reasons(measure(tile[None], UM))[0])


def painted(tile: NDArray[np.uint8], transmitted: tuple[float, float, float]) -> NDArray[np.uint8]:
    out = tile.astype(float)
    out[:, 60:150] *= transmitted
    return out.astype(np.uint8)


def ihc_tile() -> NDArray[np.uint8]:
    nuclei = 1.0 - he_tile(31)[..., 0] / 245.0
    brown = ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(SIDE, SIDE)), 10) > 0.02
    od = nuclei[..., None] * (0.5, 0.55, 0.35) + brown[..., None] * (0.27, 0.57, 0.78)
    return np.clip(245 * np.exp(-od), 0, 255).astype(np.uint8)


MADE = {
    "blur": lambda: ndimage.gaussian_filter(he_tile(30), (3, 3, 0)),
    "ink": lambda: painted(he_tile(30), (0.12, 0.22, 0.72)),
    "dark": lambda: (he_tile(30) * (he_tile(32) / 245.0)).astype(np.uint8),
    "glass": lambda: np.where(np.arange(SIDE)[:, None, None] < 50, he_tile(30), 244).astype(
        np.uint8
    ),
    "ihc": ihc_tile,
    "fine": lambda: np.asarray(
        PillowImage.fromarray(he_tile(30)).filter(ImageFilter.UnsharpMask(1, 400, 0))
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_every_reason_is_named_on_a_made_tile(ranges: Ranges, name: str) -> None:
    assert reason(ranges, MADE[name]()) == name
    assert name in REASONS


def test_a_clean_tile_has_no_reason(ranges: Ranges) -> None:
    assert [reason(ranges, he_tile(seed)) for seed in range(40, 52)].count("other") >= 11


def test_measures_depend_on_the_tile_alone_and_survive_odd_sizes(ranges: Ranges) -> None:
    tiles = np.stack([he_tile(1), MADE["ink"](), np.full((SIDE, SIDE, 3), 255, np.uint8)])
    together = measure(tiles, UM)
    for k in range(3):
        alone = measure(tiles[k : k + 1], UM)
        assert all(np.array_equal(alone[n][0], together[n][k], equal_nan=True) for n in MEASURES)
    assert set(measure(tiles[:, :37, :37], 4.1)) == set(MEASURES)
    assert Ranges.restore(json.loads(json.dumps(ranges.state()))) == ranges


CONFIG = Config().with_values(encoder={"fov_um": (100.0,), "size_px": 112})


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("odd")
    return read_sheet(simulate_block(BlockConfig.preset("tiny", seed=1)).write(folder / "block"))


@pytest.fixture(scope="module")
def watch(block: list[Section]) -> Watch:
    return fit_novelty(block[:-1], Workbench.of(CONFIG))


def blurred(section: Section, folder: Path) -> Section:
    slide = section.slide
    image = PillowImage.fromarray(slide.read(0, 0, slide.width, slide.height))
    path = folder / f"{section.section}-blurred.png"
    image.filter(ImageFilter.GaussianBlur(3.0 / slide.require_mpp())).save(path)
    return replace(section, slide=open_slide(path).with_mpp(slide.require_mpp(), "test"))


@pytest.mark.slow
def test_verdicts_on_a_held_out_section_its_blurred_copy_and_a_wrong_mpp(
    block: list[Section], watch: Watch, tmp_path: Path
) -> None:
    new = block[-1]
    usual = slide_verdict(watch, new.slide)
    assert usual.level == "like"
    assert usual.reason == ""
    soft = slide_verdict(watch, blurred(new, tmp_path).slide)
    assert (soft.level, soft.reason) == ("unlike", "blur")
    assert "out of focus" in soft.sentence
    mpp = new.slide.require_mpp()
    wrong = slide_verdict(watch, new.slide.with_mpp(2 * mpp, "wrong"))
    assert (wrong.level, wrong.reason) == ("unlike", "mpp")
    assert wrong.mpp_like_training == pytest.approx(mpp)
    assert json.loads(json.dumps(soft.record()))["reason"] == "blur"


@pytest.mark.slow
def test_points_are_checked_one_by_one(block: list[Section], watch: Watch, tmp_path: Path) -> None:
    section = blurred(block[-1], tmp_path)
    verdict = slide_verdict(watch, section.slide)
    table = check_points(watch, section.slide, section.coords[:12], verdict)
    assert list(table.columns) == ["ood", "ood_distance", "ood_reason"]
    assert table["ood"].mean() > 0.9
    assert set(table.loc[table["ood"], "ood_reason"]) == {"blur"}
    part = check_points(watch, section.slide, section.coords[[3, 7]], verdict)
    assert part.equals(table.iloc[[3, 7]].reset_index(drop=True))
    assert check_points(watch, section.slide, section.coords[:0], verdict).empty


@pytest.mark.slow
def test_what_is_saved_gives_the_same_answers(block: list[Section], watch: Watch) -> None:
    values, arrays = watch.state()
    back = Watch.restore(json.loads(json.dumps(values)), arrays, Workbench.of(CONFIG))
    section = block[0]
    one, two = (check_points(w, section.slide, section.coords[:5]) for w in (watch, back))
    assert one.equals(two)
    other = Workbench.of(CONFIG.with_values(encoder={"fov_um": (130.0,)}))
    with pytest.raises(ValueError, match="changed"):
        Watch.restore(values, arrays, other)


@pytest.mark.slow
def test_one_section_is_calibrated_on_its_blocks(block: list[Section]) -> None:
    found = fit_novelty(block[:1], Workbench.of(CONFIG)).novelty
    assert found.held == "block"
    assert "one section tells nothing of others" in found.basis()


def test_a_network_is_watched_by_statistics_that_see_blur_and_stain() -> None:
    network = Config().with_values(encoder={"name": "vgg16", "weights": "random:0"})
    assert watching(Workbench.of(network)).encoder.name == OWN.name
    normalised = Config().with_values(encoder={"stain_normalisation": "macenko"})
    assert watching(Workbench.of(normalised)).stain_normalisation == "none"
