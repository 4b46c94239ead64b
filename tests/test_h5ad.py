"""AnnData files, HEST folders and SpatialData stores."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata import AnnData

from deepspace.core.errors import InputError
from deepspace.io.checks import validate
from deepspace.io.section import read_section
from deepspace.io.sheet import read_sheet
from make_files import Array, symbols, write_h5_v3, write_image, write_sheet


def anndata_of(array: Array, *, indices: bool = True) -> AnnData:
    inside = array.positions[array.inside]
    adata = AnnData(array.filtered.astype(np.float32))
    adata.obs_names = list(inside["barcode"])
    adata.var_names = symbols(array.genes)
    adata.obsm["spatial"] = inside[["pxl_col_in_fullres", "pxl_row_in_fullres"]].to_numpy()
    if indices:
        for name in ("array_row", "array_col"):
            adata.obs[name] = inside[name].to_numpy()
    return adata


@pytest.fixture
def array() -> Array:
    return Array()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return write_image(tmp_path / "he.png")


@pytest.fixture
def adata(array: Array) -> AnnData:
    return anndata_of(array)


def written(adata: AnnData, tmp_path: Path) -> Path:
    path = tmp_path / "s1.h5ad"
    adata.write_h5ad(path)
    return path


def test_h5ad(adata: AnnData, tmp_path: Path, image: Path) -> None:
    section = read_section(written(adata, tmp_path), image=image)
    assert (section.section, section.platform) == ("s1", "h5ad")
    np.testing.assert_array_equal(section.counts.X.toarray(), adata.X)
    np.testing.assert_array_equal(section.coords, adata.obsm["spatial"])
    assert section.slide.mpp == pytest.approx(5.0)
    assert section.notes == []
    assert validate(section) == []


@pytest.mark.parametrize("where", ["layer", "raw"])
def test_raw_counts_beside_normalised_x(
    adata: AnnData, tmp_path: Path, image: Path, where: str
) -> None:
    counts = adata.X.copy()
    if where == "layer":
        adata.layers["counts"] = counts
    else:
        adata.raw = adata.copy()
        adata = adata[:, :5].copy()
    adata.X = np.log1p(adata.X)
    section = read_section(written(adata, tmp_path), image=image)
    np.testing.assert_array_equal(section.counts.X.toarray(), counts)
    assert any(where in note and "X holds no raw counts" in note for note in section.notes)
    assert validate(section) == []


def test_only_normalised_counts(adata: AnnData, tmp_path: Path, image: Path) -> None:
    adata.X = np.log1p(adata.X)
    section = read_section(written(adata, tmp_path), image=image)
    (problem,) = validate(section)
    assert "normalised instead of raw counts" in problem
    assert "s1.h5ad" in problem


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_tissue_clusters_and_repeated_names(adata: AnnData, tmp_path: Path, image: Path) -> None:
    adata.obs["in_tissue"] = [0, 1] * (adata.n_obs // 2) + [1] * (adata.n_obs % 2)
    adata.obs["leiden"] = [i % 3 for i in range(adata.n_obs)]
    adata.var_names = ["A", "A", *symbols(10)]
    path = written(adata, tmp_path)
    section = read_section(path, image=image)
    inside = adata.obs["in_tissue"].to_numpy() == 1
    np.testing.assert_array_equal(section.counts.X.toarray(), adata.X[inside])
    assert list(section.counts.obs["cluster"]) == list(adata.obs["leiden"][inside].astype(str))
    assert list(section.counts.var_names[:2]) == ["A", "A-1"]
    assert len(section.spots) == adata.n_obs


def test_duplicate_barcodes_are_reported(adata: AnnData, tmp_path: Path, image: Path) -> None:
    adata.obs_names = ["X-1", "X-1", *adata.obs_names[2:]]
    with pytest.warns(UserWarning, match="not unique"):
        section = read_section(written(adata, tmp_path), image=image)
    (problem,) = validate(section)
    assert "duplicate barcodes: 1 occur more than once (X-1)" in problem


def test_swapped_axes_by_the_tissue(tmp_path: Path, array: Array, image: Path) -> None:
    adata = anndata_of(array, indices=False)
    path = written(adata, tmp_path)
    assert validate(read_section(path, image=image, mpp=5)) == []
    adata.obsm["spatial"] = adata.obsm["spatial"][:, ::-1]
    (problem,) = validate(read_section(written(adata, tmp_path), image=image, mpp=5))
    assert "x and y look swapped" in problem
    assert "of the spots lie on tissue" in problem


def test_faults_of_h5ad(adata: AnnData, tmp_path: Path, image: Path, array: Array) -> None:
    with pytest.raises(InputError, match="no image; give"):
        read_section(written(adata, tmp_path))
    places = adata.obsm.pop("spatial")
    with pytest.raises(InputError, match=r"no obsm\['spatial'\]"):
        read_section(written(adata, tmp_path), image=image)
    adata.obsm["spatial"] = np.column_stack([places, places])
    with pytest.raises(InputError, match=r"shape \(\d+, 4\); two columns"):
        read_section(written(adata, tmp_path), image=image)
    path = written(adata, tmp_path)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(InputError, match="damaged or cut short"):
        read_section(path, image=image)
    adata.write_h5ad(path, compression="gzip")
    with h5py.File(path) as file:
        where = file["X"].id.get_chunk_info(0).byte_offset
    whole = bytearray(path.read_bytes())
    whole[where : where + 10] = bytes(10)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="cannot be read as AnnData"):
        read_section(path, image=image)
    path.write_text("text")
    with pytest.raises(InputError, match="is not an HDF5 file"):
        read_section(path, image=image)
    write_h5_v3(path, array.filtered, array.barcodes)
    with pytest.raises(InputError, match="no AnnData"):
        read_section(path, image=image)
    with pytest.raises(InputError, match="a matrix without places"):
        read_section(path.rename(tmp_path / "m.h5"), image=image)


@pytest.fixture
def hest(tmp_path: Path, array: Array) -> Path:
    root = tmp_path / "hest"
    for name in ("st", "wsis", "metadata"):
        (root / name).mkdir(parents=True)
    anndata_of(array, indices=False).write_h5ad(root / "st" / "TENX1.h5ad")
    write_image(root / "wsis" / "TENX1.tif")
    metadata = {
        "pixel_size_um_estimated": 5.0,
        "pixel_size_um_embedded": 6.0,
        "st_technology": "Visium",
        "patient": None,
    }
    (root / "metadata" / "TENX1.json").write_text(json.dumps(metadata))
    return root


def test_hest_by_folder_by_file_and_by_sheet(hest: Path, array: Array) -> None:
    sheet = write_sheet(hest / "s.csv", [{"section": "a", "patient": "P", "h5ad": "st/TENX1.h5ad"}])
    for section in (read_section(hest), read_section(hest / "st/TENX1.h5ad"), *read_sheet(sheet)):
        assert section.platform == "hest"
        np.testing.assert_array_equal(section.counts.X.toarray(), array.filtered)
        assert section.slide.mpp == 5.0
        assert "pixel_size_um_estimated" in section.slide.mpp_source
        assert any("pixel_size_um_embedded says 6" in note for note in section.notes)
        assert section.spot_diameter_um == 55.0
        assert section.slide.path.name == "TENX1.tif"
    assert read_section(hest).section == "TENX1"


def test_hest_with_several_samples(hest: Path) -> None:
    (hest / "st" / "TENX2.h5ad").write_bytes((hest / "st" / "TENX1.h5ad").read_bytes())
    with pytest.raises(InputError, match=r"holds 2 samples \(TENX1, TENX2\)"):
        read_section(hest)
    assert read_section(hest, section="TENX1").section == "TENX1"
    with pytest.raises(InputError, match=r"TENX2.tif: no such image"):
        read_section(hest, section="TENX2")


def test_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = tmp_path / "s.zarr"
    store.mkdir()
    (store / "zarr.json").write_text("{}")
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name.startswith("spatialdata"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"pip install 'deepspace\[spatial\]'"):
        read_section(store)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_spatialdata(tmp_path: Path, array: Array) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel  # noqa: PLC0415
    from spatialdata.transformations import Scale  # noqa: PLC0415

    adata = anndata_of(array)
    places = adata.obsm.pop("spatial")
    adata.obs["region"] = "spots"
    adata.obs["region"] = adata.obs["region"].astype("category")
    adata.obs["spot"] = np.arange(adata.n_obs)[::-1]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 640, 600), np.uint8)
    data = spatialdata.SpatialData(
        images={
            "he": Image2DModel.parse(
                pixels,
                dims=("c", "y", "x"),
                scale_factors=[2],
                chunks=(3, 128, 128),
                transformations={"global": Scale([0.5, 0.5], axes=("x", "y"))},
            )
        },
        shapes={
            # stored backwards and in units of half a pixel
            "spots": ShapesModel.parse(places[::-1] / 2, geometry=0, radius=3, transformations=None)
        },
        tables={
            "table": TableModel.parse(
                adata, region="spots", region_key="region", instance_key="spot"
            )
        },
    )
    store = tmp_path / "block.zarr"
    data.write(store)
    section = read_section(store)
    assert (section.platform, section.section) == ("spatialdata", "block")
    np.testing.assert_array_equal(section.counts.X.toarray(), array.filtered)
    np.testing.assert_allclose(section.coords, places)
    assert (section.slide.width, section.slide.height) == (600, 640)
    window = section.slide.read(100, 200, 50, 40)
    np.testing.assert_array_equal(window, pixels[:, 200:240, 100:150].transpose(1, 2, 0))
    assert section.slide.mpp == pytest.approx(5.0)
    assert all(path.is_file() for path in section.sources.values())
    before = section.slide.content_hash()
    assert before == read_section(store).slide.content_hash()
    del data.tables["table"]
    data.write(tmp_path / "bare.zarr")
    with pytest.raises(InputError, match="no table annotates a shapes element"):
        read_section(tmp_path / "bare.zarr")
