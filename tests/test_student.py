"""Noisy Student for the probe: what tiles teach, what the gate refuses, what it never sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree

from deepspace.core.config import ProbeConfig, TargetConfig
from deepspace.core.errors import InputError
from deepspace.core.metrics import pearson
from deepspace.data.splits import Fold
from deepspace.data.targets import Target, fit_target
from deepspace.data.tissue import TissueMask
from deepspace.io.section import Section
from deepspace.io.slide import Slide
from deepspace.models import student as module
from deepspace.models import unlabelled
from deepspace.models.probe import Probe
from deepspace.models.ridge import InnerFold
from deepspace.models.student import (
    ProbeStudent,
    Pull,
    Pupil,
    StudentConfig,
    Unlabelled,
    gap_points,
    tissue_points,
)
from deepspace.models.unlabelled import Tiles, thinned
from make_sections import lattice, make_section

SLOW_FEATURES, FAST_FEATURES = 4, 60
PITCH = 26.0
STUDENT = StudentConfig(radius_um=20.0)


class Waves:
    """Features that vary slowly over the tissue, and many that do not carry over to neighbours."""

    fov_um = 30.0

    def __call__(self, slide: Slide, coords: np.ndarray) -> np.ndarray:
        seed = sum(map(ord, slide.path.stem))
        rng = np.random.default_rng(seed)
        slow = np.sin(coords @ rng.normal(0, 0.02, (2, SLOW_FEATURES)) + np.arange(SLOW_FEATURES))
        # a fixed function of the point that looks like white noise
        fast = np.sin(coords @ rng.normal(0, 90.0, (2, FAST_FEATURES)))
        return np.hstack([slow, fast]) * np.sqrt(2)


@pytest.fixture(autouse=True)
def _tissue_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pictures of these sections are no tissue; simulated ones are tested by themselves."""
    everywhere = TissueMask(np.ones((1, 1), bool), 400.0)
    monkeypatch.setattr(unlabelled, "tissue_mask", lambda slide: everywhere)


def made(folder: Path, name: str, seed: int) -> Section:
    """196 spots; five genes follow the slow features, with the noise of few counts."""
    rng = np.random.default_rng(seed)
    weights = np.random.default_rng(11).normal(0, 0.35, (SLOW_FEATURES, 5))
    coords = lattice(14, PITCH)
    empty = make_section(folder, name, np.zeros((196, 1)), coords)
    rate = np.exp(Waves()(empty.slide, coords)[:, :SLOW_FEATURES] @ weights) * 4
    counts = np.hstack([rng.poisson(rate), np.full((196, 1), 500)])
    return replace(make_section(folder, name, counts, coords), spot_pitch_um=PITCH)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("student")
    return [made(folder, name, seed) for seed, name in enumerate("ABC")]


@pytest.fixture(scope="module")
def target(sections: list[Section]) -> Target:
    return fit_target(sections, TargetConfig(genes="G0,G1,G2,G3,G4", context=0))


def few(section: Section, spots: int = 60) -> Section:
    """The section with some of its spots measured, chosen at random."""
    mask = np.zeros(len(section.coords), bool)
    mask[np.random.default_rng(0).permutation(len(mask))[:spots]] = True
    return section.subset(mask)


def student(config: StudentConfig = STUDENT, **others: Any) -> ProbeStudent:
    return ProbeStudent(Waves(), ProbeConfig(), config, **others)


def correlation(model: Probe, section: Section, target: Target) -> float:
    found = model.predict(section.slide, section.coords).mean
    return float(pearson(target.encode(section.require_counts()), found).mean())


# --- where the tiles are


def test_gap_points_lie_between_the_spots_and_near_measured_ones(sections: list[Section]) -> None:
    section = sections[0].subset(sections[0].coords[:, 0] < 150)
    points = gap_points(section, tiles=10_000, seed=0)
    assert len(points) > 100
    to_any, _ = cKDTree(sections[0].coords).query(points)
    to_measured, _ = cKDTree(section.coords).query(points)
    # the diameter of these spots is not known: half a pitch stands in
    assert to_any.min() >= PITCH / 4
    assert to_measured.max() <= PITCH


