"""The viewer's server: what it finds, and that its answers are those of the files."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from PIL import Image
from starlette.testclient import TestClient

from deepspace.core.errors import InputError
from deepspace.data.transforms import log1p_cp10k, total_counts
from deepspace.io.memory import slide_from_array
from deepspace.io.sheet import read_sheet
from deepspace.registration.transform import Transform
from deepspace.simulate import Block, BlockConfig, simulate_block
from deepspace.viewer import columns, region
from deepspace.viewer.app import make_app
from deepspace.viewer.columns import ShownPrediction
from deepspace.viewer.project import PointSet, Project, open_project
from deepspace.viewer.registered import RegisteredTiles
from deepspace.viewer.tiles import TILE, TileSource
from make_completed import write_completed

TOKEN, HOST = "a secret", "127.0.0.1:8000"


@pytest.fixture(scope="module")
def block() -> Block:
    return simulate_block(BlockConfig.preset("tiny", seed=1, unmeasured=("S2",)))


@pytest.fixture(scope="module")
def folder(block: Block, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_completed(block, tmp_path_factory.mktemp("viewer"))


@pytest.fixture(scope="module")
def project(folder: Path) -> Project:
    return open_project(folder)


@pytest.fixture(scope="module")
def client(project: Project) -> Iterator[TestClient]:
    app = make_app(project, TOKEN, {HOST})
    with TestClient(app, base_url=f"http://{HOST}", headers={"X-Deepspace-Token": TOKEN}) as found:
        yield found


def first(client: TestClient, section: int = 0) -> tuple[dict[str, Any], dict[str, Any]]:
    about = client.get("/api/project").json()["sections"][section]
    return about, about["sets"][0]


def test_sections_lie_in_the_order_of_the_block(client: TestClient, project: Project) -> None:
    found = client.get("/api/project").json()
    assert [s["name"] for s in found["sections"]] == ["S1", "S2", "S3"]
    assert [s["z_um"] for s in found["sections"]] == sorted(s["z_um"] for s in found["sections"])
    assert found["sections"][0]["sets"][0]["layers"] == [
        "predicted",
        "measured",
        "both",
        "sd",
        "ood",
    ]
    assert found["sections"][1]["sets"][0]["layers"] == ["predicted", "sd", "ood"]
    assert str(project.sections[0].image.tiles.slide.path.parent) not in json.dumps(found)


def test_values_are_those_of_the_file(client: TestClient, block: Block, folder: Path) -> None:
    _, one = first(client)
    places = np.frombuffer(client.get(f"/api/sets/{one['id']}/points").content, "<f4")
    gene = block.genes[3]
    asked = {"layer": "predicted", "gene": gene}
    answer = client.get(f"/api/sets/{one['id']}/values", params=asked)
    truth = block.truth("S1", places.reshape(-1, 2))[:, 3]
    np.testing.assert_allclose(np.frombuffer(answer.content, "<f4"), truth, atol=1e-4)
    # on a scale of its own a prediction that is too flat would look right
    measured = client.get(
        f"/api/sets/{one['id']}/values", params={"layer": "measured", "gene": gene}
    )
    for name in ("x-low", "x-high"):
        assert answer.headers[name] == measured.headers[name]
    values = np.frombuffer(measured.content, "<f4")
    low, high = (float(answer.headers[name]) for name in ("x-low", "x-high"))
    assert np.nanmin(values) <= low < high <= np.nanmax(values)
    odd = client.get(f"/api/sets/{one['id']}/values", params={"layer": "ood"}).content
    np.testing.assert_allclose(
        np.frombuffer(odd, "<f4"), np.linspace(0.1, 1.2, one["points"]), atol=1e-6
    )


def test_measurements_stand_beside_predictions(client: TestClient, folder: Path) -> None:
    _, one = first(client)
    section = read_sheet(folder.parent / "block" / "sheet.csv")[0]
    counts = section.require_counts()
    gene = str(counts.var_names[5])
    file = ShownPrediction(folder / "sections" / "S1-spots.h5ad")
    rows = counts.obs_names.get_indexer(file.obs.index)
    expected = log1p_cp10k(counts.X[:, [5]].toarray().astype(float), total_counts(counts))[rows, 0]
    measured, both, plain = (
        np.frombuffer(
            client.get(
                f"/api/sets/{one['id']}/values", params={"layer": layer, "gene": gene}
            ).content,
            "<f4",
        )
        for layer in ("measured", "both", "predicted")
    )
    np.testing.assert_allclose(measured[rows >= 0], expected[rows >= 0], rtol=1e-5)
    # the file says that no spot is measured, as where all have failed
    np.testing.assert_array_equal(both, plain)


def test_one_column_is_read_whatever_the_layout(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "wide.h5ad"
    path.write_bytes((folder / "sections" / "S1-spots.h5ad").read_bytes())
    with h5py.File(path, "a") as file:
        values = np.random.default_rng(0).random(file["X"].shape, dtype=np.float32)
        del file["X"]
        file.create_dataset("X", data=values, chunks=(2, 30), compression="gzip")
    direct = ShownPrediction(path)
    turned = ShownPrediction(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "MOST_BYTES", 1)
        patch.setattr(columns, "BAND_BYTES", 4 * values.shape[1] * 7)
        got = [turned.column("X", gene) for gene in range(values.shape[1])]
    np.testing.assert_array_equal(np.stack(got, axis=1), values)
    np.testing.assert_array_equal(direct.column("X", 29), values[:, 29])


def test_tiles_are_the_slide(client: TestClient, project: Project) -> None:
    about, _ = first(client)
    slide = project.sections[0].image.tiles.slide
    image = client.get(f"/api/images/{about['image']}").json()
    level = image["max_level"]
    answer = client.get(f"/api/images/{about['image']}/{level}/1_2.jpg")
    tile = np.asarray(Image.open(io.BytesIO(answer.content))).astype(float)
    exact = slide.read(TILE, 2 * TILE, tile.shape[1], tile.shape[0]).astype(float)
    assert np.abs(tile - exact).mean() < 6
    for level in range(image["max_level"] + 1):
        assert client.get(f"/api/images/{about['image']}/{level}/0_0.jpg").status_code == 200


def test_tiles_without_a_pyramid_come_from_one_overview(project: Project) -> None:
    slide = project.sections[0].image.tiles.slide
    flat = type(slide)(slide.path, slide.mpp, "test", slide.levels[:1], (), slide._source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepspace.viewer.tiles.OVERVIEW_PX", 256)
        source = TileSource(flat)
        small = np.asarray(Image.open(io.BytesIO(source.tile(source.max_level - 3, 0, 0))))
    expected = slide.overview(8.0)
    assert small.shape[:2] == expected.shape[:2] or small.shape[0] == TILE
    height, width = (min(a, b) for a, b in zip(small.shape[:2], expected.shape[:2], strict=True))
    apart = small[:height, :width].astype(float) - expected[:height, :width]
    assert np.abs(apart).mean() < 8


def test_neighbours_are_those_of_the_registered_sections(client: TestClient, block: Block) -> None:
    _, one = first(client, 1)  # S2 is not measured
    gene = block.genes[0]
    found = client.get(f"/api/sets/{one['id']}/point/4", params={"gene": gene}).json()
    assert found["measured"] is None
    assert found["low"] < found["predicted"] < found["high"]
    assert found["high"] - found["predicted"] == pytest.approx(1.6449 * 0.5, rel=1e-3)
    assert {n["section"] for n in found["neighbours"]} == {"S1", "S3"}
    distances = [n["distance_um"] for n in found["neighbours"]]
    assert distances == sorted(distances)
    assert min(distances) >= min(abs(n["dz_um"]) for n in found["neighbours"]) > 0


def test_an_area_tells_what_differs_in_it(client: TestClient, project: Project) -> None:
    about, one = first(client)
    half = [[0, 0], [about["width"] / 2, 0], [about["width"] / 2, about["height"]]]
    polygon = {"polygon": [*half, [0, about["height"]]], "name": "left"}
    found = client.post(f"/api/sets/{one['id']}/region", json=polygon).json()
    _, points = project.sets[one["id"]]
    used = ~points.values.obs["ood"].to_numpy()  # odd points are left out
    inside = used & (points.values.coords[:, 0] < about["width"] / 2)
    assert found["points"] == inside.sum()
    mpp = about["mpp"]
    assert found["area_mm2"] == pytest.approx(
        about["width"] / 2 * about["height"] * mpp**2 / 1e6, rel=1e-9
    )
    top = found["genes"][0]
    values = points.values.column("X", points.genes[top["name"]])
    assert top["mean_inside"] == pytest.approx(values[inside].mean(), rel=1e-4)
    assert all(gene["verdict"] != "no" for gene in found["genes"])
    apart = [abs(gene["difference"]) for gene in found["genes"]]
    assert apart == sorted(apart, reverse=True)
    table = pd.read_csv(
        io.BytesIO(client.post(f"/api/sets/{one['id']}/region.csv", json=polygon).content)
    )
    assert table["name"].iloc[0] == top["name"]
    drawn = client.post(f"/api/sets/{one['id']}/region.geojson", json=polygon).json()
    assert drawn["features"][0]["geometry"]["coordinates"][0][1] == half[1]


def test_genes_are_found_as_they_are_typed(client: TestClient) -> None:
    _, one = first(client)

    def names(text: str) -> list[str]:
        found = client.get("/api/genes", params={"set": one["id"], "q": text, "limit": 5})
        return [gene["name"] for gene in found.json()["genes"]]

    assert names("img00")[0].startswith("IMG00")
    assert len(names("")) == 5
    assert names("no such gene") == []


def test_a_sheet_alone_shows_slides_and_measurements(folder: Path) -> None:
    project = open_project(folder.parent / "block" / "sheet.csv")
    assert [s.name for s in project.sections] == ["S1", "S2", "S3"]
    assert [[one.layers for one in s.sets] for s in project.sections] == [
        [["measured", "cluster"]],
        [],
        [["measured", "cluster"]],
    ]


def test_a_prediction_alone_is_shown_on_its_own_picture(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "alone.h5ad"
    path.write_bytes((folder / "sections" / "S1-spots.h5ad").read_bytes())
    alone, whole = open_project(path), open_project(folder)
    tiles, slide = alone.sections[0].image.tiles, whole.sections[0].image.tiles
    assert abs(tiles.width - slide.width) <= 1
    assert tiles.mpp == pytest.approx(slide.mpp, rel=1e-3)
    a, b = (
        np.asarray(Image.open(io.BytesIO(t.tile(t.max_level - 2, 0, 0))), float)
        for t in (tiles, slide)
    )
    assert np.abs(a - b).mean() < 8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: root / "nothing", "no such file or folder"),
        (lambda root: (root / "a.h5ad", (root / "a.h5ad").write_bytes(b"no"))[0], "a.h5ad"),
        (lambda root: (root, (root / "a.h5ad").write_bytes(b"no"))[0], "a.h5ad"),
        (lambda root: root, "nothing to look at; give a folder of complete"),
        (lambda root: (root / "a.bin", (root / "a.bin").write_bytes(b"no"))[0], "nothing to look"),
    ],
)
def test_what_cannot_be_shown_is_told_once(
    tmp_path: Path, make: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="deepspace"), pytest.raises(InputError, match=message) as e:
        open_project(make(tmp_path))
    assert "left out" not in caplog.text
    assert str(e.value).count("a.h5ad: cannot be used") <= 1


def test_data_that_cannot_be_shown_tell_their_own_fault(tmp_path: Path) -> None:
    places = {"spatial": np.arange(20.0).reshape(10, 2)}
    AnnData(np.ones((10, 3), np.float32), obsm=places).write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(InputError, match="as a section: section a: no image"):
        open_project(tmp_path / "a.h5ad")


def test_a_broken_prediction_beside_data_is_told(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outs = next(folder.parent.rglob("outs"))
    shutil.copytree(outs.parent, tmp_path / "S1")
    (tmp_path / "S1" / "outs" / "a.h5ad").write_bytes(b"half")
    with caplog.at_level("INFO", logger="deepspace"):
        project = open_project(tmp_path / "S1" / "outs")
    assert len(project.sections) == 1
    assert "left out" in caplog.text


def test_ihc_of_unknown_sections_is_told(folder: Path) -> None:
    with pytest.raises(InputError, match="no such section; there are S1, S2, S3"):
        open_project(folder, ihc={"S9": folder / "x.tif"})


def decoded(tiles: TileSource, level: int, column: int = 0, row: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(tiles.cut(level, column, row))), np.float64)


def test_a_registered_neighbour_is_shown_as_it_lies(project: Project) -> None:
    """A mirrored copy, with the map between them known."""
    slide = project.sections[0].image.tiles.slide
    mpp = slide.require_mpp()
    pixels = slide.resample((0, 0), (slide.width, slide.height), (slide.width, slide.height))
    mirrored = np.ascontiguousarray(pixels[:, ::-1])
    other = slide_from_array(mirrored, mpp, Path("mirrored"), "test")
    frame = TileSource(slide)
    width_um = slide.width * mpp
    laid = RegisteredTiles(other, frame, Transform.of([[-1, 0], [0, 1]], [width_um, 0]))
    for level in (frame.max_level, frame.max_level - 1, frame.max_level - 3):
        there, here = decoded(laid, level), decoded(frame, level)
        assert there.shape == here.shape
        assert np.corrcoef(there.ravel(), here.ravel())[0, 1] > 0.97
    away = RegisteredTiles(other, frame, Transform.of([[1, 0], [0, 1]], [10 * width_um, 0]))
    assert (decoded(away, frame.max_level) == 255).all()


def test_ihc_is_registered_or_said_not_to_be(
    project: Project, folder: Path, tmp_path: Path
) -> None:
    slide = project.sections[0].image.tiles.slide
    pixels = slide.resample((0, 0), (slide.width, slide.height), (slide.width, slide.height))
    unit = 1e4 / slide.require_mpp()
    for name, image in {"turned": np.rot90(pixels, 2), "white": np.full_like(pixels, 245)}.items():
        tifffile.imwrite(
            tmp_path / f"{name}.tif", image, photometric="rgb", resolution=(unit, unit),
            resolutionunit="CENTIMETER",
        )  # fmt: skip
    shown = open_project(folder, ihc={"S1": tmp_path / "turned.tif"}).sections[0]
    assert [other.name for other in shown.others] == ["turned"]
    level = shown.image.tiles.max_level - 2
    here, there = decoded(shown.image.tiles, level), decoded(shown.others[0].tiles, level)
    assert np.corrcoef(there.ravel(), here.ravel())[0, 1] > 0.9
    (other,) = open_project(folder, ihc={"S1": tmp_path / "white.tif"}).sections[0].others
    assert other.name == "white (not registered)"


def test_of_many_measured_genes_those_with_most_counts_are_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = open_project(folder, sheet=folder.parent / "block" / "sheet.csv")
    section = next(s for s in shown.sections if s.spots is not None)
    assert section.spots is not None
    one = PointSet("measured", section.spots, 10.0, "expression", None, None)
    monkeypatch.setattr(region, "MOST_GENES", 3)
    totals = section.spots.var["total_counts"]
    assert region._compared(one) == list(totals.sort_values(ascending=False).index[:3])


def test_one_file_of_a_run_finds_the_run(folder: Path) -> None:
    whole, one = open_project(folder), open_project(folder / "sections" / "S1-spots.h5ad")
    assert one.stack is not None
    assert [s.name for s in one.sections] == [s.name for s in whole.sections]


def test_a_damaged_prediction_is_named(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder / "sections", tmp_path / "sections")
    (tmp_path / "sections" / "S3-spots.h5ad").write_bytes(b"half")
    with caplog.at_level("INFO", logger="deepspace"):
        open_project(tmp_path)
    assert "left out" in caplog.text
    assert "S3-spots.h5ad" in caplog.text


def test_a_disk_too_small_for_a_turned_table_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "MOST_BYTES", 0)
    file = ShownPrediction(folder / "sections" / "S1-spots.h5ad")
    monkeypatch.setattr(columns.shutil, "disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(InputError, match="TMPDIR"):
        file.column("X", 0)
