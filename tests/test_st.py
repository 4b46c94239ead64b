"""Legacy ST arrays: counts and spots by their ids."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deepspace.core.errors import InputError
from deepspace.io.checks import validate
from deepspace.io.sheet import read_sheet
from deepspace.io.st import read_st
from make_files import st_tables, write_sheet, write_st

FIXTURES = "data/reader_fixtures"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    write_st(tmp_path)
    return tmp_path / "S.tsv", tmp_path / "S_spots.tsv"


def test_counts_places_and_scale(files: tuple[Path, Path]) -> None:
    counts, spots = st_tables()
    parts = read_st(*files)
    np.testing.assert_array_equal(parts.counts.X.toarray(), counts.to_numpy())
    assert list(parts.counts.var_names) == list(counts.columns)
    np.testing.assert_allclose(parts.counts.obsm["spatial"], spots[["pixel_x", "pixel_y"]])
    np.testing.assert_array_equal(parts.counts.obs["array_col"], spots["x"])
    assert list(parts.scales.values()) == [pytest.approx(5.0, rel=1e-3)]
    assert (parts.spot_diameter_um, parts.spot_pitch_um) == (100.0, 200.0)
    assert parts.notes == []


@pytest.mark.parametrize("kind", ["gzip", "transposed", "floats", "R header", "shuffled", "csv"])
def test_variants_of_the_counts(files: tuple[Path, Path], kind: str) -> None:
    path, spots = files
    want = st_tables()[0]
    table = pd.read_csv(path, sep="\t", index_col=0)
    if kind == "gzip":
        path.write_bytes(gzip.compress(path.read_bytes()))
    elif kind == "transposed":
        table.T.to_csv(path, sep="\t")
    elif kind == "floats":
        table.astype(float).to_csv(path, sep="\t")
    elif kind == "R header":
        path.write_text(path.read_text().lstrip("\t"))
    elif kind == "shuffled":
        table.iloc[::-1].to_csv(path, sep="\t")
        want = want.iloc[::-1]
    else:
        table.to_csv(path)
    parts = read_st(path, spots)
    np.testing.assert_array_equal(parts.counts.X.toarray(), want.to_numpy())
    place = parts.spots.loc[parts.counts.obs_names, ["x", "y"]]
    np.testing.assert_array_equal(parts.counts.obsm["spatial"], place)
    assert any("genes x spots" in note for note in parts.notes) == (kind == "transposed")


def test_ids_may_be_adjusted_places(files: tuple[Path, Path]) -> None:
    path, spot_path = files
    counts, spots = st_tables()
    counts.index = [f"{x:.3f}x{y:.3f}" for x, y in zip(spots["new_x"], spots["new_y"], strict=True)]
    counts.to_csv(path, sep="\t")
    parts = read_st(path, spot_path)
    assert list(parts.counts.obs_names) == list(parts.spots.index)


def test_unselected_and_unmatched_spots(files: tuple[Path, Path]) -> None:
    path, spot_path = files
    counts, spots = st_tables()
    spots.loc[2, "selected"] = 0
    spots.drop(index=5).to_csv(spot_path, sep="\t", index=False)
    counts.drop(index=counts.index[7]).to_csv(path, sep="\t")
    parts = read_st(path, spot_path)
    gone = {counts.index[i] for i in (2, 5, 7)}
    assert set(counts.index) - set(parts.counts.obs_names) == gone
    text = "\n".join(parts.notes)
    assert f"1 barcodes have counts but no spot ({counts.index[5]})" in text
    assert "1 spots outside tissue" in text
    assert "1 spots in tissue of S_spots.tsv have no counts" in text


def test_spot_file_without_header_or_selected(files: tuple[Path, Path]) -> None:
    path, spot_path = files
    spots = st_tables()[1].drop(columns="selected")
    spots.to_csv(spot_path, sep="\t", index=False, header=False)
    parts = read_st(path, spot_path)
    np.testing.assert_allclose(parts.counts.obsm["spatial"], spots[["pixel_x", "pixel_y"]])


def test_labels_become_clusters(files: tuple[Path, Path]) -> None:
    path, spot_path = files
    spots = st_tables()[1]
    spots["label"] = ["a", "b"] * (len(spots) // 2)
    spots.to_csv(spot_path, sep="\t", index=False)
    assert list(read_st(path, spot_path).counts.obs["cluster"]) == list(spots["label"])


@pytest.mark.parametrize(
    ("which", "text", "message"),
    [
        (0, "a\tb\nx1\t1\nx2\t2\n", "neither the row names"),
        (0, "\tA\tB\n1x1\t1\t2\n2x1\t1\n", "different length"),
        (0, "\tA\tB\n1x1\t1\tmany\n", "not a table of numbers"),
        (0, "\tA\tB\n", "a header and no rows"),
        (0, "", "is empty"),
        (1, "x\ty\tnew_x\tnew_y\n1\t1\t1\t1\n", "no column pixel_x, pixel_y"),
        (1, "x\ty\tpixel_x\tpixel_y\n1\t1\tleft\t1\n", "pixel_x of row 1 is 'left'"),
        (1, "x\ty\tpixel_x\tpixel_y\n1\t1\t5\t5\n1\t1\t5\t6\n", "occur twice"),
    ],
)
def test_faults_name_file_and_cure(
    files: tuple[Path, Path], which: int, text: str, message: str
) -> None:
    files[which].write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_st(*files)
    assert str(files[which]) in str(caught.value)


def test_spots_of_another_section(files: tuple[Path, Path]) -> None:
    files[0].write_text("\tA\n99x99\t1\n")
    with pytest.raises(InputError, match=r"S_spots.tsv: none of the 1 barcodes .*first: 99x99"):
        read_st(*files)


def test_her2st_equals_pandas(shared: Path) -> None:
    (section,) = read_sheet(shared / "data/her2st.csv", only=["C3"])
    table = pd.read_csv(shared / "data/her2st/counts/C3.tsv.gz", sep="\t", index_col=0)
    np.testing.assert_array_equal(section.counts.X.toarray(), table.loc[section.counts.obs_names])
    assert list(section.counts.var_names) == list(table.columns)
    facts = section.describe()
    assert (facts["spots_measured"], facts["genes"]) == (180, 15821)
    assert facts["spot_diameter_px"] == pytest.approx(145.5, abs=0.2)
    assert facts["problems"] == []


@pytest.mark.parametrize("name", ["her2st_lowres", "mob"])
def test_other_real_sheets_are_sound(shared: Path, name: str) -> None:
    sections = read_sheet(shared / f"data/{name}.csv")
    assert [validate(section) for section in sections] == [[]] * len(sections)
    assert all(section.counts.X.data.max() % 1 == 0 for section in sections if section.measured)


def test_xfuse_fixtures_through_a_sheet(shared: Path, tmp_path: Path) -> None:
    files = shared / FIXTURES / "xfuse/tests/data/files"
    rows = [
        {
            "section": name,
            "patient": "P",
            "image": files / name / "image.jpg",
            "counts": files / name / counts,
            "spots": files / name / spots,
            "mpp": 5,
        }
        for name, counts, spots in [
            ("st", "counts.tsv", "spots.tsv"),
            ("visium", "data.h5", "tissue_positions.csv"),
        ]
    ]
    legacy, visium = read_sheet(write_sheet(tmp_path / "s.csv", rows))
    table = pd.read_csv(files / "st/counts.tsv", sep="\t", index_col=0)
    np.testing.assert_array_equal(legacy.counts.X.toarray(), table.loc[legacy.counts.obs_names])
    assert legacy.platform == "st"
    assert (visium.platform, visium.counts.shape) == ("visium", (64, 10))
    np.testing.assert_array_equal(visium.coords[:2], [[10, 10], [21, 10]])