def test_fewer_spots_have_a_subset_of_the_gap_points(sections: list[Section]) -> None:
    everything = gap_points(sections[0], tiles=10_000, seed=0)
    some = gap_points(few(sections[0]), tiles=10_000, seed=0)
    assert 0 < len(some) < len(everything)
    assert set(map(tuple, some)) < set(map(tuple, everything))


def test_gap_points_are_limited_whole_cells_at_a_time(sections: list[Section]) -> None:
    chosen = gap_points(sections[0], tiles=60, seed=1)
    assert len(chosen) == 60
    np.testing.assert_array_equal(chosen, gap_points(sections[0], tiles=60, seed=1))
    assert not np.array_equal(chosen, gap_points(sections[0], tiles=60, seed=2))
    # random points would mostly be alone; those of whole cells are not
    neighbours = cKDTree(chosen).query(chosen, k=2)[0][:, 1]
    assert np.mean(neighbours <= PITCH / 2 + 1e-6) > 0.9


def test_pitch_is_told_by_the_spots_where_the_platform_does_not(sections: list[Section]) -> None:
    unknown = replace(few(sections[0]), spot_pitch_um=None)
    known = few(sections[0])
    np.testing.assert_allclose(
        gap_points(unknown, tiles=999, seed=0), gap_points(known, tiles=999, seed=0)
    )


def test_tissue_points_of_an_unmeasured_slide(sections: list[Section]) -> None:
    points = tissue_points(sections[0].slide, 20.0, tiles=100_000, seed=0)
    assert len(points) == 400  # 400 um by 400 um
    assert len(tissue_points(sections[0].slide, 20.0, tiles=50, seed=0)) == 50


def test_all_points_are_kept_where_there_is_room() -> None:
    points = lattice(4)
    np.testing.assert_array_equal(thinned(points, 20.0, 16, 0), points)


def test_tiles_average_over_neighbours_and_lone_tiles_are_left_out() -> None:
    coords = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [500.0, 0.0]])
    x = np.array([[3.0], [6.0], [12.0], [99.0]])
    tiles = Tiles.of(x, coords, 10.0)
    assert tiles is not None
    np.testing.assert_allclose(tiles.x.ravel(), [-4.0, -1.0, 5.0])
    np.testing.assert_allclose(tiles.near @ np.array([3.0, 6.0, 12.0]), [6.0, 7.5, 6.0])
    assert Tiles.of(x, coords, 9.0) is None


# --- what they teach


def test_lesson_and_residual_minimise_the_stated_objective() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(30, 5)), rng.normal(size=(30, 2))
    U, P, w = rng.normal(size=(50, 5)), rng.normal(size=(50, 2)), rng.uniform(0.1, 1, 50)
    tiles = [Tiles(part, None, None) for part in (U[:20], U[20:])]  # type: ignore[arg-type]
    a, strength = 7.0, 3.0
    lesson = Pull.of(tiles, w, strength).lesson(P)
    ((x, y),) = lesson.residual([(X, Y)])
    found = lesson.learnt(np.linalg.solve(x.T @ x + a * np.eye(5), x.T @ y))
    covariance = (U.T * w) @ U / w.sum()
    pull = a * strength / (np.trace(covariance) / 5) / w.sum()
    expected = np.linalg.solve(
        X.T @ X + a * np.eye(5) + pull * (U.T * w) @ U, X.T @ Y + pull * (U.T * w) @ P
    )
    np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_student_learns_what_carries_over_to_neighbours(
    sections: list[Section], target: Target
) -> None:
    """Few labels: features that neighbours do not share fool the teacher, less so the student."""
    unseen, training = sections[2], [few(sections[0])]
    teacher = Probe(Waves(), ProbeConfig()).fit(training, target)
    model = student().fit(training, target)
    assert model.gate["kept"] == "student"
    gain = correlation(model, unseen, target) - correlation(teacher, unseen, target)
    assert gain > 0.02
    fast = np.abs(model.coefficients[SLOW_FEATURES:]).mean()
    slow = np.abs(model.coefficients[:SLOW_FEATURES]).mean()
    before = np.abs(teacher.coefficients[SLOW_FEATURES:]).mean()
    assert fast / slow < 0.7 * before / np.abs(teacher.coefficients[:SLOW_FEATURES]).mean()


