"""Predictions and tables on disk."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from deepspace.core.errors import InputError
from deepspace.core.files import sha256
from deepspace.output import write
from make_sections import lattice, make_section

PROVENANCE = {"seed": 0, "training": [{"section": "A", "spots": 9}], "gap": None, "µ": "ä"}


def make_prediction(tmp_path: Path, name: str = "S1") -> tuple[AnnData, dict[str, np.ndarray]]:
    coords = lattice(4, pitch=80.0) + 0.25
    section = make_section(tmp_path, name, np.ones((16, 3)), coords, mpp=0.5)
    rng = np.random.default_rng(0)
    values = {key: rng.random((16, 2)) for key in ("mean", "sd", "sd_latent")}
    assert section.counts is not None
    obs = pd.DataFrame(
        {"measured": [True, False] * 8, "in_tissue": True, "ood": False},
        index=section.counts.obs_names,
    )
    var = pd.DataFrame({"predictable": [True, False], "score": [0.5, np.nan]}, index=["A", "B"])
    adata = write.prediction_anndata(
        values, coords, obs, var, section=section, provenance=PROVENANCE, spot_diameter_px=40.0
    )
    return adata, values | {"coords": coords}


def test_h5ad_holds_the_contract(tmp_path: Path) -> None:
    adata, values = make_prediction(tmp_path)
    write.write_prediction(adata, tmp_path / "p.h5ad")
    read = anndata.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_allclose(read.X, values["mean"], rtol=1e-6)
    np.testing.assert_allclose(read.layers["sd"], values["sd"], rtol=1e-6)
    np.testing.assert_allclose(read.layers["sd_latent"], values["sd_latent"], rtol=1e-6)
    assert read.X.dtype == read.layers["sd"].dtype == np.float32
    assert read.obsm["spatial"].dtype == np.float64
    np.testing.assert_array_equal(read.obsm["spatial"], values["coords"])
    assert read.obs_names[3] == "S1-3"
    assert list(read.obs["measured"]) == [True, False] * 8
    assert all(read.obs[name].dtype == bool for name in ("measured", "in_tissue", "ood"))
    assert set(read.obs["section"]) == {"S1"}
    assert read.var["predictable"].dtype == bool
    np.testing.assert_array_equal(read.var["score"], [0.5, np.nan])
    assert write.read_provenance(read) == PROVENANCE


def test_library_maps_full_resolution_to_thumbnails(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(write, "HIRES_PX", 200)
    monkeypatch.setattr(write, "LOWRES_PX", 100)
    adata, _ = make_prediction(tmp_path)
    library = adata.uns["spatial"]["S1"]
    scales = library["scalefactors"]
    # the slide is 400 x 400
    assert library["images"]["hires"].shape == (200, 200, 3)
    assert library["images"]["lowres"].shape == (100, 100, 3)
    assert library["images"]["hires"].dtype == np.uint8
    assert scales["tissue_hires_scalef"] == pytest.approx(0.5)
    assert scales["tissue_lowres_scalef"] == pytest.approx(0.25)
    assert scales["spot_diameter_fullres"] == 40.0


def test_missing_columns_are_named(tmp_path: Path) -> None:
    section = make_section(tmp_path, "S", np.ones((1, 1)), np.ones((1, 2)))
    values = dict.fromkeys(("mean", "sd", "sd_latent"), np.ones((1, 1)))
    obs = pd.DataFrame({"measured": [True], "in_tissue": True}, index=["a"])
    var = pd.DataFrame({"predictable": [True], "score": 0.1}, index=["g"])
    with pytest.raises(ValueError, match="ood"):
        write.prediction_anndata(
            values, [[1, 1]], obs, var, section=section, provenance={}, spot_diameter_px=1.0
        )


@pytest.mark.parametrize("name", ["S/1", ".", ".."])
def test_section_name_that_reads_as_a_folder_is_refused(tmp_path: Path, name: str) -> None:
    section = replace(make_section(tmp_path, "S", np.ones((1, 1)), np.ones((1, 2))), section=name)
    values = dict.fromkeys(("mean", "sd", "sd_latent"), np.ones((1, 1)))
    obs = pd.DataFrame({"measured": [True], "in_tissue": True, "ood": False}, index=["a"])
    var = pd.DataFrame({"predictable": [True], "score": 0.1}, index=["g"])
    with pytest.raises(InputError, match=f"section '{re.escape(name)}'.*rename"):
        write.prediction_anndata(
            values, [[1, 1]], obs, var, section=section, provenance={}, spot_diameter_px=1.0
        )


def test_same_prediction_same_bytes(tmp_path: Path) -> None:
    for name in ("a.h5ad", "b.h5ad"):
        adata, _ = make_prediction(tmp_path)
        write.write_prediction(adata, tmp_path / name)
    assert sha256(tmp_path / "a.h5ad") == sha256(tmp_path / "b.h5ad")


def test_who_looks_at_the_process_does_not_show_in_the_file(tmp_path: Path) -> None:
    adata, _ = make_prediction(tmp_path)
    adata.obs = adata.obs.assign(**{f"column_{i}": float(i) for i in range(100)})
    done, found = threading.Event(), set()

    def look() -> None:  # as the profiler of dask does
        kept: deque[object] = deque(maxlen=5)
        while not done.wait(0.0005):
            kept.append(sys._current_frames())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for number in range(5):
            write.write_prediction(adata, tmp_path / f"{number}.h5ad")
            found.add(sha256(tmp_path / f"{number}.h5ad"))
    finally:
        done.set()
        watcher.join()
    assert len(found) == 1


def test_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: Any) -> None:
    adata, _ = make_prediction(tmp_path)
    path = tmp_path / "out" / "p.h5ad"
    write.write_prediction(adata, path)
    before = sha256(path)

    def half(what: AnnData, target: Path) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(write, "save_h5ad", half)
    with pytest.raises(OSError, match="disk full"):
        write.write_prediction(adata, path, overwrite=True)
    assert sha256(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["p.h5ad"]


def test_existing_output_is_refused(tmp_path: Path) -> None:
    adata, _ = make_prediction(tmp_path)
    path = tmp_path / "p.h5ad"
    path.write_text("mine")
    with pytest.raises(InputError, match="overwrite"):
        write.write_prediction(adata, path, overwrite=False)
    assert path.read_text() == "mine"


def test_a_folder_is_not_replaced_by_a_file_nor_the_reverse(tmp_path: Path) -> None:
    pytest.importorskip("spatialdata")
    adata, _ = make_prediction(tmp_path)
    file, folder = tmp_path / "out" / "p.zarr", tmp_path / "out" / "p.h5ad"
    folder.mkdir(parents=True)
    (folder / "mine").write_text("mine")
    file.write_text("mine")
    for path in (file, folder):
        with pytest.raises(InputError, match="choose another --out"):
            write.write_prediction(adata, path, overwrite=True)
    assert file.read_text() == (folder / "mine").read_text() == "mine"
    assert {p.name for p in file.parent.iterdir()} == {"p.zarr", "p.h5ad"}


@pytest.mark.slow
def test_failure_keeps_the_old_store(tmp_path: Path, monkeypatch: Any) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    adata, _ = make_prediction(tmp_path)
    path = tmp_path / "out" / "p.zarr"
    write.write_prediction(adata, path)
    before = {p: sha256(p) for p in path.rglob("*") if p.is_file()}

    def half(self: Any, target: Path, **options: Any) -> None:
        Path(target).mkdir()
        (Path(target) / "zarr.json").write_text("half of it")
        raise OSError("disk full")

    monkeypatch.setattr(spatialdata.SpatialData, "write", half)
    with pytest.raises(OSError, match="disk full"):
        write.write_prediction(adata, path, overwrite=True)
    assert {p: sha256(p) for p in path.rglob("*") if p.is_file()} == before
    assert [p.name for p in path.parent.iterdir()] == ["p.zarr"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [".hidden", "__x"])
def test_store_of_a_section_with_an_awkward_name_is_not_empty(tmp_path: Path, name: str) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    adata, _ = make_prediction(tmp_path)
    adata.uns["spatial"] = {name: adata.uns["spatial"]["S1"]}
    write.write_prediction(adata, tmp_path / "p.zarr")
    store = spatialdata.read_zarr(tmp_path / "p.zarr")
    assert len(store.images) == len(store.shapes) == len(store.tables) == 1
    assert set(store.coordinate_systems) == {name, "global"}


@pytest.mark.parametrize("name", ["p.csv", "p", "p.h5"])
def test_unknown_suffix_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=r"\.h5ad.*\.zarr"):
        write.check_suffix(Path(name))


def test_zarr_without_the_extra_names_it(monkeypatch: Any) -> None:
    monkeypatch.setitem(__import__("sys").modules, "spatialdata", None)
    with pytest.raises(InputError, match=r"pip install 'deepspace\[spatial\]'"):
        write.check_suffix(Path("p.zarr"))


@pytest.mark.slow
def test_spatialdata_reads_back_in_register(tmp_path: Path, monkeypatch: Any) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.transformations import get_transformation  # noqa: PLC0415

    monkeypatch.setattr(write, "HIRES_PX", 100)
    adata, values = make_prediction(tmp_path, name="S 1")
    path = tmp_path / "p.zarr"
    write.write_prediction(adata, path)
    write.write_prediction(adata, path, overwrite=True)
    store = spatialdata.read_zarr(path)
    circles = store["S_1_points"]
    assert set(store.coordinate_systems) == {"S 1", "global"}
    np.testing.assert_array_equal(circles.geometry.x, values["coords"][:, 0])
    assert set(circles["radius"]) == {20.0}
    table = store["prediction"]
    assert list(table.obs["instance_id"]) == list(circles.index)
    np.testing.assert_allclose(table.X, values["mean"], rtol=1e-6)
    assert write.read_provenance(table) == PROVENANCE
    # a 100 px picture of a 400 px slide: one pixel is four
    to_full = get_transformation(store["S_1_image"], "S 1").to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(to_full, np.diag([4.0, 4.0, 1.0]))
    extent = spatialdata.get_extent(store["S_1_image"], coordinate_system="S 1")
    assert extent["x"] == pytest.approx((0, 400))


@pytest.mark.slow
def test_scanpy_draws_it_untouched(tmp_path: Path) -> None:
    scanpy = pytest.importorskip("scanpy")
    adata, values = make_prediction(tmp_path)
    write.write_prediction(adata, tmp_path / "p.h5ad")
    read = scanpy.read_h5ad(tmp_path / "p.h5ad")
    (axes,) = scanpy.pl.spatial(read, color="A", show=False)
    scale = read.uns["spatial"]["S1"]["scalefactors"]["tissue_hires_scalef"]
    (patches,) = (c for c in axes.collections if len(c.get_paths()) == 16)
    centres = np.array(
        [path.get_extents().get_points().mean(axis=0) for path in patches.get_paths()]
    )
    np.testing.assert_allclose(np.sort(centres[:, 0]), np.sort(values["coords"][:, 0]) * scale)


def test_tables_are_whole_and_repeatable(tmp_path: Path) -> None:
    table = pd.DataFrame({"gene": ["A", "B"], "pearson": [0.1, np.nan], "spots": [3, 4]})
    first = [p.read_bytes() for p in write.write_table(table, tmp_path / "v1.0" / "scores.best")]
    paths = write.write_table(table, tmp_path / "v1.0" / "scores.best")
    assert [p.name for p in paths] == ["scores.best.parquet", "scores.best.csv"]
    assert [p.read_bytes() for p in paths] == first
    pd.testing.assert_frame_equal(pd.read_parquet(paths[0]), table)
    pd.testing.assert_frame_equal(pd.read_csv(paths[1]), table)


def test_json_refuses_nan(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write.write_json({"b": 1, "a": [None, "µm"]}, path)
    assert json.loads(path.read_text("utf-8")) == {"b": 1, "a": [None, "µm"]}
    with pytest.raises(ValueError, match="JSON"):
        write.write_json({"b": float("nan")}, path)
    assert json.loads(path.read_text("utf-8"))["b"] == 1
