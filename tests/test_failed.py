"""Failed spots: thresholds, outliers among neighbours, a user's list."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepspace.core.config import FailedConfig, QCConfig
from deepspace.core.errors import InputError
from deepspace.data.failed import (
    FEW,
    GIVEN,
    NO_COUNTS,
    OUTLIER,
    find_failed,
    local_scores,
    read_failed,
)
from deepspace.io.section import Section
from deepspace.io.sheet import read_sheet
from make_sections import lattice, make_section

QC = QCConfig(min_counts=50, min_genes=3)
SIDE = 16
GENES = ["MT-CO1", "mt-Nd1", *(f"G{j}" for j in range(38))]


def smooth_counts(seed: int = 0, noise: float = 0.2) -> np.ndarray:
    """Counts whose depth grows fourfold over the section, as tissue does; (256, 40)."""
    rng = np.random.default_rng(seed)
    x = lattice(SIDE)[:, 0]
    depth = np.exp(np.log(4) * x / x.max() + noise * rng.normal(size=len(x)))
    rates = rng.gamma(2.0, 1.0, len(GENES))
    rates[:2] = 1.0
    return rng.poisson(8 * depth[:, None] * rates)


def section_of(folder: Path, counts: np.ndarray) -> Section:
    return make_section(folder, "S1", counts, lattice(SIDE), genes=GENES)


def test_simulated_failures_are_found(tmp_path: Path) -> None:
    counts = smooth_counts(seed=1)
    dead, weak, leaking, poor = 17, 100, 140, 200
    counts[dead] = 0
    counts[poor] //= 40
    # a quarter of what its neighbours have, yet as much as spots at the other end
    counts[weak] //= 5
    counts[leaking, :2] *= 8
    found = find_failed(section_of(tmp_path, counts), QC, FailedConfig())
    assert found["reason"].iloc[[dead, weak, leaking, poor]].tolist() == [
        NO_COUNTS,
        OUTLIER,
        OUTLIER,
        FEW,
    ]
    assert found["z_log_counts"].iloc[weak] < -3
    assert found["z_mitochondrial"].iloc[leaking] > 3
    assert found["failed"].equals(found["reason"] != "")
    assert found["failed"].sum() <= 4 + 0.02 * len(found)
    assert found.loc[found["reason"] == NO_COUNTS, "z_log_counts"].isna().all()


def test_a_panel_that_every_spot_fills_flags_nothing(tmp_path: Path) -> None:
    """Nearly all genes everywhere: one gene fewer is many deviations, and no failure."""
    counts = smooth_counts(seed=3) + 5
    counts[60, 5] = 0
    counts[61, 5:7] = 0
    found = find_failed(section_of(tmp_path, counts), QC, FailedConfig())
    assert not found["failed"].any()


def test_rich_spots_and_clean_spots_are_no_failures(tmp_path: Path) -> None:
    counts = smooth_counts(seed=2)
    counts[50] *= 6
    counts[90, :2] = 0
    found = find_failed(section_of(tmp_path, counts), QC, FailedConfig())
    assert found["z_log_counts"].iloc[50] > 3
    assert found["z_mitochondrial"].iloc[90] < -3
    assert not found["failed"].iloc[[50, 90]].any()


@settings(max_examples=15)
@given(st.integers(0, 10_000), st.floats(0.05, 0.5))
def test_ordinary_noise_is_hardly_flagged(seed: int, noise: float) -> None:
    rng = np.random.default_rng(seed)
    coords = lattice(40)
    values = 0.01 * coords[:, :1] / coords.max() + noise * rng.normal(size=(1600, 1))
    scores = local_scores(values, coords, 36)
    assert (scores < -3).mean() < 0.02
    assert scores.std() == pytest.approx(1.0, abs=0.25)


@given(st.integers(0, 10_000))
def test_scores_do_not_depend_on_unit_order_or_turn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coords = rng.uniform(0, 1000, (60, 2))
    values = rng.normal(size=(60, 2))
    scores = local_scores(values, coords, 20)
    order = rng.permutation(60)
    turned = coords[:, ::-1] * [-3.0, 3.0] + 7.0
    np.testing.assert_allclose(
        local_scores(5.0 * values[order] - 2.0, turned[order], 20), scores[order], rtol=1e-6
    )


def test_places_that_coincide_and_values_that_do_not_vary() -> None:
    coords = np.zeros((12, 2))
    values = np.r_[np.ones(11), 5.0][:, None]
    assert not local_scores(values, coords, 5).any()


def test_every_spot_in_tissue_has_a_row(tmp_path: Path) -> None:
    section = section_of(tmp_path, smooth_counts())
    assert section.spots is not None
    spots = section.spots.copy()
    spots.iloc[3, spots.columns.get_loc("in_tissue")] = False
    section = replace(section.subset(np.arange(SIDE**2) > 9), spots=spots)
    found = find_failed(section, QC, FailedConfig())
    assert found.index.name == "barcode"
    assert list(found.index) == [name for name in spots.index if name != "S1-3"]
    assert (found["reason"].iloc[:9] == NO_COUNTS).all()


def test_a_section_that_has_only_counts(tmp_path: Path) -> None:
    section = section_of(tmp_path, smooth_counts())
    alone = find_failed(replace(section, spots=None), QC, FailedConfig())
    np.testing.assert_array_equal(
        alone["reason"], find_failed(section, QC, FailedConfig())["reason"]
    )


def test_small_sections_are_compared_with_all_that_they_have(tmp_path: Path) -> None:
    counts = smooth_counts()[:14]
    counts[7] //= 8
    section = make_section(tmp_path, "S1", counts, lattice(SIDE)[:14], genes=GENES)
    found = find_failed(section, QCConfig(min_counts=10, min_genes=3), FailedConfig())
    assert found["reason"].iloc[7] == OUTLIER
    tiny = section.subset(np.arange(14) < 8)
    found = find_failed(tiny, QCConfig(min_counts=10, min_genes=3), FailedConfig())
    assert (found["reason"].iloc[:8] == "").all()
    assert found["z_log_counts"].isna().all()


def test_given_spots_and_no_local_test(tmp_path: Path) -> None:
    counts = smooth_counts()
    counts[100] //= 5
    counts[101] = 0
    section = section_of(tmp_path, counts)
    found = find_failed(section, QC, FailedConfig(local=False), given=["S1-5", "S1-101"])
    assert found["reason"].iloc[[5, 100, 101]].tolist() == [GIVEN, "", NO_COUNTS]


def test_sections_without_mitochondrial_genes(tmp_path: Path) -> None:
    section = make_section(tmp_path, "S1", smooth_counts()[:, 2:], lattice(SIDE))
    found = find_failed(section, QC, FailedConfig())
    assert found[["mitochondrial", "z_mitochondrial"]].isna().all(axis=None)
    with pytest.raises(InputError, match="has no counts"):
        find_failed(section.without_counts(), QC, FailedConfig())


def test_reads_a_list(tmp_path: Path) -> None:
    section = section_of(tmp_path, smooth_counts())
    path = tmp_path / "failed.csv"
    path.write_text("Section,barcode,why\nS1, S1-4,fold\nS1,S1-9,\n")
    assert read_failed(path, [section]) == {"S1": frozenset({"S1-4", "S1-9"})}


def test_all_faults_of_a_list_at_once(tmp_path: Path) -> None:
    section = section_of(tmp_path, smooth_counts())
    bare = replace(section.without_counts(), section="S2")
    path = tmp_path / "failed.csv"
    path.write_text("section,barcode\nS1,S1-4\nS1,nothing\nS9,S9-1\nS2,S1-1\n")
    with pytest.raises(InputError) as caught:
        read_failed(path, [section, bare])
    for words in ("3 problems", "S1: 1 of 2 barcodes", "nothing", "no section 'S9'", "S2: has no"):
        assert words in str(caught.value)
    path.write_text("spot,where\nS1-4,S1\n")
    with pytest.raises(InputError, match=r"no column section and no column barcode.*spot, where"):
        read_failed(path, [section])


def test_config_is_strict() -> None:
    with pytest.raises(ValueError, match="not a regular expression"):
        FailedConfig(mitochondrial="(")
    with pytest.raises(ValueError, match="greater than"):
        FailedConfig(cutoff=0)


@pytest.mark.slow
def test_few_spots_of_real_sections_failed(shared: Path) -> None:
    tables = [
        find_failed(section, QCConfig(), FailedConfig())
        for section in read_sheet(shared / "data" / "her2st.csv")
    ]
    shares = [table["failed"].mean() for table in tables]
    assert max(shares) < 0.1
    assert 0.01 < np.mean(shares) < 0.06
    # one spot of this array is weak on every second slide
    assert sum("19x16" in t.index[t["reason"] == OUTLIER] for t in tables) >= 3