@pytest.mark.parametrize("labels", ["permuted", "random"])
def test_controls_gain_nothing(sections: list[Section], target: Target, labels: Any) -> None:
    unseen, training = sections[2], [few(sections[0])]
    control = student(STUDENT.model_copy(update={"labels": labels})).fit(training, target)
    assert control.gate["kept"] == "student"  # no gate, or there would be nothing to compare
    teacher = Probe(Waves(), ProbeConfig()).fit(training, target)
    assert correlation(control, unseen, target) < correlation(teacher, unseen, target) + 0.005
    true = student().fit(training, target)
    assert correlation(control, unseen, target) < correlation(true, unseen, target) - 0.02


@pytest.mark.parametrize("option", ["confidence", "balance"])
def test_weights_change_the_student_and_not_its_gain(
    sections: list[Section], target: Target, option: str
) -> None:
    unseen, training = sections[2], [few(sections[0])]
    plain = student().fit(training, target)
    weighted = student(STUDENT.model_copy(update={option: True})).fit(training, target)
    assert not np.array_equal(weighted.coefficients, plain.coefficients)
    teacher = Probe(Waves(), ProbeConfig()).fit(training, target)
    assert correlation(weighted, unseen, target) > correlation(teacher, unseen, target)


def test_pool_of_an_unmeasured_section_teaches_as_well(
    sections: list[Section], target: Target
) -> None:
    training, other = [few(sections[0])], sections[1]
    pool = [Unlabelled(other.slide, tissue_points(other.slide, 13.0, tiles=900, seed=0))]
    config = STUDENT.model_copy(update={"sources": ("sections",)})
    model = student(config, pool=pool).fit(training, target)
    teacher = Probe(Waves(), ProbeConfig()).fit(training, target)
    assert correlation(model, sections[2], target) > correlation(teacher, sections[2], target)


# --- the gate


