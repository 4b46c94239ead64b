"""Predictions in the formats of other programs, read back with those programs' libraries."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import tifffile
from anndata import AnnData
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from typer.testing import CliRunner

from calls import holds
from deepspace.cli import app
from deepspace.core.errors import InputError
from deepspace.io.geojson import read_regions
from deepspace.output import write
from deepspace.output.ometiff import make_grid, write_ome_tiff
from deepspace.output.prediction_file import PredictionFile
from deepspace.output.qupath import Threshold, areas_geojson, outlines
from deepspace.workflows.export import ExportSettings, export, format_export
from make_sections import lattice, make_section

GENES = ["A", "HLA-B", "C", "D"]
PITCH = 80.0


def make_prediction(folder: Path, *, clusters: bool = False) -> AnnData:
    """16 points on a slide of 400 x 400 px at 0.5 um/px; point 5 lies off the tissue."""
    coords = lattice(4, pitch=PITCH, start=40.0)
    section = make_section(folder, "S1", np.ones((16, 3)), coords, mpp=0.5)
    rng = np.random.default_rng(0)
    values = {key: rng.random((16, 4)) for key in ("mean", "sd", "sd_latent")}
    assert section.counts is not None
    obs = pd.DataFrame(
        {"measured": [True, False] * 8, "in_tissue": True, "ood": False},
        index=section.counts.obs_names,
    )
    obs.iloc[5, 1] = False
    if clusters:
        obs["cluster"] = pd.Categorical(["left", "left", "right", "right"] * 4)
    var = pd.DataFrame({"predictable": [True, False] * 2, "score": 0.5}, index=GENES)
    adata = write.prediction_anndata(
        values, coords, obs, var, section=section, provenance={}, spot_diameter_px=40.0
    )
    adata.layers["measured"] = np.where(obs[["measured"]], adata.X + 1, np.nan).astype(np.float32)
    return adata


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, AnnData]:
    adata = make_prediction(tmp_path)
    write.write_prediction(adata, tmp_path / "p.h5ad")
    return tmp_path / "p.h5ad", adata


def test_ome_tiff_lies_on_the_slide(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    path, adata = saved
    said = export(
        path,
        to="ome-tiff",
        out=tmp_path / "x.ome.tif",
        settings=ExportSettings(genes=["HLA-B", "D"], pixel_um=2.0),
    )
    assert (said["width"], said["height"]) == (100, 100)
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        image = tiff.asarray()
        pixels = tifffile.xml2dict(tiff.ome_metadata)["OME"]["Image"]["Pixels"]
    assert image.shape == (2, 100, 100)
    assert [channel["Name"] for channel in pixels["Channel"]] == ["HLA-B", "D"]
    assert pixels["PhysicalSizeX"] == pixels["PhysicalSizeY"] == 2.0
    # the pixel under every point has its value; a pixel is 4 px of the slide
    x, y = (adata.obsm["spatial"] / 4).astype(int).T
    for channel, gene in enumerate(("HLA-B", "D")):
        expected = adata[:, gene].X[:, 0].copy()
        expected[5] = np.nan
        np.testing.assert_array_equal(image[channel, y, x], expected)


def test_bioio_reads_names_and_sizes(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    bioio = pytest.importorskip("bioio")
    pytest.importorskip("bioio_ome_tiff")
    path, _ = saved
    export(path, to="ome-tiff", out=tmp_path / "x.ome.tif", settings=ExportSettings(pixel_um=2.0))
    image = bioio.BioImage(tmp_path / "x.ome.tif")
    assert image.channel_names == GENES
    assert (image.physical_pixel_sizes.Y, image.physical_pixel_sizes.X) == (2.0, 2.0)
    assert image.get_image_data("CYX").shape == (4, 100, 100)


def test_levels_are_means_of_what_is_known(tmp_path: Path) -> None:
    coords = np.array([[100.0, 100.0], [1100.0, 100.0]])
    grid = make_grid(coords, np.ones(2, bool), (1201, 700), spacing_px=600.0, mpp=1.0, pixel_um=1.0)
    values = [np.array([2.0, 4.0], np.float32)]
    write_ome_tiff(tmp_path / "x.ome.tif", grid, ["A"], lambda: values)
    with tifffile.TiffFile(tmp_path / "x.ome.tif") as tiff:
        shapes = [level.shape[-2:] for level in tiff.series[0].levels]
        small = np.squeeze(tiff.series[0].levels[-1].asarray())
    assert shapes == [(700, 1201), (350, 601), (175, 301)]
    # the two discs do not touch: between and below them nothing is known
    assert small[25, 25] == 2.0
    assert small[25, 275] == 4.0
    assert np.isnan(small[170, 150])
    assert set(np.unique(small[np.isfinite(small)])) == {2.0, 4.0}


@settings(max_examples=40)
@given(hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_outlines_hold_the_pixels_they_were_made_of(mask: np.ndarray) -> None:
    shapely = pytest.importorskip("shapely")
    polygons = [shapely.Polygon(p[0], p[1:]) for p in outlines(mask, 3.0)]
    assert all(polygon.is_valid for polygon in polygons)
    area = shapely.MultiPolygon(polygons)
    assert area.is_valid
    y, x = (np.indices(mask.shape) + 0.5) * 3.0
    np.testing.assert_array_equal(shapely.contains_xy(area, x, y), mask)


@settings(max_examples=25)
@given(
    hnp.arrays(bool, 16),
    st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=12),
)
def test_regions_come_back(tmp_path_factory: pytest.TempPathFactory, inside, name) -> None:
    coords = lattice(4, pitch=PITCH, start=40.0)
    grid = make_grid(coords, np.ones(16, bool), (400, 400), spacing_px=PITCH, mpp=0.5, pixel_um=2.0)
    content = areas_geojson({name: inside}, grid, section="S1")
    assert bool(content["features"]) == bool(inside.any())
    if inside.any():
        path = tmp_path_factory.mktemp("areas") / "x.geojson"
        path.write_text(json.dumps(content), encoding="utf-8")
        (region,) = read_regions(path)
        assert region.name == name
        np.testing.assert_array_equal(region.contains(coords), inside)


def test_clusters_have_what_qupath_wants(tmp_path: Path) -> None:
    write.write_prediction(make_prediction(tmp_path, clusters=True), tmp_path / "p.h5ad")
    export(tmp_path / "p.h5ad", to="geojson", out=tmp_path / "x.geojson")
    features = json.loads((tmp_path / "x.geojson").read_text())["features"]
    assert [f["properties"]["name"] for f in features] == ["left", "right"]
    for feature in features:
        kind = feature["properties"]
        assert kind["objectType"] == "annotation"
        assert kind["classification"]["name"] == kind["name"]
        assert len(kind["classification"]["color"]) == 3
    assert (
        features[0]["properties"]["classification"] != features[1]["properties"]["classification"]
    )
    assert features[0]["id"] != features[1]["id"]


def test_thresholds_become_areas(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    path, adata = saved
    wanted = ExportSettings(thresholds=("A>=0.5", "HLA-B >= 9"))
    said = export(path, to="geojson", out=tmp_path / "x.geojson", settings=wanted)
    assert said["areas"] == ["A >= 0.5"]  # the other lies nowhere
    assert "areas (A >= 0.5) are in" in format_export(said)
    (region,) = read_regions(tmp_path / "x.geojson")
    expected = (adata.X[:, 0] >= 0.5) & adata.obs["in_tissue"].to_numpy()
    np.testing.assert_array_equal(region.contains(adata.obsm["spatial"]), expected)


@settings(max_examples=15)
@given(
    genes=st.lists(st.sampled_from(GENES), min_size=1, unique=True),
    values=st.sampled_from(["mean", "sd", "measured"]),
)
def test_anndata_and_tables_come_back(
    tmp_path_factory: pytest.TempPathFactory, genes: list[str], values: str
) -> None:
    folder = tmp_path_factory.mktemp("export")
    adata = make_prediction(folder)
    write.write_prediction(adata, folder / "p.h5ad")
    wanted = ExportSettings(genes=genes, values=values)
    full = {"mean": adata.X, "sd": adata.layers["sd"], "measured": adata.layers["measured"]}
    matrix = pd.DataFrame(full[values], adata.obs_names, GENES)[genes]
    export(folder / "p.h5ad", to="anndata", out=folder / "x.h5ad", settings=wanted)
    back = anndata.read_h5ad(folder / "x.h5ad")
    rows = adata.obs["measured"] if values == "measured" else adata.obs["measured"].notna()
    pd.testing.assert_frame_equal(back.to_df(), matrix[rows], check_names=False)
    assert back.uns["spatial"].keys() == adata.uns["spatial"].keys()
    export(folder / "p.h5ad", to="parquet", out=folder / "x", settings=wanted)
    table = pd.read_parquet(folder / "x" / "values.parquet").set_index("point")
    pd.testing.assert_frame_equal(table, matrix, check_names=False)
    points = pd.read_parquet(folder / "x" / "points.parquet")
    np.testing.assert_array_equal(points[["x", "y"]], adata.obsm["spatial"])
    assert list(pd.read_parquet(folder / "x" / "genes.parquet")["gene"]) == genes


def test_columns_are_read_in_blocks(
    saved: tuple[Path, AnnData], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, adata = saved
    monkeypatch.setattr("deepspace.output.prediction_file.BLOCK_BYTES", 2 * 16 * 4)
    read = [*PredictionFile(path).by_gene("X", [3, 0, 1, 2])]
    np.testing.assert_array_equal(np.stack(read, axis=1), adata.X[:, [3, 0, 1, 2]])


@pytest.mark.parametrize(
    ("to", "out", "chosen", "message"),
    [
        ("tiff", "x.tif", {}, "choose ome-tiff"),
        ("ome-tiff", "x.tif", {}, "must end in .ome.tif"),
        ("ome-tiff", None, {}, "say where"),
        ("ome-tiff", "x.ome.tif", {"genes": "A,Z9"}, "Z9"),
        ("ome-tiff", "x.ome.tif", {"genes": ","}, "no gene"),
        ("ome-tiff", "x.ome.tif", {"values": "median"}, "choose mean, sd, measured"),
        ("ome-tiff", "x.ome.tif", {"pixel_um": 0.0}, "above 0"),
        ("ome-tiff", "x.ome.tif", {"pixel_um": float("nan")}, "above 0"),
        ("ome-tiff", "x.ome.tif", {"pixel_um": 1e-3}, "give a larger one"),
        ("geojson", "x.geojson", {}, "holds no clusters"),
        ("geojson", "x.geojson", {"thresholds": ("A>0.5",)}, "GENE>=VALUE"),
        ("geojson", "x.geojson", {"thresholds": ("Q>=0.5",)}, "does not hold Q"),
        ("spatialdata", "x.zarr", {"image_px": 0}, "at least 1"),
        ("anndata", "x.h5ad", {"into": Path("s.zarr")}, "only for --to spatialdata"),
        ("anndata", "x.h5ad", {"thresholds": ("A>=0.5",)}, "--threshold: only for --to geojson"),
        ("parquet", "x", {"slide": Path("s.tif")}, "--slide: only for --to spatialdata or geo"),
        ("spatialdata", "x.zarr", {"name": "a"}, "--name: only with --into"),
        ("anndata", "x.h5ad", {"into": Path("s"), "name": "a", "image_px": 9}, "2 problems"),
        ("anndata", "p.h5ad", {}, "is or holds the input"),
    ],
)
def test_what_does_not_fit_is_refused(
    saved: tuple[Path, AnnData], tmp_path: Path, to, out, chosen, message
) -> None:
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        export(
            saved[0],
            to=to,
            out=None if out is None else tmp_path / out,
            settings=ExportSettings(**chosen),
            overwrite=True,
        )
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_is_no_prediction(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a folder; give one prediction"):
        export(saved[0].parent, to="anndata", out=tmp_path / "out.h5ad")


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("X", np.zeros((10, 4), np.float32), "X is"),
        ("layers/sd", np.zeros((16, 3), np.float32), "sd is"),
        ("obsm/spatial", np.full((16, 2), np.nan), "places of the points"),
        ("obsm/spatial", np.zeros((9, 2)), "places of the points"),
    ],
)
def test_parts_of_a_prediction_that_do_not_fit_are_told(
    saved: tuple[Path, AnnData], tmp_path: Path, part: str, value: np.ndarray, message: str
) -> None:
    with h5py.File(saved[0], "r+") as file:
        kept = dict(file[part].attrs)
        del file[part]
        file[part] = value
        file[part].attrs.update(kept)
    with pytest.raises(InputError, match=message):
        export(saved[0], to="anndata", out=tmp_path / "out.h5ad")


def test_a_folder_of_tables_with_other_files_is_not_replaced(
    saved: tuple[Path, AnnData], tmp_path: Path
) -> None:
    export(saved[0], to="parquet", out=tmp_path / "x")
    export(saved[0], to="parquet", out=tmp_path / "x", overwrite=True)
    (tmp_path / "x" / "thesis.txt").write_text("keep")
    with pytest.raises(InputError, match=r"holds thesis\.txt, which deepspace did not write"):
        export(saved[0], to="parquet", out=tmp_path / "x", overwrite=True)
    assert (tmp_path / "x" / "thesis.txt").read_text() == "keep"


def test_measured_values_need_measurements(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    path, adata = saved
    adata.obs["measured"] = False
    adata.write_h5ad(path)
    chosen = ExportSettings(values="measured")
    with pytest.raises(InputError, match="no point was measured"):
        export(path, to="ome-tiff", out=tmp_path / "x.ome.tif", settings=chosen)


def test_nothing_is_replaced_unasked(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("keep")
    (tmp_path / "x.h5ad").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(InputError):
            export(saved[0], to="parquet", out=tmp_path / "x", overwrite=overwrite)
    with pytest.raises(InputError, match="already exists"):
        export(saved[0], to="anndata", out=tmp_path / "x.h5ad")
    assert (tmp_path / "x.h5ad").read_text() == "keep"
    export(saved[0], to="anndata", out=tmp_path / "x.h5ad", overwrite=True)
    assert anndata.read_h5ad(tmp_path / "x.h5ad").n_vars == 4


def test_another_slide_is_refused(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    from make_sections import make_slide_file  # noqa: PLC0415

    other = make_slide_file(tmp_path / "other.png", size=500)
    with pytest.raises(InputError, match="500 x 500"):
        export(
            saved[0],
            to="ome-tiff",
            out=tmp_path / "x.ome.tif",
            settings=ExportSettings(slide=other),
        )


def test_thresholds_are_read() -> None:
    assert Threshold.parse("MT-CO1>=-1e-1") == Threshold("MT-CO1", -0.1)
    for wrong in ("", ">=1", "A>=", "A>=nan", "A=1"):
        with pytest.raises(InputError):
            Threshold.parse(wrong)


def test_command(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    out = tmp_path / "x.geojson"
    line = ["export", str(saved[0]), "--to", "geojson", "--out", str(out), "--json", "--quiet"]
    line += ["--threshold", "A>=0.5", "--threshold", "C>=0.5"]
    found = CliRunner().invoke(app, line)
    assert found.exit_code == 0, found.output
    holds("export", json.loads(found.stdout))
    assert json.loads(found.stdout)["areas"] == ["A >= 0.5", "C >= 0.5"]
    assert {region.name for region in read_regions(out)} == {"A >= 0.5", "C >= 0.5"}


def test_what_was_exported_is_not_taken_for_a_prediction(
    saved: tuple[Path, AnnData], tmp_path: Path
) -> None:
    """X of such a table holds an sd or a measurement; and a user's table may hold our uns."""
    export(saved[0], to="anndata", out=tmp_path / "sd.h5ad", settings=ExportSettings(values="sd"))
    table = anndata.read_h5ad(tmp_path / "sd.h5ad")
    np.testing.assert_array_equal(table.layers["mean"], saved[1].X)
    users = AnnData(np.ones((2, 2)), obsm={"spatial": np.ones((2, 2))}, uns=saved[1].uns)
    users.write_h5ad(tmp_path / "mine.h5ad")
    for name in ("sd.h5ad", "mine.h5ad"):
        with pytest.raises(InputError, match="no prediction of deepspace"):
            PredictionFile(tmp_path / name)


def test_another_programs_summary_is_left_alone(
    saved: tuple[Path, AnnData], tmp_path: Path
) -> None:
    for text in ("[1, 2]", "{broken", '{"sheet": 3}'):
        (tmp_path / "summary.json").write_text(text)
        export(saved[0], to="anndata", out=tmp_path / f"{len(text)}.h5ad")
