"""Splits cover every spot once, and nothing of a test patch is seen in training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspace.core.errors import InputError
from deepspace.data.coords import between_spots
from deepspace.data.splits import SPLITS, SplitOptions, every_second, make_folds
from deepspace.io.section import Section
from make_sections import lattice, make_section


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[Section]:
    folder = tmp_path_factory.mktemp("sections")
    coords = lattice(9)
    counts = np.ones((81, 3))
    return [
        make_section(folder, name, counts, coords, patient=patient)
        for name, patient in (("A1", "A"), ("A2", "A"), ("B1", "B"))
    ]


@pytest.mark.parametrize("how", SPLITS)
def test_every_spot_is_held_out_once(sections: list[Section], how: str) -> None:
    seen = {s.section: np.zeros(81, int) for s in sections}
    for fold in make_folds(sections, how, SplitOptions(folds=4, gap_um=25, seed=1)):
        for name, mask in fold.test.items():
            seen[name] += mask
            if name in fold.train:
                assert not (mask & fold.train[name]).any()
    assert all((count == 1).all() for count in seen.values())


@given(gap=st.floats(0, 45), folds=st.integers(2, 4), seed=st.integers(0, 20))
@settings(max_examples=20, deadline=None)
def test_blocks_keep_their_gap(sections: list[Section], gap: float, folds: int, seed: int) -> None:
    for fold in make_folds(sections, "block", SplitOptions(folds, gap, seed)):
        (name,) = fold.test
        coords = next(s.coords for s in sections if s.section == name)
        train, test = coords[fold.train[name]], coords[fold.test[name]]
        apart = np.abs(train[:, None] - test[None]).max(axis=2)
        assert apart.min() > gap  # square patches of side `gap` cannot overlap


def test_blocks_leave_out_serial_sections(sections: list[Section]) -> None:
    for fold in make_folds(sections, "block", SplitOptions(folds=3, gap_um=20)):
        (name,) = fold.test
        assert set(fold.train) == ({"A1", "B1"} if name == "A1" else {name, "B1"}) or name == "B1"
        assert "A2" not in fold.train or name in ("A2", "B1")


@pytest.mark.parametrize("how", ["blob", "alternate"])
def test_blanked_spots_are_of_one_section_alone(sections: list[Section], how: str) -> None:
    for fold in make_folds(sections, how, SplitOptions(folds=3)):
        ((name, mask),) = fold.test.items()
        assert set(fold.train) == {"A1", "A2", "B1"}
        assert (fold.train[name] == ~mask).all()
        assert all(fold.train[other].all() for other in {"A1", "A2", "B1"} - {name})


def test_every_second_spot_is_a_chessboard() -> None:
    square = lattice(6)
    row, column = np.divmod(np.arange(36), 6)
    assert (every_second(square) == (row + column) % 2).all()
    # on hexagons no two-colouring is perfect: half of the spots, each beside measured ones
    hexagonal = np.array(
        [(100.0 * j + 50.0 * (i % 2), 86.6 * i) for i in range(9) for j in range(9)]
    )
    labels = every_second(hexagonal)
    assert 0.4 < labels.mean() < 0.6
    near = np.linalg.norm(hexagonal[:, None] - hexagonal[None], axis=2) < 110
    measured_around = [(labels[near[k]] != labels[k]).sum() for k in range(len(labels))]
    assert min(measured_around) >= 1
    assert np.median(measured_around) == 4


def test_patients_are_never_divided(sections: list[Section]) -> None:
    folds = make_folds(sections, "patient", SplitOptions())
    assert [sorted(f.test) for f in folds] == [["A1", "A2"], ["B1"]]
    assert [sorted(f.train) for f in folds] == [["B1"], ["A1", "A2"]]


def test_impossible_splits_say_what_is_possible(sections: list[Section]) -> None:
    with pytest.raises(InputError, match=r"two measured sections.*block"):
        make_folds(sections[:1], "section", SplitOptions())
    with pytest.raises(InputError, match="two patients"):
        make_folds(sections[:2], "patient", SplitOptions())
    with pytest.raises(InputError, match="too few"):
        make_folds(sections, "block", SplitOptions(folds=40))
    with pytest.raises(InputError, match="leaves 0 spots"):
        make_folds(sections[:1], "block", SplitOptions(folds=2, gap_um=1000))


def test_triangle_centres_triple_the_density() -> None:
    """Hexagonal lattice: two triangles a spot, all centres equally far from three spots."""
    rows, cols = np.mgrid[0:20, 0:20]
    coords = np.stack([cols + 0.5 * (rows % 2), rows * np.sqrt(3) / 2], -1).reshape(-1, 2) * 100
    centres = between_spots(coords)
    assert len(centres) / len(coords) == pytest.approx(2.0, abs=0.25)
    distance = np.sort(np.linalg.norm(centres[:, None] - coords[None], axis=2), axis=1)[:, :3]
    inner = np.abs(centres - 900).max(axis=1) < 600
    np.testing.assert_allclose(distance[inner], 100 / np.sqrt(3), rtol=1e-6)


def test_holes_are_not_bridged() -> None:
    coords = lattice(9, pitch=100)
    hole = np.abs(coords - coords.mean(axis=0)).max(axis=1) < 150
    centres = between_spots(coords[~hole])
    assert (np.abs(centres - coords.mean(axis=0)).max(axis=1) > 130).all()


def test_too_few_spots_to_stand_between() -> None:
    with pytest.raises(InputError, match="no triangle"):
        between_spots(np.zeros((1, 2)))
    with pytest.raises(InputError, match="grid"):
        between_spots(np.array([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]]))


def test_small_sections_are_blanked_in_fewer_regions_or_not_at_all(tmp_path: Path) -> None:
    sizes = {"A": 9, "B": 6, "C": 4}
    sections = [
        make_section(tmp_path, name, np.ones((n * n, 3)), lattice(n)) for name, n in sizes.items()
    ]
    folds = make_folds(sections, "blob", SplitOptions(folds=5))
    assert [f.name[0] for f in folds] == ["A"] * 5 + ["B"] * 3
    for fold in folds:
        assert fold.train["C"].all()
    with pytest.raises(InputError, match="for 2 blocks; measure more sections"):
        make_folds(sections[2:], "block", SplitOptions(folds=2))
    with pytest.raises(InputError, match="at least 20 spots"):
        make_folds(sections[2:], "blob", SplitOptions(folds=5))
