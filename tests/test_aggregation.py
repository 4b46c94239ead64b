"""Means over spots, and fine predictions that keep them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspace.data.aggregation import constrained, to_spots

PITCH, DIAMETER = 100.0, 55.0


def hexagonal(rows: int = 6, columns: int = 7) -> np.ndarray:
    """Visium's lattice, um."""
    y, x = np.mgrid[:rows, :columns].astype(float)
    return np.stack([PITCH * (x + y % 2 / 2), PITCH * y * np.sqrt(3) / 2], axis=-1).reshape(-1, 2)


def fine_grid(stride: float = 10.0) -> np.ndarray:
    axis = np.arange(-60.0, 720.0, stride)
    return np.stack(np.meshgrid(axis, axis[:-20]), axis=-1).reshape(-1, 2)


def random_case(seed: int, names: int = 3) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    spots = hexagonal()
    points = fine_grid(12.0) + rng.uniform(-3, 3, 2)
    fine = rng.gamma(0.7, 10.0, (len(points), names))
    wanted = rng.gamma(1.0, 10.0, (len(spots), names))
    return fine, points, spots, wanted


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_means_over_spots_are_exact_and_nothing_is_negative(seed: int) -> None:
    fine, points, spots, wanted = random_case(seed)
    rng = np.random.default_rng(seed)
    wanted[rng.random(wanted.shape) < 0.1] = 0
    fine[rng.random(fine.shape) < 0.3] = 0
    found = constrained(fine, points, spots, wanted, DIAMETER)
    np.testing.assert_allclose(to_spots(found.values, points, spots, DIAMETER), wanted, rtol=1e-9)
    assert (found.values >= 0).all()
    assert not found.missed.any()


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_a_prediction_that_agrees_already_stays(seed: int) -> None:
    fine, points, spots, _ = random_case(seed)
    found = constrained(fine, points, spots, to_spots(fine, points, spots, DIAMETER), DIAMETER)
    np.testing.assert_allclose(found.values, fine, rtol=1e-9)


@settings(max_examples=10)
@given(st.integers(0, 10_000))
def test_the_order_of_points_spots_and_names_changes_nothing(seed: int) -> None:
    fine, points, spots, wanted = random_case(seed)
    rng = np.random.default_rng(seed)
    rows, columns, order = (rng.permutation(n) for n in (*fine.shape, len(spots)))
    expected = constrained(fine, points, spots, wanted, DIAMETER).values[rows][:, columns]
    found = constrained(
        fine[rows][:, columns], points[rows], spots[order], wanted[order][:, columns], DIAMETER
    )
    np.testing.assert_allclose(found.values, expected, rtol=1e-6)


@given(st.floats(0.01, 50.0))
def test_one_factor_for_all_spots_is_one_factor_everywhere(factor: float) -> None:
    fine, points, spots, _ = random_case(0, 1)
    wanted = factor * to_spots(fine, points, spots, DIAMETER)
    found = constrained(fine, points, spots, wanted, DIAMETER)
    np.testing.assert_allclose(found.values, factor * fine, rtol=1e-8)


def test_a_smooth_truth_is_found_again_from_a_flat_prediction() -> None:
    points, spots = fine_grid(), hexagonal()
    truth = np.exp(points[:, :1] / 300 + np.sin(points[:, 1:] / 150))
    inside = (np.abs(points - [325, 215]) < [300, 200]).all(axis=1)
    wanted = to_spots(truth, points, spots, DIAMETER)
    found = constrained(np.ones_like(truth), points, spots, wanted, DIAMETER).values
    assert np.abs(np.log(found / truth))[inside].max() < 0.12


def test_there_is_no_step_at_the_edge_of_a_spot() -> None:
    """Along a line of close points the factor changes a little at a time."""
    spots = hexagonal()
    rng = np.random.default_rng(3)
    wanted = np.exp(rng.normal(0, 1, (len(spots), 1)))
    grid = fine_grid()
    line = np.stack([np.arange(-200, 900, 0.5), np.full(2200, 173.2)], axis=1)
    points = np.concatenate([grid, line])
    # the points of the line are so many that they would outweigh the grid
    found = constrained(np.ones((len(points), 1)), points, spots, wanted, DIAMETER).values
    steps = np.abs(np.diff(np.log(found[len(grid) :, 0])))
    # the steepest slope between two neighbours' factors, over half a micrometre
    assert steps.max() < 8.0 * 0.5 / PITCH
    assert np.ptp(np.log(found)) > 2


