"""Predictions in SpatialData stores, alone and beside what a user has."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from typer.testing import CliRunner

from deepspace.cli import app
from deepspace.core.errors import InputError
from deepspace.io.slide import open_slide
from deepspace.output import write
from deepspace.output.spatialdata_store import to_spatialdata
from deepspace.workflows.export import ExportSettings, export
from make_sections import make_slide_file
from test_export import GENES, make_prediction

spatialdata = pytest.importorskip("spatialdata")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, AnnData]:
    adata = make_prediction(tmp_path)
    write.write_prediction(adata, tmp_path / "p.h5ad")
    return tmp_path / "p.h5ad", adata


def users_store(path: Path) -> Path:
    """A store with one element of each kind and a transformation of its own."""
    from spatialdata.models import (  # noqa: PLC0415
        Image2DModel,
        Labels2DModel,
        PointsModel,
        ShapesModel,
        TableModel,
    )
    from spatialdata.transformations import Scale  # noqa: PLC0415

    rng = np.random.default_rng(0)
    place = {"um": Scale([0.5, 0.5], axes=("x", "y")), "global": Scale([2.0, 2.0], ("x", "y"))}
    cells = ShapesModel.parse(rng.random((5, 2)) * 50, geometry=0, radius=3, transformations=place)
    table = AnnData(rng.poisson(3, (5, 2)).astype(np.float32), uns={"mine": "kept"})
    table.obs = pd.DataFrame(
        {"region": pd.Categorical(["cells"] * 5), "cell": range(5)}, index=list("abcde")
    )
    transcripts = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "gene": ["A", "B"]})
    spatialdata.SpatialData(
        images={"he": Image2DModel.parse(rng.integers(0, 255, (3, 40, 50), dtype=np.uint8))},
        labels={"nuclei": Labels2DModel.parse(rng.integers(0, 5, (40, 50)))},
        points={"transcripts": PointsModel.parse(transcripts)},
        shapes={"cells": cells},
        tables={
            "table": TableModel.parse(
                table, region="cells", region_key="region", instance_key="cell"
            )
        },
        attrs={"note": "mine"},
    ).write(path)
    return path


def digests(store: Path) -> dict[str, str]:
    """Digest of each file of the elements."""
    return {
        str(p.relative_to(store)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(store.rglob("*"))
        if p.is_file() and len(p.relative_to(store).parts) > 2
    }


def test_tables_points_and_image(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    path, adata = saved
    settings = ExportSettings(slide=tmp_path / "S1.png")
    export(path, to="spatialdata", out=tmp_path / "x.zarr", settings=settings)
    store = spatialdata.read_zarr(tmp_path / "x.zarr")
    assert set(store.coordinate_systems) == {"S1", "global"}
    np.testing.assert_array_equal(store.tables["prediction"].X, adata.X)
    np.testing.assert_array_equal(store.tables["prediction"].layers["sd"], adata.layers["sd"])
    measured = store.tables["measured"]
    assert list(measured.obs_names) == list(adata.obs_names[::2])
    np.testing.assert_array_equal(measured.X, adata.layers["measured"][::2])
    circles = store.shapes["S1_points"]
    np.testing.assert_array_equal(
        np.column_stack([circles.geometry.x, circles.geometry.y]), adata.obsm["spatial"]
    )
    assert set(circles["radius"]) == {20.0}
    image = np.moveaxis(np.asarray(store.images["S1_image"]), 0, -1)
    np.testing.assert_array_equal(image, open_slide(tmp_path / "S1.png").read(0, 0, 400, 400))


def test_the_slide_is_a_pyramid(tmp_path: Path) -> None:
    adata = make_prediction(tmp_path)
    slide = open_slide(make_slide_file(tmp_path / "large.png", size=1600))
    store = to_spatialdata(adata, slide=slide)
    levels = [level["image"].shape for level in store.images["S1_image"].children.values()]
    assert levels == [(3, 1600, 1600), (3, 800, 800), (3, 400, 400)]
    pixels = store.images["S1_image"]["scale0"]["image"].to_numpy()
    np.testing.assert_array_equal(np.moveaxis(pixels, 0, -1), slide.read(0, 0, 1600, 1600))
    small = to_spatialdata(adata, slide=slide, image_px=400).images["S1_image"]
    assert small.shape == (3, 400, 400)
    way = spatialdata.transformations.get_transformation(small, "S1")
    matrix = way.to_affine_matrix(("x", "y"), ("x", "y"))
    np.testing.assert_allclose(matrix, np.diag([4.0, 4.0, 1.0]))


@pytest.mark.parametrize("noted", ["summary.json", "cohort.json"])
def test_the_slide_is_found_by_the_sheet_of_the_run(
    saved: tuple[Path, AnnData], tmp_path: Path, noted: str
) -> None:
    (tmp_path / "sheet.csv").write_text("section,patient,image,mpp\nS1,P,S1.png,0.5\n")
    (tmp_path / "run" / "sections").mkdir(parents=True)
    (tmp_path / "run" / noted).write_text('{"sheet": "../sheet.csv"}')
    path = saved[0].rename(tmp_path / "run" / "sections" / "p.h5ad")
    # without its slide the copy in the file, as large as the slide, could not be made smaller
    settings = ExportSettings(image_px=100)
    export(path, to="spatialdata", out=tmp_path / "x.zarr", settings=settings)
    assert spatialdata.read_zarr(tmp_path / "x.zarr").images["S1_image"].shape == (3, 100, 100)


def test_nothing_of_a_users_store_is_lost(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    store = users_store(tmp_path / "mine.zarr")
    before = digests(store)
    said = export(saved[0], to="spatialdata", settings=ExportSettings(into=store))
    after = digests(store)
    assert {name: after.get(name) for name in before} == before
    assert sorted(said["kept"]) == ["cells", "he", "nuclei", "table", "transcripts"]
    new = ["S1_image", "S1_measured", "S1_points", "S1_prediction"]
    assert sorted(said["elements"]) == new
    merged = spatialdata.read_zarr(store)
    assert sorted(name for _, name, _ in merged.gen_elements()) == sorted([*said["kept"], *new])
    assert merged.attrs["note"] == "mine"
    assert merged.tables["table"].uns["mine"] == "kept"
    assert set(merged.coordinate_systems) == {"S1", "global", "um"}
    np.testing.assert_array_equal(merged.tables["S1_prediction"].X, saved[1].X)
    # a second prediction goes beside the first
    export(saved[0], to="spatialdata", settings=ExportSettings(into=store, name="other"))
    assert {"S1_points", "other_points"} <= set(spatialdata.read_zarr(store).shapes)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_elements_are_replaced_when_asked(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    store = users_store(tmp_path / "mine.zarr")
    mine = digests(store)
    chosen = ExportSettings(into=store, genes=["A"])
    export(saved[0], to="spatialdata", settings=chosen)
    first = digests(store)
    with pytest.raises(InputError, match="already holds"):
        export(saved[0], to="spatialdata", settings=ExportSettings(into=store))
    assert digests(store) == first
    export(saved[0], to="spatialdata", settings=ExportSettings(into=store), overwrite=True)
    merged = spatialdata.read_zarr(store)
    assert list(merged.tables["S1_prediction"].var_names) == GENES
    assert {name: digests(store).get(name) for name in mine} == mine


def test_a_copy_leaves_the_store_alone(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    store = users_store(tmp_path / "mine.zarr")
    before = digests(store)
    settings = ExportSettings(into=store)
    export(saved[0], to="spatialdata", out=tmp_path / "new.zarr", settings=settings)
    assert digests(store) == before
    assert "S1_prediction" in spatialdata.read_zarr(tmp_path / "new.zarr").tables


def test_what_is_no_store_is_refused(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "a.txt").write_text("keep")
    for store in ("none.zarr", "mine.zarr"):
        with pytest.raises(InputError, match=store):
            export(saved[0], to="spatialdata", settings=ExportSettings(into=tmp_path / store))
    assert (tmp_path / "mine.zarr" / "a.txt").read_text() == "keep"


def test_a_prediction_in_a_store_goes_out_again(
    saved: tuple[Path, AnnData], tmp_path: Path
) -> None:
    path, adata = saved
    export(path, to="spatialdata", out=tmp_path / "x.zarr")
    export(tmp_path / "x.zarr", to="parquet", out=tmp_path / "tables")
    table = pd.read_parquet(tmp_path / "tables" / "values.parquet").set_index("point")
    np.testing.assert_array_equal(table.to_numpy(), adata.X)
    export(tmp_path / "x.zarr", to="spatialdata", out=tmp_path / "y.zarr")
    np.testing.assert_array_equal(
        spatialdata.read_zarr(tmp_path / "y.zarr").tables["prediction"].X, adata.X
    )


@pytest.mark.slow
def test_spatialdata_plot_draws_it(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    pytest.importorskip("spatialdata_plot")
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    export(saved[0], to="spatialdata", out=tmp_path / "x.zarr")
    store = spatialdata.read_zarr(tmp_path / "x.zarr")
    figure, axes = plt.subplots()
    images = store.pl.render_images("S1_image")
    images.pl.render_shapes("S1_points", color="HLA-B", table_name="prediction").pl.show(
        coordinate_systems="S1", ax=axes
    )
    # the points are drawn where they lie on the slide
    low, high = axes.get_xlim()
    assert (low < 60, high > 340) == (True, True)
    assert len(axes.collections) + len(axes.images) >= 2
    plt.close(figure)


@pytest.mark.slow
def test_squidpy_computes_and_draws(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    squidpy = pytest.importorskip("squidpy")
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    settings = ExportSettings(genes=["A", "C"])
    export(saved[0], to="anndata", out=tmp_path / "x.h5ad", settings=settings)
    export(saved[0], to="spatialdata", out=tmp_path / "x.zarr", settings=settings)
    table = spatialdata.read_zarr(tmp_path / "x.zarr").tables["prediction"]
    table.X[:, 0] = table.obsm["spatial"][:, 0]  # a gradient, which is autocorrelated
    squidpy.gr.spatial_neighbors(table, coord_type="generic", n_neighs=4)
    squidpy.gr.spatial_autocorr(table, mode="moran", genes=["A"], n_perms=None)
    assert table.uns["moranI"].loc["A", "I"] > 0.5
    import anndata  # noqa: PLC0415

    squidpy.pl.spatial_scatter(anndata.read_h5ad(tmp_path / "x.h5ad"), color="A")
    plt.savefig(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 5000
    plt.close("all")


@pytest.mark.skipif(
    "export" not in {c.callback.__name__ for c in app.registered_commands},
    reason="the command is not in cli/__init__.py yet",
)
def test_command_into(saved: tuple[Path, AnnData], tmp_path: Path) -> None:
    store = users_store(tmp_path / "mine.zarr")
    line = ["export", str(saved[0]), "--to", "spatialdata", "--into", str(store), "--quiet"]
    found = CliRunner().invoke(app, line)
    assert found.exit_code == 0, found.output
    assert {"he", "S1_image"} == set(spatialdata.read_zarr(store).images)
