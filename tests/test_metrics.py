"""Scores against scipy and scikit-learn, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_squared_error, r2_score

from deepspace.core.metrics import (
    correlation_shares,
    mean_of_best,
    pearson,
    r2,
    rmse,
    spearman,
)

seeds = st.integers(0, 2**32 - 1)


def pair(seed: int, spots: int = 30, genes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    measured = rng.poisson(2.0, (spots, genes)).astype(float)  # ties, as counts have
    return measured, measured + rng.normal(0, 2, (spots, genes))


def test_same_as_the_libraries() -> None:
    y, p = pair(0)
    for j in range(y.shape[1]):
        assert pearson(y, p)[j] == pytest.approx(stats.pearsonr(y[:, j], p[:, j])[0])
        assert spearman(y, p)[j] == pytest.approx(stats.spearmanr(y[:, j], p[:, j])[0])
        assert rmse(y, p)[j] == pytest.approx(mean_squared_error(y[:, j], p[:, j]) ** 0.5)
        assert r2(y, p)[j] == pytest.approx(r2_score(y[:, j], p[:, j]))


@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_pearson_ignores_scale_shift_and_order(seed: int, scale: float, shift: float) -> None:
    y, p = pair(seed)
    order = np.random.default_rng(seed).permutation(len(y))
    np.testing.assert_allclose(
        pearson(y, p), pearson(y[order], p[order] * scale + shift), atol=1e-9
    )


@given(seeds)
def test_spearman_ignores_monotone_change(seed: int) -> None:
    y, p = pair(seed)
    np.testing.assert_allclose(spearman(y, p), spearman(y, np.exp(p / 3)), atol=1e-12)


def test_constant_columns() -> None:
    y = np.array([[0.0, 5.1], [1.0, 5.1], [2.0, 5.1]])
    flat = np.full_like(y, 0.1 + 0.2)
    for score in (pearson, spearman):
        assert score(y, flat)[0] == 0.0
        assert np.isnan(score(y, flat)[1])
    assert r2(y, np.tile(y.mean(axis=0), (3, 1)))[0] == pytest.approx(0.0)
    assert np.isnan(r2(y, flat)[1])


def test_mean_of_best_leaves_out_missing() -> None:
    assert mean_of_best(np.array([np.nan, 0.2, 0.4, 0.9]), 2) == pytest.approx(0.65)
    assert np.isnan(mean_of_best(np.array([np.nan]), 2))


def test_shares_of_spots_add_up_to_the_mean_correlation() -> None:
    rng = np.random.default_rng(0)
    y, p = rng.normal(size=(2, 30, 4))
    p[:, 1] = 3.0
    assert correlation_shares(y, p).mean() == pytest.approx(pearson(y, p).mean())
    y[:, 2] = 1.0
    assert correlation_shares(y, p).mean() == pytest.approx(np.nanmean(pearson(y, p)))
