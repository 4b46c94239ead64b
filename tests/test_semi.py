"""Noisy Student in a cohort: pools, gains, and students of a fine-tuned network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepspace.core.config import Config, StudentConfig
from deepspace.core.errors import InputError
from deepspace.data.cache import ArrayCache
from deepspace.data.targets import fit_target
from deepspace.io.section import Section
from deepspace.models.cnn import CNN
from deepspace.models.cnn_student import LABELS, CNNStudent, neighbour_mean
from deepspace.models.examples import Pseudo
from deepspace.models.registry import MODELS, Workbench
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows.cohort import read_cohort
from deepspace.workflows.semi import is_control, paired_gains, with_pool, with_teachers

ENCODER = {
    "name": "vgg16",
    "weights": "random:0",
    "size_px": 16,
    "fov_um": (100.0,),
    "layers": (2,),
}


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    config = BlockConfig.preset("tiny", seed=5, unmeasured=("S2",))
    return read_cohort(simulate_block(config).write(tmp_path_factory.mktemp("semi") / "block"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ArrayCache:
    return ArrayCache(tmp_path_factory.mktemp("features"))


def settings(**student: object) -> Config:
    config = Config().with_values(
        target={"genes": "expressed:6", "context": 0},
        encoder=ENCODER,
        cnn={"epochs": 1, "precision": "fp32", "refit": False},
    )
    return config.with_values(student={"rounds": 1, "tiles": 40, **student})


def measured(sections: list[Section]) -> list[Section]:
    return [s for s in sections if s.measured]


def test_a_student_stands_beside_its_teacher_once() -> None:
    assert with_teachers(["probe-student", "probe", "cnn"]) == ["probe", "probe-student", "cnn"]


def test_gain_is_paired_over_sections() -> None:
    scores = pd.DataFrame(
        {
            "model": ["s", "s", "s", "t", "t", "t"],
            "section": ["A", "B", "C"] * 2,
            "pearson": [0.3, 0.5, 0.9, 0.2, 0.5, 0.7],
        }
    )
    (gain,) = paired_gains(scores, [("s", "t")])
    # gains 0.1, 0, 0.2: mean 0.1, sd 0.1, t(2) = 4.3027
    assert gain["gain"] == pytest.approx(0.1)
    assert gain["high"] == pytest.approx(0.1 + 4.3027 * 0.1 / np.sqrt(3), abs=1e-4)
    assert (gain["better"], gain["sections"]) == (2, 3)


def test_gain_is_paired_gene_by_gene() -> None:
    """A gene that one of the two has no score for counts for neither."""
    scores = pd.DataFrame(
        {
            "model": ["t", "t", "s", "s"],
            "section": ["A"] * 4,
            "gene": ["x", "y"] * 2,
            "pearson": [0.3, 0.9, 0.4, np.nan],
        }
    )
    (gain,) = paired_gains(scores, [("s", "t"), ("absent", "t")])
    assert gain["gain"] == pytest.approx(0.1)
    assert (gain["sections"], gain["low"]) == (1, None)


def test_slides_of_measured_sections_are_not_in_the_pool(
    sections: list[Section], tmp_path: Path
) -> None:
    """They may be held out: not even their image may be learnt from."""
    folder = sections[0].slide.path.parent
    images = tmp_path / "images"
    images.mkdir()
    for section in sections:
        (images / f"{section.section}.tif").symlink_to(section.slide.path)
    assert folder.is_dir()
    bench = with_pool(Workbench.of(settings(sources=(str(images),))), sections, ["probe-student"])
    unmeasured = {s.slide.content_hash() for s in sections if not s.measured}
    assert {u.slide.content_hash() for u in bench.pool} == unmeasured


def test_controls_are_known_by_name() -> None:
    assert is_control("cnn-student (vgg16), random labels")
    assert is_control("probe-student (stain), no gate")
    assert not is_control("shuffled labels")


def test_tiles_come_from_unmeasured_sections(sections: list[Section]) -> None:
    bench = with_pool(Workbench.of(settings()), sections, ["probe-student"])
    assert [u.slide.path for u in bench.pool] == [s.slide.path for s in sections if not s.measured]
    assert 0 < len(bench.pool[0].coords) <= 40
    assert with_pool(Workbench.of(settings()), sections, ["probe"]).pool == ()
    gaps = with_pool(Workbench.of(settings(sources=("gaps",))), sections, ["probe-student"])
    assert gaps.pool == ()


def test_faults_of_folders_are_told_together(sections: list[Section], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no slide")
    config = settings(sources=("gaps", str(tmp_path), str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match=r"notes\.txt[\s\S]*nowhere"):
        with_pool(Workbench.of(config), sections, ["cnn-student"])


def test_controls_keep_what_the_labels_are() -> None:
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, 3))
    for control in ("permuted", "random"):
        other = LABELS[control](labels, np.random.default_rng(1))
        assert np.sort(other, axis=0) == pytest.approx(np.sort(labels, axis=0))
        assert not np.array_equal(other, labels)
    rows = {tuple(row) for row in LABELS["permuted"](labels, np.random.default_rng(1))}
    assert rows == {tuple(row) for row in labels}


def test_neighbours_name_a_tile() -> None:
    values = np.array([[1.0], [3.0], [5.0], [9.0]])
    coords = np.array([[0.0, 0.0], [10.0, 0.0], [20.0, 0.0], [90.0, 0.0]])
    assert neighbour_mean(values, coords, 12.0).ravel() == pytest.approx([3.0, 3.0, 3.0, 9.0])


def test_students_learn_from_tiles_and_never_among_the_held_out(
    sections: list[Section], cache: ArrayCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early stopping watches a section: no tile of the search may come from its gaps."""
    seen: list[list[Pseudo]] = []
    fit = CNN.fit

    def spy(self: CNN, spots: list[Section], target: object, pseudo: list[Pseudo] = ()) -> CNN:
        seen.append(list(pseudo))
        return fit(self, spots, target, pseudo)  # type: ignore[arg-type]

    monkeypatch.setattr(CNN, "fit", spy)
    config = settings(sources=("gaps",))
    student = MODELS["cnn-student"](Workbench.of(config, cache))
    assert isinstance(student, CNNStudent)
    known = measured(sections)
    student.fit(known, fit_target(known, config.target))
    watched = known[config.seed % len(known)]
    assert [len(pseudo) for pseudo in seen] == [0, 1]
    assert {p.slide.path for p in seen[1]} == {s.slide.path for s in known if s is not watched}
    weights = np.concatenate([p.weights for p in seen[1]])
    assert weights.sum() == pytest.approx(len(known[1].coords))
    gain = student.gate["student"] - student.gate["teacher"]
    assert student.gate["kept"] == ("student" if gain > student.gate["needed"] else "teacher")
    values, arrays = student.state()
    back = MODELS["cnn-student"](Workbench.of(config, cache)).restore(
        student.target, values, arrays
    )
    coords = known[0].coords[:5]
    assert np.array_equal(
        back.predict(known[0].slide, coords).mean, student.predict(known[0].slide, coords).mean
    )


def test_no_tiles_is_an_error(sections: list[Section], cache: ArrayCache) -> None:
    config = settings(sources=("sections",))
    known = measured(sections)
    with pytest.raises(InputError, match="no unlabelled tile"):
        MODELS["cnn-student"](Workbench.of(config, cache)).fit(
            known, fit_target(known, config.target)
        )


def test_student_settings_are_strict() -> None:
    with pytest.raises(InputError, match="labels"):
        Config().with_values(student={"labels": "teachers"})
    assert StudentConfig().gate
