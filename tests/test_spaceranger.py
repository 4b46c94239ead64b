"""Space Ranger and Visium HD: every version's files give the same section."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import mmread

from deepspace.core.errors import InputError
from deepspace.io.checks import validate
from deepspace.io.matrix10x import read_matrix
from deepspace.io.positions import is_positions, read_positions
from deepspace.io.section import read_section
from make_files import (
    Array,
    write_clusters,
    write_h5_v2,
    write_h5_v3,
    write_image,
    write_mtx,
    write_outs,
    write_positions,
    write_scalefactors,
)

FIXTURES = "data/reader_fixtures"


def dense(counts: AnnData) -> np.ndarray:
    return counts.X.toarray()


@pytest.fixture
def array() -> Array:
    return Array()


@pytest.fixture
def outs(tmp_path: Path, array: Array) -> Path:
    return write_outs(tmp_path / "sampleA" / "outs", array)


def test_outs_gives_counts_places_and_scale(outs: Path, array: Array) -> None:
    section = read_section(outs)
    assert (section.section, section.patient, section.platform) == ("sampleA", "sampleA", "visium")
    assert list(section.counts.obs_names) == array.barcodes
    np.testing.assert_array_equal(dense(section.counts), array.filtered)
    place = array.positions.set_index("barcode").loc[array.barcodes]
    # x is the column, y the row: the classic mistake
    np.testing.assert_allclose(section.coords[:, 0], place["pxl_col_in_fullres"])
    np.testing.assert_allclose(section.coords[:, 1], place["pxl_row_in_fullres"])
    assert section.slide.mpp == pytest.approx(5.0)
    assert "pitch" in section.slide.mpp_source
    assert len(section.spots) == len(array.positions)
    assert section.spots["in_tissue"].sum() == array.inside.sum()
    assert validate(section) == []


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("tissue_positions_list.csv", False),
        ("tissue_positions_list.csv", True),
        ("tissue_positions.csv", True),
        ("tissue_positions.csv", False),
        ("tissue_positions.parquet", True),
    ],
)
def test_positions_of_every_version(outs: Path, array: Array, name: str, header: bool) -> None:
    (outs / "spatial" / "tissue_positions.csv").unlink()
    write_positions(outs / "spatial" / name, array.positions, header=header)
    assert read_section(outs).coords.shape == (array.inside.sum(), 2)
    assert is_positions(outs / "spatial" / name)


numbers = st.floats(-1e5, 1e5, allow_nan=False, width=32)
spots = st.lists(
    st.tuples(st.booleans(), st.integers(0, 127), st.integers(0, 223), numbers, numbers),
    min_size=1,
    max_size=20,
)


@settings(max_examples=25, deadline=None)
@given(rows=spots, header=st.booleans(), suffix=st.sampled_from([".csv", ".parquet"]))
def test_positions_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple], header: bool, suffix: str
) -> None:
    table = pd.DataFrame(rows, columns=["in_tissue", "array_row", "array_col", "py", "px"])
    table.insert(0, "barcode", [f"A{i}-1" for i in range(len(table))])
    table = table.rename(columns={"py": "pxl_row_in_fullres", "px": "pxl_col_in_fullres"})
    table["in_tissue"] = table["in_tissue"].astype(int)
    path = tmp_path_factory.mktemp("p") / f"tissue_positions{suffix}"
    read = read_positions(write_positions(path, table, header=header))
    # pandas parses decimals to the last bit but one
    np.testing.assert_allclose(read["x"], table["pxl_col_in_fullres"], rtol=1e-12)
    np.testing.assert_allclose(read["y"], table["pxl_row_in_fullres"], rtol=1e-12)
    np.testing.assert_array_equal(read["in_tissue"], table["in_tissue"] == 1)
    np.testing.assert_array_equal(read["array_row"], table["array_row"])
    np.testing.assert_array_equal(read["array_col"], table["array_col"])
    assert list(read.index) == list(table["barcode"])


@pytest.mark.parametrize("kind", ["v2", "mtx", "mtx.gz"])
def test_every_flavour_of_matrix(outs: Path, array: Array, kind: str) -> None:
    h5 = outs / "filtered_feature_bc_matrix.h5"
    h5.unlink()
    if kind == "v2":
        write_h5_v2(h5, array.filtered, array.barcodes)
    else:
        write_mtx(h5.with_suffix(""), array.filtered, array.barcodes, zipped=kind == "mtx.gz")
    section = read_section(outs)
    np.testing.assert_array_equal(dense(section.counts), array.filtered)
    assert list(section.counts.obs_names) == array.barcodes
    assert section.counts.var_names[0] == "GENE0"
    assert section.counts.var["gene_ids"].iloc[0].startswith("ENS")
    assert section.sources["counts"].is_file()


@pytest.mark.parametrize("flat", [False, True])
def test_prefixed_files(outs: Path, array: Array, tmp_path: Path, flat: bool) -> None:
    folder = tmp_path / "GSE1"
    spatial = folder if flat else folder / "spatial"
    spatial.mkdir(parents=True)
    prefix = "GSM123_sampleA_"
    shutil.copy(
        outs / "filtered_feature_bc_matrix.h5", folder / f"{prefix}filtered_feature_bc_matrix.h5"
    )
    for file in (outs / "spatial").iterdir():
        shutil.copy(file, spatial / f"{prefix}{file.name}")
    write_image(folder / "GSM123_sampleA_he.tif")
    section = read_section(folder)
    np.testing.assert_array_equal(dense(section.counts), array.filtered)
    assert section.scalefactors["tissue_hires_scalef"] == 0.5


def test_several_samples_in_one_folder_need_the_sections_name(outs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "GSE1"
    folder.mkdir()
    for sample in ("GSM1_a", "GSM2_b"):
        for file in [outs / "filtered_feature_bc_matrix.h5", *(outs / "spatial").iterdir()]:
            shutil.copy(file, folder / f"{sample}_{file.name}")
        write_image(folder / f"{sample}.tif")
    with pytest.raises(InputError, match="several samples"):
        read_section(folder)
    section = read_section(folder, section="GSM2_b")
    assert {path.name[:6] for path in section.sources.values()} == {"GSM2_b"}


def test_raw_matrix_is_read_when_asked_or_alone(outs: Path, array: Array) -> None:
    write_h5_v3(outs / "raw_feature_bc_matrix.h5", array.counts, list(array.positions["barcode"]))
    section = read_section(outs, raw=True)
    assert section.sources["counts"].name == "raw_feature_bc_matrix.h5"
    # spots outside tissue are no measurements of it
    np.testing.assert_array_equal(dense(section.counts), array.filtered)
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    assert any("raw_feature_bc_matrix.h5 is read instead" in n for n in read_section(outs).notes)


def test_antibodies_are_left_out_and_repeated_symbols_kept_apart(outs: Path, array: Array) -> None:
    names = [f"GENE{i}" for i in range(12)]
    names[5] = names[2]
    kinds = ["Gene Expression"] * 10 + ["Antibody Capture"] * 2
    path = outs / "filtered_feature_bc_matrix.h5"
    write_h5_v3(path, array.filtered, array.barcodes, names, kinds)
    section = read_section(outs)
    np.testing.assert_array_equal(dense(section.counts), array.filtered[:, :10])
    assert section.counts.var_names.is_unique
    assert section.counts.var_names[5] == "GENE2-1"
    assert any("2 Antibody Capture" in note for note in section.notes)
    assert any("more than once (GENE2)" in note for note in section.notes)


def test_clusters_prefer_the_graph(outs: Path, array: Array) -> None:
    labels = [i % 3 + 1 for i in range(len(array.barcodes))]
    write_clusters(outs, "kmeans_2_clusters", array.barcodes, [1] * len(labels))
    write_clusters(outs, "kmeans_10_clusters", array.barcodes, [10] * len(labels))
    assert set(read_section(outs).counts.obs["cluster"]) == {"10"}
    write_clusters(outs, "gene_expression_graphclust", array.barcodes[::-1], labels[::-1])
    cluster = read_section(outs).counts.obs["cluster"]
    assert list(cluster) == [str(label) for label in labels]
    assert cluster.dtype == "category"


def test_spot_diameter_of_65_um_is_no_disagreement(outs: Path) -> None:
    write_scalefactors(outs / "spatial", spot_diameter_fullres=13.0)
    assert read_section(outs).notes == []


def test_disagreement_beyond_five_percent_is_noted(outs: Path) -> None:
    section = read_section(outs, mpp=5.5)
    assert section.slide.mpp == 5.5
    (note,) = [note for note in section.notes if note.startswith("mpp")]
    assert "5.5 (given)" in note
    assert "says 5," in note
    assert not any(note.startswith("mpp") for note in read_section(outs, mpp=5.2).notes)


def test_no_full_resolution_image_says_where_it_comes_from(outs: Path) -> None:
    (outs.parent / "image.tif").unlink()
    write_image(outs / "spatial" / "cytassist_image.tiff")
    write_image(outs / "spatial" / "tissue_hires_image.png")
    with pytest.raises(InputError, match="does not copy it to outs"):
        read_section(outs)
    other = write_image(outs.parent.parent / "he.png")
    assert read_section(outs, image=other).slide.path == other


def test_two_images_are_not_guessed_between(outs: Path) -> None:
    write_image(outs.parent / "a.tif")
    write_image(outs.parent / "b.tif")
    (outs.parent / "image.tif").unlink()
    with pytest.raises(InputError, match=r"several images \(a.tif, b.tif\)"):
        read_section(outs)


def test_barcodes_without_a_spot_are_noted(outs: Path, array: Array) -> None:
    path = outs / "spatial" / "tissue_positions.csv"
    write_positions(
        path, array.positions[array.positions["barcode"] != array.barcodes[3]], header=True
    )
    section = read_section(outs)
    assert section.counts.n_obs == len(array.barcodes) - 1
    assert any(array.barcodes[3] in note for note in section.notes)
    write_positions(path, array.positions.assign(barcode="X-1").head(1), header=True)
    with pytest.raises(InputError, match="none of the"):
        read_section(outs)


@pytest.mark.parametrize("name", ["spatial/tissue_positions.csv", "filtered_feature_bc_matrix.h5"])
def test_the_missing_file_of_a_run_is_named(outs: Path, name: str) -> None:
    (outs / name).unlink()
    with pytest.raises(InputError, match=f"holds no .*{Path(name).stem}"):
        read_section(outs)


def put(path: Path, name: str, value: object) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        file[name] = value


@pytest.mark.parametrize("value", [2**31 - 1, 200_000, -5, 0])
@pytest.mark.parametrize("name", ["matrix/indptr", "matrix/indices"])
def test_numbers_that_lead_out_of_a_matrix_are_refused(outs: Path, name: str, value: int) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    with h5py.File(path) as file:
        numbers = file[name][:]
    numbers[len(numbers) // 2] = value
    put(path, name, numbers)
    if (name, value) == ("matrix/indices", 0):
        read_section(outs)  # sound, though of another gene
        return
    with pytest.raises(InputError, match="its parts do not fit together"):
        read_section(outs)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("matrix/features/name", [b"A"]),
        ("matrix/features/id", np.array([b"\xff\xfe"])),
        ("matrix/shape", 3),
    ],
)
def test_parts_of_another_kind_are_refused(outs: Path, name: str, value: object) -> None:
    path = outs / "filtered_feature_bc_matrix.h5"
    put(path, name, value)
    with pytest.raises(InputError, match="parts") as caught:
        read_section(outs)
    assert str(path) in str(caught.value)


def damage_text(path: Path) -> None:
    path.write_text("this is a text file\n" * 50)


def damage_cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("filtered_feature_bc_matrix.h5", damage_text, "is not an HDF5 file"),
        ("filtered_feature_bc_matrix.h5", damage_cut, "damaged or cut short"),
        ("spatial/scalefactors_json.json", damage_cut, "is not a JSON object"),
        ("spatial/tissue_positions.csv", damage_text, "no column|columns and no header"),
    ],
)
def test_damaged_files_name_file_and_cure(
    outs: Path, name: str, damage: Callable[[Path], None], message: str
) -> None:
    damage(outs / name)
    with pytest.raises(InputError, match=message) as caught:
        read_section(outs)
    assert str(outs / name) in str(caught.value)
    assert "again" in str(caught.value) or "give" in str(caught.value)


def test_cut_gzip_and_parquet(outs: Path, array: Array) -> None:
    (outs / "filtered_feature_bc_matrix.h5").unlink()
    folder = write_mtx(
        outs / "filtered_feature_bc_matrix", array.filtered, array.barcodes, zipped=True
    )
    damage_cut(folder / "matrix.mtx.gz")
    with pytest.raises(InputError, match="gzip data is damaged or cut short"):
        read_section(outs)
    parquet = write_positions(outs / "tissue_positions.parquet", array.positions, header=True)
    damage_cut(parquet)
    with pytest.raises(InputError, match="damaged or cut short"):
        read_positions(parquet)


def test_repeated_barcode_in_positions(outs: Path, array: Array) -> None:
    twice = pd.concat([array.positions, array.positions.head(1)])
    write_positions(outs / "spatial" / "tissue_positions.csv", twice, header=True)
    with pytest.raises(InputError, match="duplicate barcodes"):
        read_section(outs)


def write_hd(root: Path, bins: tuple[int, ...] = (8, 16)) -> Path:
    for size in bins:
        square = root / "outs" / "binned_outputs" / f"square_{size:03d}um"
        side = 160 // size
        row, col = (a.ravel() for a in np.indices((side, side)))
        table = pd.DataFrame(
            {
                "barcode": [
                    f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, col, strict=True)
                ],
                "in_tissue": 1,
                "array_row": row,
                "array_col": col,
                # HD arrays are mirrored in the image
                "pxl_row_in_fullres": 60 + row * size / 0.5,
                "pxl_col_in_fullres": 560 - col * size / 0.5,
            }
        )
        write_positions(square / "spatial" / "tissue_positions.parquet", table, header=True)
        write_scalefactors(
            square / "spatial",
            spot_diameter_fullres=size / 0.5,
            microns_per_pixel=0.5,
            bin_size_um=float(size),
        )
        counts = np.random.default_rng(size).poisson(1, (len(table), 5))
        write_h5_v3(square / "filtered_feature_bc_matrix.h5", counts, list(table["barcode"]))
    write_image(root / "outs" / "full_image.tif")
    return root / "outs"


def test_visium_hd_default_bin_is_noted(tmp_path: Path) -> None:
    outs = write_hd(tmp_path / "hd1")
    section = read_section(outs)
    assert (section.platform, section.spot_diameter_um, section.section) == (
        "visium_hd",
        8.0,
        "hd1",
    )
    assert section.slide.mpp == 0.5
    assert "microns_per_pixel" in section.slide.mpp_source
    assert any("bins of 8 um" in note for note in section.notes)
    assert validate(section) == []
    for path in (outs / "binned_outputs" / "square_016um", outs):
        other = read_section(path, bin_um=16)
        assert other.spot_pitch_um == 16.0
        assert not any("bins of" in note for note in other.notes)
    with pytest.raises(InputError, match="it has 8 um, 16 um"):
        read_section(outs, bin_um=2)


MATRICES = [
    "seurat/tests/testdata/visium/filtered_feature_bc_matrix.h5",
    "seurat/tests/testdata/visium_hd/binned_outputs/square_008um/filtered_feature_bc_matrix.h5",
    "seurat/tests/testdata/visium_hd/binned_outputs/square_016um/filtered_feature_bc_matrix.h5",
    "squidpy/tests/_data/filtered_feature_bc_matrix.h5",
    "visiumio/inst/extdata/10xVisium/section1/outs/raw_feature_bc_matrix.h5",
    "visiumio/inst/extdata/10xVisium/section2/outs/raw_feature_bc_matrix.h5",
    "visiumio/inst/extdata/binned_outputs/square_002um/filtered_feature_bc_matrix.h5",
]


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_counts_equal_scanpys(shared: Path, name: str) -> None:
    scanpy = pytest.importorskip("scanpy")
    path = shared / FIXTURES / name
    theirs = scanpy.read_10x_h5(path)
    ours = read_matrix(path, [])
    assert (ours.X != theirs.X).nnz == 0
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert list(ours.var["gene_ids"]) == list(theirs.var["gene_ids"])


@pytest.mark.parametrize("section", ["section1", "section2"])
def test_mtx_fixture_equals_scipys(shared: Path, section: str) -> None:
    folder = shared / FIXTURES / f"visiumio/inst/extdata/10xVisium/{section}/outs"
    ours = read_matrix(folder / "raw_feature_bc_matrix", [])
    theirs = mmread(folder / "raw_feature_bc_matrix" / "matrix.mtx").toarray().T
    np.testing.assert_array_equal(dense(ours), theirs)


def test_plain_text_named_gz_is_read(shared: Path) -> None:
    folder = shared / FIXTURES / "visiumio/inst/extdata/binned_outputs/square_002um"
    ours = read_matrix(folder / "filtered_feature_bc_matrix", [])
    assert ours.shape == (10, 10)
    assert ours.X.nnz == 0


@pytest.mark.parametrize(
    ("folder", "platform", "mpp"),
    [
        ("seurat/tests/testdata/visium", "visium", 0.72644),
        ("squidpy/tests/_data", "visium", 0.72683),
        ("visiumio/inst/extdata/10xVisium/section1/outs", "visium", 0.72672),
        ("visiumio/inst/extdata/10xVisium/section2/outs", "visium", 0.72672),
        ("seurat/tests/testdata/visium_hd", "visium_hd", 0.27376),
        ("visiumio/inst/extdata/binned_outputs/square_002um", "visium_hd", 0.27382),
    ],
)
def test_fixture_folders(
    shared: Path, tmp_path: Path, folder: str, platform: str, mpp: float
) -> None:
    image = write_image(tmp_path / "full.png")
    section = read_section(shared / FIXTURES / folder, image=image)
    assert section.platform == platform
    assert section.slide.mpp == pytest.approx(mpp, rel=5e-4)
    assert section.counts.n_obs > 0
    matched = section.spots.loc[section.counts.obs_names, ["x", "y"]].to_numpy()
    np.testing.assert_array_equal(section.coords, matched)
