"""Ridge in closed form against scikit-learn, and what the probe promises."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from deepspace.core.config import ProbeConfig, TargetConfig
from deepspace.core.metrics import pearson
from deepspace.data.splits import widest_step
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models.baselines import GeneMean, NearestSpot, ShuffledProbe
from deepspace.models.probe import Probe
from deepspace.models.ridge import (
    Gram,
    InnerFold,
    Spectrum,
    held_out_errors,
    principal_components,
    total_gram,
)
from make_sections import lattice, make_section

FEATURES = 12


class TableExtractor:
    """Features that are a fixed function of the slide and the point."""

    fov_um = 10.0

    def __call__(self, slide: Slide, coords: np.ndarray) -> np.ndarray:
        waves = np.random.default_rng(7).normal(0, 0.02, (2, FEATURES))
        shift = sum(map(ord, slide.path.stem))
        return np.sin(coords @ waves + np.arange(FEATURES) * shift)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    """G0 to G4 follow features, G5 to G9 follow nothing; depth differs between sections."""
    folder, rng = tmp_path_factory.mktemp("probe"), np.random.default_rng(3)
    weights = np.hstack([rng.normal(0, 0.5, (FEATURES, 5)), np.zeros((FEATURES, 6))])
    made = []
    for depth, name in ((1.0, "A"), (2.0, "B"), (0.7, "C")):
        coords = lattice(14) + rng.uniform(-3, 3, (196, 2))
        empty = make_section(folder, name, np.zeros((196, 1)), coords)
        rate = np.exp(TableExtractor()(empty.slide, coords) @ weights) * 20 * depth
        rate[:, -1] = 2000 * depth
        made.append(make_section(folder, name, rng.poisson(rate), coords))
    return made


TARGET = TargetConfig(genes="G0,G1,G2,G3,G4,G5,G6,G7,G8,G9")


def test_path_equals_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(40, 6)), rng.normal(size=(40, 3))
    X, Y = X - X.mean(0), Y - Y.mean(0)
    spectrum = Spectrum.of(Gram.of(X, Y))
    penalties = np.array([0.01, 1.0, 100.0])
    found = spectrum.coefficients(penalties)
    for j, penalty in enumerate(penalties):
        ridge = Ridge(alpha=penalty * np.trace(X.T @ X) / 6, fit_intercept=False).fit(X, Y[:, j])
        np.testing.assert_allclose(found[:, j], ridge.coef_, rtol=1e-8)


def test_more_features_than_spots() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(15, 60)), rng.normal(size=(15, 2))
    found = Spectrum.of(Gram.of(X, Y)).coefficients(np.array([0.5, 0.5]))
    ridge = Ridge(alpha=0.5 * np.trace(X.T @ X) / 60, fit_intercept=False).fit(X, Y)
    np.testing.assert_allclose(found.T, ridge.coef_, rtol=1e-6, atol=1e-9)


def test_penalty_is_weak_for_signal_and_strong_for_noise() -> None:
    rng = np.random.default_rng(1)
    groups = []
    for _ in range(3):
        X = rng.normal(size=(100, 10))
        Y = np.stack([X[:, 0] * 5 + rng.normal(0, 0.1, 100), rng.normal(size=100)], axis=1)
        groups.append((X - X.mean(0), Y - Y.mean(0)))
    folds = [InnerFold(groups[:k] + groups[k + 1 :], [groups[k]]) for k in range(3)]
    spectra = [Spectrum.of(total_gram(fold.train)) for fold in folds]
    error = held_out_errors(folds, spectra, [0.001, 0.1, 10.0, 1000.0])
    assert error[:, 0].argmin() == 0
    assert error[:, 1].argmin() >= 2
    np.testing.assert_allclose(error.min(axis=0) / 300, [0.01, 1.0], rtol=0.3)


@pytest.mark.parametrize("spots", [30, 7])
def test_components_are_orthonormal_and_sorted(spots: int) -> None:
    rng = np.random.default_rng(2)
    Y = rng.normal(size=(spots, 8)) * np.arange(1, 9)
    basis = principal_components([(Y[:0], Y[:5]), (Y[:0], Y[5:])], at_most=5)
    np.testing.assert_allclose(basis.T @ basis, np.eye(5), atol=1e-12)
    spread = ((Y @ basis) ** 2).sum(axis=0)
    assert (np.diff(spread) < 0).all()
    np.testing.assert_allclose(spread, np.linalg.svd(Y)[1][:5] ** 2)


@pytest.mark.parametrize("penalty_for", ["component", "gene"])
def test_genes_that_follow_the_image_are_predicted_and_others_not(
    sections: list[Section], penalty_for: Literal["component", "gene"]
) -> None:
    target = fit_target(sections[:2], TARGET)
    config = ProbeConfig(penalty_for=penalty_for)
    probe = Probe(TableExtractor(), config).fit(sections[:2], target)
    unseen = sections[2]
    found = probe.predict(unseen.slide, unseen.coords)
    r = pearson(target.encode(unseen.require_counts()), found.mean)
    assert (r[:5] > 0.6).all()
    assert (np.abs(r[5:]) < 0.3).all()


def test_shuffled_labels_score_nothing_on_average(sections: list[Section]) -> None:
    target = fit_target(sections[:2], TARGET)
    unseen = sections[2]
    measured = target.encode(unseen.require_counts())
    null = []
    for seed in range(20):
        shuffled = ShuffledProbe(TableExtractor(), ProbeConfig(), seed).fit(sections[:2], target)
        null.append(pearson(measured, shuffled.predict(unseen.slide, unseen.coords).mean))
    assert abs(np.mean(null)) < 0.1


def test_sd_covers_unseen_measurements(sections: list[Section]) -> None:
    target = fit_target(sections[:2], TARGET)
    probe = Probe(TableExtractor(), ProbeConfig()).fit(sections[:2], target)
    unseen = sections[2]
    found = probe.predict(unseen.slide, unseen.coords)
    y = target.encode(unseen.require_counts())
    error = (y - y.mean(0)) - (found.mean - found.mean.mean(0))
    inside = (np.abs(error) < 1.645 * found.sd).mean()
    assert 0.8 < inside < 0.97
    assert (found.sd_latent <= found.sd + 1e-12).all()


def test_a_point_does_not_depend_on_the_others(sections: list[Section]) -> None:
    target = fit_target(sections, TARGET)
    probe = Probe(TableExtractor(), ProbeConfig()).fit(sections, target)
    slide, coords = sections[0].slide, sections[0].coords
    whole, part = probe.predict(slide, coords), probe.predict(slide, coords[[5, 3]])
    np.testing.assert_allclose(part.mean, whole.mean[[5, 3]], rtol=1e-12)
    np.testing.assert_allclose(part.sd, whole.sd[[5, 3]], rtol=1e-12)


def test_far_points_are_less_certain(sections: list[Section]) -> None:
    class Strange(TableExtractor):
        def __call__(self, slide: Slide, coords: np.ndarray) -> np.ndarray:
            return super().__call__(slide, coords) * np.where(coords[:, :1] < 0, 30.0, 1.0)

    probe = Probe(Strange(), ProbeConfig()).fit(sections, fit_target(sections, TARGET))
    known = probe.predict(sections[0].slide, sections[0].coords)
    strange = probe.predict(sections[0].slide, -sections[0].coords)
    assert (strange.sd.mean(0) > known.sd.mean(0)).all()


def test_state_round_trip(sections: list[Section]) -> None:
    target = fit_target(sections, TARGET)
    probe = Probe(TableExtractor(), ProbeConfig()).fit(sections, target)
    values, arrays = probe.state()
    again = Probe(TableExtractor(), ProbeConfig()).restore(target, values, arrays)
    slide, coords = sections[1].slide, sections[1].coords
    first, second = probe.predict(slide, coords), again.predict(slide, coords)
    for name in ("mean", "sd", "sd_latent"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))


def test_one_section_is_bridged_by_blocks(sections: list[Section]) -> None:
    assert widest_step(sections) == "section"
    assert widest_step(sections, "patient") == "section"
    assert widest_step(sections[:1]) == "block"
    target = fit_target(sections[:1], TARGET)
    probe = Probe(TableExtractor(), ProbeConfig()).fit(sections[:1], target)
    found = probe.predict(sections[1].slide, sections[1].coords).mean
    r = pearson(target.encode(sections[1].require_counts()), found)
    assert (r[:5] > 0.5).all()


def test_nearest_spot_and_mean(sections: list[Section]) -> None:
    target = fit_target(sections[:2], TARGET)
    slide, coords = sections[0].slide, sections[0].coords
    nearest = NearestSpot().fit(sections[:2], target)
    np.testing.assert_array_equal(
        nearest.predict(slide, coords + 0.5).mean, target.encode(sections[0].require_counts())
    )
    assert np.isnan(nearest.predict(sections[2].slide, coords).mean).all()
    mean = GeneMean().fit(sections[:2], target).predict(slide, coords).mean
    assert (mean == mean[0]).all()


def test_a_shift_between_sections_widens_the_sd(sections: list[Section]) -> None:
    """A gene whose level differs between sections is uncertain on the next one."""
    target = fit_target(sections, TARGET)
    probe = Probe(TableExtractor(), ProbeConfig()).fit(sections, target)
    slide, coords = sections[0].slide, sections[0].coords
    before = probe.predict(slide, coords).sd
    probe.between = probe.between + 1.0
    after = probe.predict(slide, coords).sd
    np.testing.assert_allclose(after**2, before**2 + 1.0)


def test_one_penalty_is_a_path(sections: list[Section]) -> None:
    target = fit_target(sections, TARGET)
    probe = Probe(TableExtractor(), ProbeConfig(penalties=(1.0,))).fit(sections, target)
    assert np.isfinite(probe.predict(sections[0].slide, sections[0].coords).sd).all()
