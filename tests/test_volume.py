"""Predicted volumes on disk, read back by us and by others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from deepspace.core.errors import InputError
from deepspace.output import volume as volumes
from deepspace.output.volume import VolumeGrid, open_volume, volume_spatialdata, write_volume

GENES = ("ERBB2", "COL1A1", "CD24")
GRID = VolumeGrid((4, 6, 5), (8.0, 20.0, 20.0), (4.0, 110.0, -30.0))
RECORD = {"planes": [{"z_um": 4.0, "section": "C2"}], "seed": 0}


def planes(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(GRID.shape[0]):
        inside = rng.random(30) < 0.6
        size = (int(inside.sum()), len(GENES))
        found.append((inside, rng.gamma(2, 1, size), rng.random(size)))
    return found


def write(path: Path, **options: Any) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    given = planes()
    with write_volume(path, GRID, GENES, unit="log1p CP10k", record=RECORD, **options) as writer:
        for number in (2, 0, 3, 1):
            writer.add(number, *given[number])
    return given


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    given = write(tmp_path / "v.ome.zarr")
    found = open_volume(tmp_path / "v.ome.zarr")
    assert found.grid == GRID
    assert found.names == GENES
    assert found.record == {"unit": "log1p CP10k", **RECORD}
    for number, (inside, mean, sd) in enumerate(given):
        for column, gene in enumerate(GENES):
            for plane, values in zip(found.plane(number, gene), (mean, sd), strict=True):
                flat = plane.ravel()
                np.testing.assert_array_equal(np.isnan(flat), ~inside)
                np.testing.assert_array_equal(flat[inside], values[:, column].astype(np.float32))


def test_points_of_a_plane_are_where_the_metadata_puts_its_voxels(tmp_path: Path) -> None:
    x, y = GRID.plane_points().T
    with write_volume(tmp_path / "v.zarr", GRID, ["x", "y"], unit="um", record={}) as writer:
        for plane in range(4):
            places = np.stack([x, y], axis=1)
            writer.add(plane, np.ones(30, bool), places, places + GRID.z_um[plane])
    found = open_volume(tmp_path / "v.zarr")
    ome = zarr.open_group(tmp_path / "v.zarr")["mean"].attrs["ome"]
    scale, shift = ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    index = np.array([0, 3, 2, 1])
    where = index * scale["scale"] + shift["translation"]
    assert where[1:].tolist() == [28.0, 150.0, -10.0]
    assert found.mean[:, 3, 2, 1].tolist() == [-10.0, 150.0]
    assert found.sd[0, 3, 2, 1] == -10.0 + 28.0


def test_metadata_is_ngff(tmp_path: Path) -> None:
    write(tmp_path / "v.ome.zarr")
    group = json.loads((tmp_path / "v.ome.zarr/sd/zarr.json").read_text())
    assert group["zarr_format"] == 3
    ome = group["attributes"]["ome"]
    windows = [channel.pop("window") for channel in ome["omero"]["channels"]]
    um = {"type": "space", "unit": "micrometer"}
    assert ome == {
        "version": "0.5",
        "multiscales": [
            {
                "name": "sd",
                "axes": [
                    {"name": "c", "type": "channel"},
                    {"name": "z", **um},
                    {"name": "y", **um},
                    {"name": "x", **um},
                ],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [
                            {"type": "scale", "scale": [1.0, 8.0, 20.0, 20.0]},
                            {"type": "translation", "translation": [0.0, 4.0, 110.0, -30.0]},
                        ],
                    }
                ],
            }
        ],
        "omero": {
            "name": "sd",
            "channels": [
                {"label": "ERBB2", "color": "FFFFFF", "active": True},
                {"label": "COL1A1", "color": "FF00FF", "active": False},
                {"label": "CD24", "color": "00FFFF", "active": False},
            ],
        },
    }
    sd = np.concatenate([values for _, _, values in planes()]).astype(np.float32)
    assert [w["max"] for w in windows] == sd.max(axis=0).tolist()
    array = json.loads((tmp_path / "v.ome.zarr/sd/0/zarr.json").read_text())
    assert array["dimension_names"] == ["c", "z", "y", "x"]
    assert (array["shape"], array["data_type"]) == ([3, 4, 6, 5], "float32")
    assert array["fill_value"] == "NaN"
    (sharding,) = array["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"] == [1, 1, 6, 5]
    root = json.loads((tmp_path / "v.ome.zarr/zarr.json").read_text())["attributes"]
    assert root["ome"] == {"version": "0.5", "bioformats2raw.layout": 3}
    series = json.loads((tmp_path / "v.ome.zarr/OME/zarr.json").read_text())["attributes"]
    assert series["ome"]["series"] == ["mean", "sd"]


def test_ome_zarr_reads_it(tmp_path: Path) -> None:
    io = pytest.importorskip("ome_zarr.io")
    reader = pytest.importorskip("ome_zarr.reader")
    given = write(tmp_path / "v.ome.zarr")
    for name, column in (("mean", 1), ("sd", 2)):
        (node,) = reader.Reader(io.parse_url(tmp_path / "v.ome.zarr" / name))()
        assert node.metadata["channel_names"] == list(GENES)
        assert node.metadata["coordinateTransformations"][0][0]["scale"] == [1.0, 8.0, 20.0, 20.0]
        values = np.asarray(node.data[0])
        assert values.shape == (3, 4, 6, 5)
        inside = given[1][0]
        np.testing.assert_allclose(values[:, 1].reshape(3, -1)[:, inside].T, given[1][column])


def test_spatialdata_reads_it(tmp_path: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    given = write(tmp_path / "v.ome.zarr")
    volume_spatialdata(tmp_path / "v.ome.zarr").write(tmp_path / "s.zarr")
    found = spatialdata.read_zarr(tmp_path / "s.zarr")
    image = found["mean"]
    assert image.dims == ("c", "z", "y", "x")
    assert image.coords["c"].values.tolist() == list(GENES)
    matrix = spatialdata.transformations.get_transformation(image).to_affine_matrix(
        ("x", "y", "z"), ("x", "y", "z")
    )
    # the middle of voxel z 3, y 2, x 1
    np.testing.assert_allclose(matrix @ [1.5, 2.5, 3.5, 1.0], [-10.0, 150.0, 28.0, 1.0])
    inside, mean, _ = given[3]
    values = image.values[:, 3].reshape(3, -1)[:, inside].T
    np.testing.assert_allclose(values, mean, rtol=1e-6)


def test_genes_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "VOXELS", 60)
    monkeypatch.setattr(volumes, "SIDE", 4)
    given = write(tmp_path / "v.zarr")
    found = open_volume(tmp_path / "v.zarr")
    assert (found.mean.shards, found.mean.chunks) == ((1, 1, 8, 8), (1, 1, 4, 4))
    inside, mean, _ = given[2]
    np.testing.assert_allclose(found.mean[:, 2].reshape(3, -1)[:, inside].T, mean, rtol=1e-6)


def test_nothing_appears_when_it_fails(tmp_path: Path) -> None:
    given = planes()
    with (
        pytest.raises(IndexError),
        write_volume(tmp_path / "v.zarr", GRID, GENES, unit="", record={}) as writer,
    ):
        writer.add(9, *given[0])
    with (
        pytest.raises(ValueError, match=r"planes \[1, 2, 3\]"),
        write_volume(tmp_path / "v.zarr", GRID, GENES, unit="", record={}) as writer,
    ):
        writer.add(0, *given[0])
    assert list(tmp_path.iterdir()) == []


def test_wrong_shapes_and_existing_folders(tmp_path: Path) -> None:
    inside, mean, sd = planes()[0]
    with (
        pytest.raises(ValueError, match="voxels x 3 genes"),
        write_volume(tmp_path / "v.zarr", GRID, GENES, unit="", record={}) as writer,
    ):
        writer.add(0, inside, mean[:, :2], sd)
    write(tmp_path / "v.zarr")
    with pytest.raises(InputError, match="already exists"):
        write(tmp_path / "v.zarr")
    write(tmp_path / "v.zarr", overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/data.txt").write_text("x")
    with pytest.raises(InputError, match="not replaced"):
        write(tmp_path / "mine", overwrite=True)
    with pytest.raises(InputError, match="no volume of deepspace"):
        open_volume(tmp_path / "mine")


def test_a_volume_without_tissue(tmp_path: Path) -> None:
    grid = VolumeGrid((1, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))
    nothing = np.empty((0, 1))
    with write_volume(tmp_path / "v.zarr", grid, ["A"], unit="", record={}) as writer:
        writer.add(0, np.zeros((2, 2), bool), nothing, nothing)
    assert np.isnan(open_volume(tmp_path / "v.zarr").mean[:]).all()
