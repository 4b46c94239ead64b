"""Kriging: known answers, what reaches how far, honest sd, one prediction path, big data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import check_grad
from scipy.stats import norm

from deepspace.core.config import Config, KrigingConfig, ProbeConfig
from deepspace.core.metrics import pearson
from deepspace.data.splits import SplitOptions, make_folds
from deepspace.data.targets import ExpressionTarget
from deepspace.data.tissue import TissueMask
from deepspace.data.transforms import Null
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models import features
from deepspace.models.baselines import GeneMean
from deepspace.models.calibration import calibrate, left_out
from deepspace.models.covariance import LEVEL, START, Covariance, Patch, fit_covariance, misfit
from deepspace.models.field import Field, Group, Points, Solving, Spots
from deepspace.models.kriging import ImageTerm, Kriging
from deepspace.models.neighbours import NOWHERE, Exact, Nearest, Places
from deepspace.models.probe import Probe
from deepspace.models.registry import MODELS, Workbench
from deepspace.models.turns import NEVER, Turns
from deepspace.registration.stack import identity_stack
from deepspace.workflows.scoring import evaluate_sections
from make_sections import lattice, make_section

GENES = 12
CONFIG = KrigingConfig(components=8)


class Picture:
    """Features of which the first tells the first genes, the same rule on every section."""

    fov_um = 30.0

    def __call__(self, slide: Slide, coords: np.ndarray) -> np.ndarray:
        rng = np.random.default_rng(sum(map(ord, slide.path.stem)))
        return np.sin(coords @ rng.normal(0, 0.05, (2, 6)) + np.arange(6))


def hidden(coords: np.ndarray, z_um: float) -> np.ndarray:
    """Pattern that no image shows, nearly the same on neighbouring sections."""
    return np.sin(coords[:, 0] / 60 + z_um / 200) * np.cos(coords[:, 1] / 70)


def block(tmp_path: Path, names: str = "ABCD", side: int = 12) -> list[Section]:
    """Serial sections: four genes follow the picture, four the hidden pattern, four nothing."""
    sections = []
    for k, name in enumerate(names):
        coords, z_um = lattice(side, 26.0), 20.0 * k
        shape = make_section(tmp_path, name, np.zeros((len(coords), 1)), coords)
        shown = Picture()(shape.slide, coords)[:, 0]
        pattern = np.stack([shown] * 4 + [hidden(coords, z_um)] * 4 + [0 * shown] * 4, axis=1)
        rng = np.random.default_rng(k)
        rest = np.full((len(coords), 1), 3000.0)  # keeps the depth from following the pattern
        counts = rng.poisson(np.hstack([40 * np.exp(0.6 * pattern), rest]))
        section = make_section(tmp_path, name, counts, coords)
        sections.append(replace(section, z_um=z_um))
    return sections


def target(genes: int = GENES) -> ExpressionTarget:
    null = Null(np.full(genes, 1 / genes), 3600.0, 100)
    return ExpressionTarget(tuple(f"G{j}" for j in range(genes)), "log1p_cp10k", null)


def term() -> ImageTerm:
    return ImageTerm(lambda: Probe(Picture(), ProbeConfig()), Picture())


def kriging(sections: list[Section], image: ImageTerm | None = None) -> Kriging:
    return Kriging(image or term(), identity_stack(sections), CONFIG)


def scores(model: Probe | Kriging, section: Section) -> np.ndarray:
    """Mean correlation of the genes that follow the picture, the neighbours, nothing."""
    measured = target().encode(section.require_counts())
    return (
        pearson(measured, model.predict(section.slide, section.coords).mean).reshape(3, 4).mean(1)
    )


def grid_places(n: int, rng: np.random.Generator) -> Places:
    return Places(rng.uniform(0, 900, (n, 3)) * [1, 1, 0.05], rng.integers(0, 3, n))


def a_covariance(**values: float) -> Covariance:
    names = {"steady": 0, "counting": 1, "image": 2, "short": 3, "long": 6}
    log = START.copy()
    for name, value in values.items():
        log[names[name]] = np.log(value)
    return Covariance(log)


# ---- the likelihood


def test_gradient_of_the_likelihood_is_that_of_its_value() -> None:
    rng = np.random.default_rng(0)
    places = grid_places(30, rng)
    patch = Patch.of(
        places.xyz,
        places.home,
        rng.normal(size=(30, 4)),
        rng.uniform(0.5, 2, 30),
        rng.normal(size=(30, 3)),
    )
    log = START + rng.normal(0, 0.3, len(START))
    error = check_grad(lambda x: misfit(x, patch)[0], lambda x: misfit(x, patch)[1], log)
    assert error < 1e-3 * np.abs(misfit(log, patch)[1]).max()


def test_range_and_noise_of_simulated_fields_are_found() -> None:
    rng = np.random.default_rng(1)
    xyz = np.concatenate([np.c_[lattice(16, 100.0), np.full(256, z)] for z in (0.0, 20.0)])
    places = Places(xyz, np.repeat([0, 1], 256))
    true = Covariance(np.log([0.2, 0.1, 1e-6, 1e-6, 150, 40, 0.7, 500.0, 60.0]))
    factor = Exact(places, true.noise(np.ones(512)), true).factor
    values = factor @ rng.normal(size=(512, 12))
    patch = Patch.of(xyz, places.home, np.zeros((512, 0)), np.ones(512), values)
    found = fit_covariance([patch])
    plane, depth = np.array([0.0, 0.0, 200.0, 500.0]), np.array([0.0, 20.0, 0.0, 20.0])
    np.testing.assert_allclose(found.spatial(plane, depth), true.spatial(plane, depth), atol=0.12)
    assert found.noise(np.ones(1))[0] == pytest.approx(0.3, rel=0.15)


def test_components_without_structure_are_not_forced_to_have_one() -> None:
    rng = np.random.default_rng(2)
    xyz = np.c_[lattice(16, 100.0), np.zeros(256)]
    values = rng.normal(size=(256, 12))
    patch = Patch.of(xyz, np.zeros(256, int), np.zeros((256, 0)), np.ones(256), values)
    assert fit_covariance([patch]).sill < 0.05


def test_a_deep_spot_weighs_more_than_a_shallow_one() -> None:
    covariance = a_covariance(counting=1.0)
    spots = Places(np.array([[-50.0, 0, 0], [50.0, 0, 0]]), np.array([0, 1]))
    noise = covariance.noise(np.array([0.1, 10.0]))
    middle = Places(np.zeros((1, 3)), np.array([NOWHERE]))
    deep, shallow = Exact(spots, noise, covariance).weights(middle).weights[0]
    assert deep > 3 * shallow > 0


# ---- exact and nearest neighbours


def test_all_neighbours_are_the_exact_answer() -> None:
    rng = np.random.default_rng(3)
    spots, points = grid_places(40, rng), grid_places(15, rng)
    covariance, noise = a_covariance(), rng.uniform(0.2, 1.0, 40)
    exact = Exact(spots, noise, covariance).weights(points)
    near = Nearest(spots, noise, covariance, m=40).weights(points)
    values = rng.normal(size=(40, 2))
    np.testing.assert_allclose(near.of(values), exact.of(values), atol=1e-8)
    np.testing.assert_allclose(near.variance, exact.variance, atol=1e-8)
    np.testing.assert_allclose(near.reach, exact.reach)


def test_weights_are_those_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(4)
    spots, point = grid_places(6, rng), grid_places(1, rng)
    covariance, noise = a_covariance(), np.full(6, 0.5)
    both = Places(np.concatenate([spots.xyz, point.xyz]), np.concatenate([spots.home, point.home]))
    apart = np.linalg.norm(both.xyz[:, None, :2] - both.xyz[None, :, :2], axis=-1)
    total = covariance.spatial(apart, np.abs(both.xyz[:, None, 2] - both.xyz[None, :, 2]))
    total += LEVEL * (both.home[:, None] == both.home)
    known = total[:6, :6] + 0.5 * np.eye(6)
    found = Exact(spots, noise, covariance).weights(point)
    np.testing.assert_allclose(found.weights[0], np.linalg.solve(known, total[:6, 6]))
    conditional = total[6, 6] - total[6, :6] @ np.linalg.solve(known, total[:6, 6])
    np.testing.assert_allclose(found.variance[0], conditional)


def test_few_neighbours_come_close_to_all() -> None:
    rng = np.random.default_rng(5)
    spots = Places(np.c_[lattice(20, 100.0), np.zeros(400)], np.zeros(400, int))
    covariance = a_covariance(long=0.5)
    noise = covariance.noise(np.ones(400))
    seen = rng.normal(size=(400, 3))
    values = Exact(spots, noise, covariance).factor @ rng.normal(size=(400, 4))
    values += seen @ np.array([[1.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 1]])
    data = Spots(np.zeros(400, int), spots, np.ones(400), seen, values)
    group = [Group(slice(0, 4), np.ones(4), replace(covariance, log=covariance.log))]
    points = Points(0, Places(spots.xyz + 33.0 * np.array([1, 1, 0]), spots.home), seen)
    all_of = Field(data, group, Solving(1000, 10)).at(points)
    nearest = Field(data, group, Solving(10, 48)).at(points)
    assert pearson(all_of.mean, nearest.mean).min() > 0.995
    assert np.median(nearest.variance / all_of.variance) == pytest.approx(1.0, abs=0.1)


# ---- the model


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Section], Kriging]:
    sections = block(tmp_path_factory.mktemp("block"))
    model = kriging(sections).fit([s for s in sections if s.section != "C"], target())
    return sections, model


def test_each_group_of_genes_is_told_by_what_tells_it(
    fitted: tuple[list[Section], Kriging],
) -> None:
    sections, model = fitted
    training = [s for s in sections if s.section != "C"]
    without = kriging(sections, ImageTerm(GeneMean, constant=True)).fit(training, target())
    image, neighbours, fused = (scores(m, sections[2]) for m in (model.image, without, model))
    assert image[0] > 0.7
    assert abs(image[1]) < 0.3
    assert neighbours[1] > 0.7
    assert neighbours[0] < 0.4
    assert fused[0] > image[0] - 0.03
    assert fused[1] > neighbours[1] - 0.03
    assert abs(fused[2]) < 0.2


def test_out_of_reach_it_is_the_image_term(
    fitted: tuple[list[Section], Kriging], tmp_path: Path
) -> None:
    sections, model = fitted
    slide, coords = sections[2].slide, sections[2].coords
    alone = model.image.predict(slide, coords)
    far = model.predict_at_depth(slide, coords, 1e6)
    np.testing.assert_array_equal(far.mean, alone.mean)
    wide = model.calibration.image_factor
    assert (wide >= 1).all()
    np.testing.assert_allclose(far.sd, alone.sd * wide, rtol=1e-12)
    stranger = make_section(tmp_path, "Z", np.zeros((4, GENES)), lattice(2)).slide
    np.testing.assert_array_equal(
        model.predict(stranger, lattice(2)).mean, model.image.predict(stranger, lattice(2)).mean
    )
    assert np.abs(model.predict(slide, coords).mean - alone.mean).max() > 0.1


def test_sd_grows_with_the_distance_to_what_was_measured(
    fitted: tuple[list[Section], Kriging],
) -> None:
    sections, model = fitted
    slide, coords = sections[2].slide, sections[2].coords
    alone = model.image.predict(slide, coords)
    steps = [model.predict_at_depth(slide, coords, z) for z in (60.0, 120.0, 300.0, 1e6)]
    for name in ("sd", "sd_latent"):
        means = [getattr(step, name)[:, 4:8].mean() for step in steps]
        assert np.all(np.diff(means) >= -1e-9)
        assert means[0] < 0.9 * means[-1]
        wide = model.calibration.image_factor
        assert means[-1] == pytest.approx((getattr(alone, name) * wide)[:, 4:8].mean())
    assert (steps[0].sd > steps[0].sd_latent).all()


def test_a_prediction_does_not_depend_on_the_other_points(
    fitted: tuple[list[Section], Kriging],
) -> None:
    sections, model = fitted
    whole = model.predict(sections[2].slide, sections[2].coords)
    some = model.predict(sections[2].slide, sections[2].coords[[7, 3]])
    np.testing.assert_allclose(some.mean, whole.mean[[7, 3]], rtol=1e-10)
    np.testing.assert_allclose(some.sd, whole.sd[[7, 3]], rtol=1e-10)


def test_a_saved_model_predicts_the_same(fitted: tuple[list[Section], Kriging]) -> None:
    sections, model = fitted
    values, arrays = model.state()
    again = Kriging(term(), None, CONFIG).restore(model.target, values, arrays)
    one, other = (m.predict(sections[2].slide, sections[2].coords) for m in (model, again))
    # values are kept in single precision
    np.testing.assert_allclose(other.mean, one.mean, atol=1e-5)
    np.testing.assert_allclose(other.sd, one.sd, rtol=1e-5)


def test_counts_of_a_section_that_is_held_out_are_not_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = TissueMask(np.ones((1, 1), bool), 400.0)
    monkeypatch.setattr(features, "tissue_mask", lambda slide: everywhere)
    sections = block(tmp_path, "ABC", side=8)
    noise = sections[1].require_counts().copy()
    noise.X = noise.X[::-1].copy()
    shuffled = [sections[0], replace(sections[1], counts=noise), sections[2]]
    config = Config().with_values(
        target={"genes": "G0,G4", "context": 0},
        encoder={"name": "colour", "fov_um": (40.0,)},
        split={"how": "section"},
    )
    bench = replace(Workbench.of(config), stack=identity_stack(sections))
    one, other = (evaluate_sections(s, [bench], ["kriging"]) for s in (sections, shuffled))
    for found in (one, other):
        assert found.held_out["B"].fold.max() == 2
    for model, values in one.held_out["B"].predicted.items():
        if model.startswith("kriging"):
            np.testing.assert_array_equal(values, other.held_out["B"].predicted[model])
    assert (one.held_out["B"].measured != other.held_out["B"].measured).any()


def test_any_predictor_can_be_the_image_term(tmp_path: Path) -> None:
    sections = block(tmp_path)
    training = [s for s in sections if s.section != "C"]
    model = kriging(sections, ImageTerm(lambda: Probe(Picture(), ProbeConfig()))).fit(
        training, target()
    )
    found = scores(model, sections[2])
    assert found[0] > 0.7
    assert found[1] > 0.5


def test_one_section_is_filled_from_its_own_spots(tmp_path: Path) -> None:
    section = block(tmp_path, "A", side=14)[0]
    rows = np.zeros(len(section.coords), dtype=bool)
    rows[5::7] = True
    model = Kriging(term(), None, CONFIG).fit([section.subset(~rows)], target())
    measured = target().encode(section.require_counts())[rows]
    found = pearson(measured, model.predict(section.slide, section.coords[rows]).mean)
    alone = pearson(measured, model.image.predict(section.slide, section.coords[rows]).mean)
    assert found[4:8].mean() > alone[4:8].mean() + 0.2
    assert model.calibration.held_out > 1


def test_on_a_shared_scan_no_level_is_taken_for_known(tmp_path: Path) -> None:
    whole = block(tmp_path, "A", side=12)[0]
    left = whole.coords[:, 0] < np.median(whole.coords[:, 0])
    parts = [
        replace(whole.subset(left), section="L", z_um=None),
        replace(whole.subset(~left), section="R", z_um=None),
    ]
    alone = Kriging(term(), None, CONFIG).fit(parts[:1], target())
    shared = Kriging(term(), identity_stack(parts), CONFIG).fit(parts[:1], target())
    assert alone._home(whole.slide) == 0
    assert shared._home(whole.slide) == NOWHERE
    # a level that is not known is the more doubtful one
    other = Kriging(term(), identity_stack(parts), CONFIG).fit(parts, target())
    other.between = np.ones(GENES)
    found = other.predict(whole.slide, whole.coords)
    assert (found.sd_latent > 0.7).all()


# ---- calibration


def test_calibrated_intervals_hold_on_new_sections() -> None:
    rng = np.random.default_rng(6)
    spread = np.array([[0.8, 2.5]] * 3).repeat(20, axis=1)  # sd is wrong differently by gene
    spread *= np.array([0.9, 1.0, 1.1])[:, None]  # and by section

    def draw(rows: int) -> np.ndarray:
        return np.concatenate([rng.normal(0, s, (rows, 40)) for s in spread])

    sd, held_out = np.ones((900, 40)), np.repeat([0, 1, 2], 300)
    by = np.repeat([0.0, 1.0], 20)
    found = calibrate(draw(300), sd, held_out, by)
    assert found.held_out == 3
    inside = np.abs(draw(300)) < norm.ppf(0.95) * found.factor
    assert 0.87 < inside[:, :20].mean() < 0.93
    assert 0.87 < inside[:, 20:].mean() < 0.93
    assert "3 held-out" in found.describe()


def test_left_out_predictions_come_from_predictors_that_did_not_see_them(tmp_path: Path) -> None:
    sections = block(tmp_path, "ABC", side=6)
    folds = make_folds(sections, "section", SplitOptions())
    parts = left_out(GeneMean, sections, target(), folds)
    values = {s.section: target().encode(s.require_counts()) for s in sections}
    for part in parts:
        others = [v.mean(axis=0) for k, v in values.items() if k != part.section.section]
        np.testing.assert_allclose(part.prediction.mean[0], np.mean(others, axis=0))
    assert [p.section.section for p in parts] == ["A", "B", "C"]


# ---- from the table of models


def test_every_model_stands_beside_the_neighbours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = TissueMask(np.ones((1, 1), bool), 400.0)
    monkeypatch.setattr(features, "tissue_mask", lambda slide: everywhere)
    sections = block(tmp_path, "ABC", side=8)
    config = Config().with_values(
        target={"genes": "G4,G5,G6,G7", "context": 0},
        encoder={"name": "colour", "fov_um": (40.0,)},
        kriging={"components": 4},
    )
    bench = replace(Workbench.of(config), stack=identity_stack(sections))
    own = evaluate_sections(sections, [bench], ["kriging", "probe"]).summary["models"]
    assert own["kriging (colour)"]["mean_pearson"] > own["probe (colour)"]["mean_pearson"]
    assert own["kriging without image"]["mean_pearson"] > own["probe (colour)"]["mean_pearson"]
    assert isinstance(MODELS["kriging"](bench), Kriging)


@pytest.mark.parametrize(("serial", "groups"), [(True, 3), (False, 3)])
def test_sections_are_calibrated_on_whether_serial_or_not(
    tmp_path: Path, serial: bool, groups: int
) -> None:
    sections = block(tmp_path, "ABC", side=10)
    if not serial:
        sections = [replace(s, patient=s.section, z_um=None) for s in sections]
    model = kriging(sections).fit(sections, target())
    assert model.calibration.held_out == groups
    assert (model.calibration.factor != 1.0).all()


def test_turns_leave_out_sections_of_blocks_and_regions_of_lonely_sections() -> None:
    rng = np.random.default_rng(0)
    home = np.repeat([0, 1, 2, 3], [40, 40, 80, 20])
    places = Places(rng.uniform(0, 900, (180, 3)), home)
    number = np.repeat([0, 0, 1, 2], [40, 40, 80, 20])
    spots = Spots(number, places, np.ones(180), np.zeros((180, 0)), np.zeros((180, 1)))
    turns = Turns.of(spots, np.arange(180), 0)
    assert set(zip(home, turns.group, strict=True)) == {(0, 0), (1, 1), (2, 2), (3, NEVER)}
    np.testing.assert_array_equal(turns.whole, home < 2)
    for train, out in turns:
        assert not set(train) & set(turns.rows[out])
        for k in (0, 1):  # all or nothing of a section that others of its block can tell
            assert out[home == k].all() or not out[home == k].any()
        assert 0 < out[home == 2].sum() < 80 or not out[home == 2].any()
    lonely = Turns.of(spots[np.flatnonzero(home == 2)], np.arange(80), 0)
    assert len(np.unique(lonely.group)) == len(list(lonely)) == 4


def test_a_tiny_section_is_fitted_without_calibration(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    section = block(tmp_path, "A", side=5)[0]
    model = Kriging(ImageTerm(GeneMean, constant=True), None, CONFIG).fit([section], target())
    assert model.calibration.held_out == 0
    assert "not calibrated" in caplog.text
