"""Scores against scipy and scikit-learn, and their invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial import distance
from skimage.metrics import structural_similarity
from sklearn.metrics import mean_squared_error, mutual_info_score, r2_score, roc_auc_score

from deepspace.core.metrics import (
    AUC_QUANTILES,
    MUTUAL_BINS,
    PATTERN_METRICS,
    VALUE_METRICS,
    auc_above,
    correlation_shares,
    jensen_shannon,
    mean_of_best,
    mutual_information,
    nrmse_range,
    nrmse_sd,
    pearson,
    r2,
    rank_bins,
    rmse,
    spearman,
    ssim_global,
)

EVERY = PATTERN_METRICS | VALUE_METRICS
ERRORS = ("rmse", "nrmse_range", "nrmse_sd", "jensen_shannon")
# what the best possible prediction scores, where that does not depend on the gene
BEST = {"pearson": 1.0, "spearman": 1.0, "r2": 1.0, "ssim_global": 1.0} | dict.fromkeys(ERRORS, 0.0)

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


def test_normalised_errors_by_hand() -> None:
    y, p = pair(3)
    for j in range(y.shape[1]):
        error = mean_squared_error(y[:, j], p[:, j]) ** 0.5
        assert nrmse_range(y, p)[j] == pytest.approx(error / (y[:, j].max() - y[:, j].min()))
        assert nrmse_sd(y, p)[j] == pytest.approx(error / y[:, j].std())


def test_mutual_information_is_that_of_scikit_learn() -> None:
    y, p = pair(4, spots=200)
    found, a, b = mutual_information(y, p), rank_bins(y), rank_bins(p)
    for j in range(y.shape[1]):
        assert found[j] == pytest.approx(mutual_info_score(a[:, j], b[:, j]))
    # without ties every bin holds as many spots
    assert (
        np.bincount(rank_bins(np.random.default_rng(0).normal(size=(200, 1)))[:, 0]) == 40
    ).all()


def test_mutual_information_sees_what_correlation_does_not() -> None:
    x = np.linspace(-1, 1, 201)[:, None]
    assert abs(pearson(x**2, x)[0]) < 1e-9
    assert mutual_information(x**2, x)[0] > 0.8
    noise = np.random.default_rng(0).normal(size=(400, 500, 2))
    chance = (MUTUAL_BINS - 1) ** 2 / (2 * 400)
    by_chance = mutual_information(noise[..., 0], noise[..., 1]).mean()
    assert by_chance == pytest.approx(chance, rel=0.1)


def test_jensen_shannon_is_that_of_scipy() -> None:
    y, p = pair(5)
    found = jensen_shannon(y, p)
    for j in range(y.shape[1]):
        one, other = y[:, j], np.maximum(p[:, j], 0.0)
        expected = distance.jensenshannon(one, other, base=2) ** 2
        assert found[j] == pytest.approx(expected)


@pytest.mark.parametrize("q", AUC_QUANTILES)
def test_auc_is_that_of_scikit_learn(q: float) -> None:
    y, p = pair(6, spots=60)
    p = np.round(p)  # ties in the prediction too
    for j in range(y.shape[1]):
        high = y[:, j] > np.quantile(y[:, j], q)
        assert auc_above(y, p, q)[j] == pytest.approx(roc_auc_score(high, p[:, j]))


def test_global_ssim_is_that_of_scikit_image_with_one_window() -> None:
    y, p = pair(7, spots=31)  # a window must be odd
    p = np.maximum(p, 0.0)
    for j in range(y.shape[1]):
        one, other = y[:, j] / y[:, j].max(), p[:, j] / p[:, j].max()
        expected = structural_similarity(
            one, other, win_size=31, data_range=1.0, use_sample_covariance=False
        )
        assert ssim_global(y, p)[j] == pytest.approx(expected)


@pytest.mark.parametrize("name", EVERY)
@given(seeds)
def test_order_of_spots_and_of_genes_does_not_matter(name: str, seed: int) -> None:
    y, p = pair(seed)
    rng = np.random.default_rng(seed)
    spots, genes = rng.permutation(len(y)), rng.permutation(y.shape[1])
    score = EVERY[name]
    found = score(y[spots][:, genes], p[spots][:, genes])
    np.testing.assert_allclose(found, score(y, p)[genes], atol=1e-9)


@pytest.mark.parametrize("name", PATTERN_METRICS)
@given(seeds, st.sampled_from([0.25, 1.0, 8.0]), st.sampled_from([-16.0, 0.0, 4.0]))
def test_pattern_metrics_ignore_level_and_scale(
    name: str, seed: int, scale: float, shift: float
) -> None:
    y, p = pair(seed)
    score = PATTERN_METRICS[name]
    for found in (score(y, p * scale + shift), score(y * scale + shift, p)):
        np.testing.assert_allclose(found, score(y, p), atol=1e-9)


@given(seeds, st.floats(0.1, 10), st.floats(-5, 5))
def test_errors_ignore_the_unit_where_they_should(seed: int, scale: float, shift: float) -> None:
    y, p = pair(seed)
    for score in (nrmse_range, nrmse_sd, r2):
        found = score(y * scale + shift, p * scale + shift)
        np.testing.assert_allclose(found, score(y, p), rtol=1e-7)
    np.testing.assert_allclose(rmse(y * scale + shift, p * scale + shift), rmse(y, p) * scale)
    for score in (jensen_shannon, ssim_global):  # shares of an amount: the unit, no shift
        np.testing.assert_allclose(score(y, p * scale), score(y, p), atol=1e-9)
        np.testing.assert_allclose(score(y * scale, p), score(y, p), atol=1e-9)


@given(seeds)
def test_range_and_the_best_is_the_measurement_itself(seed: int) -> None:
    y, p = pair(seed)
    assert ((mutual_information(y, p) >= 0) & (mutual_information(y, p) <= np.log(5) + 1e-9)).all()
    assert ((jensen_shannon(y, p) >= 0) & (jensen_shannon(y, p) <= 1)).all()
    assert (np.abs(ssim_global(y, p)) <= 1 + 1e-12).all()
    for name, score in EVERY.items():
        own, found = score(y, y), score(y, p)
        if name in BEST:
            np.testing.assert_allclose(own, BEST[name], atol=1e-9)
        if name.startswith("auc"):
            known = ~np.isnan(found)
            assert ((found[known] >= 0) & (found[known] <= 1)).all()
            np.testing.assert_allclose(own[known], 1.0)
        sign = -1 if name in ERRORS else 1
        assert (sign * np.nan_to_num(own) >= sign * np.nan_to_num(found) - 1e-9).all(), name


def test_predictions_that_say_nothing_and_genes_without_a_pattern() -> None:
    y = np.array([[0.0, 2.0, 0.0], [1.0, 2.0, 0.0], [2.0, 2.0, 0.0], [5.0, 2.0, 0.0]])
    nothing = {"pearson": 0.0, "spearman": 0.0, "mutual_information": 0.0}
    nothing |= {f"auc_above_q{100 * q:.0f}": 0.5 for q in AUC_QUANTILES}
    for name, score in EVERY.items():
        found = score(y, np.full_like(y, 0.7))
        if name in nothing:
            assert found[0] == pytest.approx(nothing[name], abs=1e-12), name
        if name not in ("rmse", "jensen_shannon"):  # a flat map has an error and an amount
            assert np.isnan(found[1:]).all(), name
    # zero everywhere is as flat as anything else
    flat, zero = jensen_shannon(y, np.ones_like(y)), jensen_shannon(y, np.zeros_like(y))
    np.testing.assert_array_equal(flat, zero)
    assert np.isnan(flat[2])
    assert flat[1] == pytest.approx(0.0, abs=1e-12)


def test_no_share_of_a_target_that_can_be_negative() -> None:
    y = np.array([[-1.0], [1.0], [2.0]])
    assert np.isnan(jensen_shannon(y, y)).all()
    assert np.isnan(ssim_global(y, y)).all()