def noise(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 30 * rng.normal(size=labels.shape)


def test_gate_keeps_the_teacher_when_pseudo_labels_are_noise(
    sections: list[Section],
    target: Target,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(module.LABELS, "teacher", noise)
    with caplog.at_level("INFO", logger="deepspace"):
        model = student().fit(sections[:2], target)
    assert model.gate["kept"] == "teacher"
    assert model.gate["student"] < model.gate["teacher"]
    assert "teacher kept" in caplog.text
    teacher = Probe(Waves(), ProbeConfig()).fit(sections[:2], target)
    points = sections[2].slide, sections[2].coords
    for name, value in vars(teacher.predict(*points)).items():
        np.testing.assert_array_equal(getattr(model.predict(*points), name), value)


def test_without_a_gate_noise_is_believed(
    sections: list[Section], target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(module.LABELS, "teacher", noise)
    model = student(STUDENT.model_copy(update={"gate": False})).fit(sections[:2], target)
    assert model.gate["kept"] == "student"


def test_gate_tells_the_correlation_of_the_teacher(sections: list[Section], target: Target) -> None:
    """The teacher's score is what a probe of the other section reaches, but for its penalty."""
    model = student().fit(sections[:2], target)
    one = Probe(Waves(), ProbeConfig()).fit(sections[:1], target)
    two = Probe(Waves(), ProbeConfig()).fit(sections[1:2], target)
    crossed = (correlation(one, sections[1], target) + correlation(two, sections[0], target)) / 2
    assert model.gate["teacher"] == pytest.approx(crossed, abs=0.05)


# --- what validation never sees


@pytest.mark.parametrize("training", [1, 2])
def test_validation_holds_measurements_alone_and_no_tile_lies_in_it(
    sections: list[Section], target: Target, monkeypatch: pytest.MonkeyPatch, training: int
) -> None:
    """Sections are left out of two, blocks of one."""
    scored: list[list[InnerFold]] = []
    seen: list[tuple[Fold, list[Tiles]]] = []
    score, tiles_of = module._score, ProbeStudent._seen_in

    def spy_score(folds: list[InnerFold], pupils: list[Pupil], names: int) -> float:
        scored.append(folds)
        return score(folds, pupils, names)

    def spy_tiles(self: ProbeStudent, fold: Fold) -> list[Tiles]:
        seen.append((fold, tiles_of(self, fold)))
        return seen[-1][1]

    monkeypatch.setattr(module, "_score", spy_score)
    monkeypatch.setattr(ProbeStudent, "_seen_in", spy_tiles)
    student().fit(sections[:training], target)
    assert len(scored) == 2
    by_name = {s.section: s for s in sections}
    for (fold, tiles), inner in zip(seen, scored[1], strict=True):
        assert tiles
        for (name, rows), (_, y) in zip(fold.test.items(), inner.test, strict=True):
            base = fold.train.get(name, rows)
            measured = target.encode(by_name[name].require_counts())
            np.testing.assert_allclose(y, measured[rows] - measured[base].mean(axis=0))
            for own in (t for t in tiles if t.section == name):
                distance, _ = cKDTree(by_name[name].coords[rows]).query(own.coords)
                assert distance.min() > PITCH / 2
        assert {t.section for t in tiles} <= set(fold.train)


# --- what every predictor promises


def test_same_seed_same_student(sections: list[Section], target: Target) -> None:
    first, second = (student(seed=5).fit(sections[:1], target) for _ in range(2))
    np.testing.assert_array_equal(first.coefficients, second.coefficients)
    assert first.gate == second.gate


def as_probe() -> Probe:
    return Probe(Waves(), ProbeConfig())


@pytest.mark.parametrize("make", [student, as_probe])
def test_saved_student_predicts_the_same(
    sections: list[Section], target: Target, make: Callable[[], Probe]
) -> None:
    """Also as a probe: it needs neither the tiles nor this class."""
    model = student().fit(sections[:1], target)
    values, arrays = model.state()
    again = make().restore(target, values, arrays)
    points = sections[2].slide, sections[2].coords
    for name, value in vars(model.predict(*points)).items():
        np.testing.assert_array_equal(getattr(again.predict(*points), name), value)
    if isinstance(again, ProbeStudent):
        assert again.gate == model.gate


def test_points_are_independent(sections: list[Section], target: Target) -> None:
    model = student().fit(sections[:1], target)
    slide, coords = sections[2].slide, sections[2].coords
    together = model.predict(slide, coords)
    for row in (0, 77):
        alone = model.predict(slide, coords[row : row + 1])
        np.testing.assert_allclose(alone.mean[0], together.mean[row], rtol=1e-10)
        np.testing.assert_allclose(alone.sd[0], together.sd[row], rtol=1e-10)


def test_stated_spread_covers_what_is_measured(sections: list[Section], target: Target) -> None:
    model = student().fit(sections[:2], target)
    assert model.gate["kept"] == "student"
    unseen = sections[2]
    found = model.predict(unseen.slide, unseen.coords)
    z = (target.encode(unseen.require_counts()) - found.mean) / found.sd
    assert 0.8 < z.std() < 1.25
    assert (found.sd_latent < found.sd).all()


def test_clusters_have_a_student_too(sections: list[Section]) -> None:
    config = TargetConfig(kind="clusters", genes="G0,G1,G2,G3,G4", n_clusters=3)
    target = fit_target(sections[:2], config)
    model = student(StudentConfig(radius_um=20.0, gate=False)).fit(sections[:2], target)
    found = target.decode(model.predict(sections[2].slide, sections[2].coords).mean)
    assert found.shape == (196, 3)
    np.testing.assert_allclose(found.sum(axis=1), 1.0)
    truth = target.encode(sections[2].require_counts()).argmax(axis=1)
    most = np.bincount(truth).max() / len(truth)
    assert np.mean(found.argmax(axis=1) == truth) > most


def test_genes_learnt_along_do_not_count_at_the_gate(sections: list[Section]) -> None:
    narrow = fit_target(sections, TargetConfig(genes="G0,G1", context=6))
    assert len(narrow.wide.names) > 2
    model = student().fit(sections[:2], narrow)
    assert model.predict(sections[2].slide, sections[2].coords).mean.shape == (196, 2)
    assert model.gate["teacher"] == pytest.approx(
        np.mean(
            [
                correlation(Probe(Waves(), ProbeConfig()).fit([a], narrow), b, narrow)
                for a, b in ((sections[0], sections[1]), (sections[1], sections[0]))
            ]
        ),
        abs=0.05,
    )


def test_tiles_without_neighbours_are_refused(sections: list[Section], target: Target) -> None:
    with pytest.raises(InputError, match="radius_um"):
        student(StudentConfig(radius_um=5.0)).fit(sections[:1], target)
    with pytest.raises(InputError, match="no two unlabelled tiles"):
        student(STUDENT.model_copy(update={"sources": ("sections",)})).fit(sections[:1], target)