@pytest.mark.parametrize(
    "spots", [[[50.0, 50.0]], [[0.0, 0.0], [100.0, 0.0]], [[0.0, 0], [100, 0], [200, 0], [300, 0]]]
)
def test_any_arrangement_of_spots(spots: list[list[float]]) -> None:
    points = fine_grid()
    fine = np.ones((len(points), 2))
    wanted = np.arange(1.0, 2 * len(spots) + 1).reshape(-1, 2)
    found = constrained(fine, points, spots, wanted, DIAMETER).values
    np.testing.assert_allclose(to_spots(found, points, spots, DIAMETER), wanted)
    assert found.min() >= wanted.min() * 0.5
    assert found.max() <= wanted.max() * 2


def test_spots_without_points_or_estimate_are_told() -> None:
    points = fine_grid()
    spots = np.array([[0.0, 0.0], [100.0, 0.0], [5000.0, 0.0]])
    wanted = np.array([[2.0], [np.nan], [3.0]])
    found = constrained(np.ones((len(points), 1)), points, spots, wanted, DIAMETER)
    assert found.missed.tolist() == [False, True, True]
    np.testing.assert_allclose(found.values, 2.0)
    nowhere = constrained(np.ones((len(points), 1)), points, spots[2:], wanted[2:], DIAMETER)
    assert nowhere.missed.tolist() == [True]
    np.testing.assert_array_equal(nowhere.values, 1.0)
    assert np.isnan(to_spots(np.ones((len(points), 1)), points, spots, DIAMETER)[2]).all()


def test_zeros() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0], [100.0, 0.0], [110.0, 0.0]])
    spots = np.array([[0.0, 0.0], [100.0, 0.0]])
    fine = np.array([[0.0, 1.0], [0.0, 3.0], [1.0, 0.0], [2.0, 0.0]])
    wanted = np.array([[4.0, 0.0], [3.0, 0.0]])
    found = constrained(fine, points, spots, wanted, 40.0).values
    np.testing.assert_allclose(found[:, 0], [4.0, 4.0, 2.0, 4.0], rtol=0.1)
    np.testing.assert_allclose(found[:, 1], 0.0, atol=1e-12)
    np.testing.assert_allclose(to_spots(found, points, spots, 40.0), wanted, atol=1e-12)


def test_blocks_of_genes_give_what_one_block_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    fine, points, spots, wanted = random_case(5, names=7)
    whole = constrained(fine.astype(np.float32), points, spots, wanted, DIAMETER).values
    assert whole.dtype == np.float32
    monkeypatch.setattr("deepspace.data.aggregation.BLOCK", 2 * len(points))
    parts = constrained(fine.astype(np.float32), points, spots, wanted, DIAMETER).values
    np.testing.assert_allclose(parts, whole, rtol=1e-6)


def test_a_point_in_two_discs_counts_once() -> None:
    points = np.array([[0.0, 0.0], [40.0, 0.0], [100.0, 0.0]])
    means = to_spots([[1.0], [3.0], [8.0]], points, [[0.0, 0.0], [100.0, 0.0]], 150.0)
    assert means.tolist() == [[2.0], [8.0]]


@pytest.mark.parametrize(
    ("fine", "wanted", "fault"),
    [
        ([[-1.0]], [[1.0]], "fine has negative"),
        ([[1.0]], [[-1.0]], "spot_values has negative"),
        ([[1.0, 2.0]], [[1.0]], "do not fit"),
        ([[1.0], [2.0]], [[1.0]], "2 rows for 1 places"),
    ],
)
def test_faults(fine: list[list[float]], wanted: list[list[float]], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        constrained(fine, [[0.0, 0.0]], [[0.0, 0.0]], wanted, DIAMETER)
