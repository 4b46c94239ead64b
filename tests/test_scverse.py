"""The Python interface beside scanpy: AnnData in, AnnData out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scanpy
from anndata import AnnData

import deepspace as ds
from deepspace.simulate import BlockConfig, simulate_block

CONFIG = ds.Config().with_values(
    qc={"min_genes": 20},
    encoder={"fov_um": [150]},
    evaluate={"moves": 2, "leak_gap": "none"},
)


@pytest.fixture(scope="module")
def sections(tmp_path_factory: pytest.TempPathFactory) -> list[ds.Section]:
    block = simulate_block(BlockConfig.preset("tiny", seed=1))
    return ds.read_sheet(block.write(tmp_path_factory.mktemp("block")))


@pytest.fixture(scope="module")
def model(sections: list[ds.Section]) -> ds.Model:
    known = [
        ds.section_from_anndata(
            s.require_counts(), s.slide, section=s.section, patient=s.patient, z_um=s.z_um
        )
        for s in sections[:2]
    ]
    return ds.Model.train(known, model="probe", genes="expressed:8", config=CONFIG)


@pytest.fixture
def adata(sections: list[ds.Section]) -> AnnData:
    return sections[2].require_counts().copy()


def test_a_saved_model_predicts_the_same(
    model: ds.Model, adata: AnnData, sections: list[ds.Section], tmp_path: Path
) -> None:
    options = ds.PredictOptions(all_genes=True)
    first = model.predict(adata, sections[2].slide, options=options)
    model.save(tmp_path / "m")
    loaded = ds.Model.load(tmp_path / "m")
    again = loaded.predict(adata, sections[2].slide, options=options)
    np.testing.assert_array_equal(first.X, again.X)
    loaded.save(tmp_path / "copy")
    assert (tmp_path / "copy" / "weights.safetensors").read_bytes() == (
        tmp_path / "m" / "weights.safetensors"
    ).read_bytes()
    with pytest.raises(ds.InputError, match="already exists"):
        model.save(tmp_path / "m")


def test_a_model_tells_what_it_is(model: ds.Model) -> None:
    assert list(model.training.index) == ["S1", "S2"]
    assert set(model.scores["verdict"]) <= {"predictable", "weak", "no"}
    assert len(model.scores) == 8
    assert "encoder: stain" in repr(model)
    assert "<th style='text-align:left'>encoder</th>" in model._repr_html_()


def test_counts_of_the_predicted_object_are_not_looked_at(
    model: ds.Model, adata: AnnData, sections: list[ds.Section]
) -> None:
    bare = AnnData(
        obs=adata.obs[["array_row", "array_col"]], obsm={"spatial": adata.obsm["spatial"]}
    )
    options = ds.PredictOptions(all_genes=True)
    slide = sections[2].slide
    with_counts, without = (
        ds.tl.predict(a, model, slide, options=options, copy=True) for a in (adata, bare)
    )
    pd.testing.assert_frame_equal(with_counts.obsm["deepspace"], without.obsm["deepspace"])


def test_predictions_stand_beside_the_spots(
    model: ds.Model, adata: AnnData, sections: list[ds.Section], tmp_path: Path
) -> None:
    adata.obs["in_tissue"] = adata.obs["in_tissue"].to_numpy(bool)
    adata.obs.loc[adata.obs_names[0], "in_tissue"] = False
    before = adata.copy()
    options = ds.PredictOptions(all_genes=True)
    slide = sections[2].slide
    assert ds.tl.predict(adata, model, slide, options=options, key_added="he") is None
    table, sd = adata.obsm["he"], adata.obsm["he_sd"]
    assert table.shape == sd.shape == (adata.n_obs, 8)
    assert table.iloc[0].isna().all()
    assert table.iloc[1:].notna().all(axis=None)
    assert (sd.iloc[1:] > 0).all(axis=None)
    assert adata.obs["he_ood"].dtype == bool
    alone = model.predict(before, slide, options=options)
    np.testing.assert_array_equal(table.iloc[1:].to_numpy(), alone.X)
    adata.write_h5ad(tmp_path / "with.h5ad")
    assert list(adata.uns["he"]["verdicts"].index) == list(table.columns)
    np.testing.assert_array_equal(adata.X.toarray(), before.X.toarray())


def test_copies_leave_the_object_alone(adata: AnnData, sections: list[ds.Section]) -> None:
    slide = sections[2].slide
    found = ds.pp.tissue(adata, slide, key_added="on_image", copy=True)
    assert "on_image" not in adata.obs
    assert found.obs["on_image"].mean() > 0.9
    found = ds.pp.failed_spots(adata, slide, config=CONFIG, copy=True)
    assert "failed" not in adata.obs
    assert found.obs["failed"].mean() < 0.2
    assert set(found.obs.loc[found.obs["failed"], "failed_reason"]) <= {
        "no counts",
        "few counts or genes",
        "local outlier",
    }


def test_image_features_serve_scanpy(adata: AnnData, sections: list[ds.Section]) -> None:
    ds.pp.image_features(adata, sections[2].slide, config=CONFIG)
    features = adata.obsm["X_image"]
    assert features.shape[0] == adata.n_obs
    assert np.isfinite(features).all()
    assert adata.uns["X_image"]["encoder"] == "stain"
    scanpy.pp.neighbors(adata, use_rep="X_image", n_neighbors=5)
    assert adata.obsp["connectivities"].shape == (adata.n_obs, adata.n_obs)


def test_modules_and_markers_of_a_prediction(
    model: ds.Model, sections: list[ds.Section], tmp_path: Path
) -> None:
    slide = sections[2].slide
    found = model.predict(sections[2], at="between", options=ds.PredictOptions(all_genes=True))
    found.var["verdict"] = "predictable"
    genes = [str(g) for g in found.var_names]
    (tmp_path / "own.gmt").write_text("\n".join(["a\t\t" + "\t".join(genes[:4])]) + "\n")
    settings = ds.AnnotateSettings(builtin=False, n_clusters=2)
    ds.tl.modules(found, gmt=[tmp_path / "own.gmt"], settings=settings)
    assert list(found.obsm["modules"].columns) == ["a"]
    assert (found.obsm["modules_sd"].to_numpy() > 0).all()
    ds.tl.markers(found, gmt=[tmp_path / "own.gmt"], settings=settings)
    assert found.obs["markers_cluster"].nunique() >= 2
    assert set(found.uns["markers"]["markers"]["gene"]) <= set(genes)
    assert slide.mpp is not None


def test_faults_are_told(model: ds.Model, adata: AnnData, sections: list[ds.Section]) -> None:
    with pytest.raises(ds.InputError, match="no full-resolution image"):
        model.predict(adata)
    del adata.obsm["spatial"]
    with pytest.raises(ds.InputError, match="spatial"):
        ds.tl.predict(adata, model, sections[2].slide)


def stored(section: ds.Section, path: Path) -> Any:
    """A user's SpatialData of a section: image in micrometres, spots in pixels."""
    spatialdata = pytest.importorskip("spatialdata")
    from spatialdata.models import Image2DModel, ShapesModel, TableModel  # noqa: PLC0415
    from spatialdata.transformations import Identity, Scale  # noqa: PLC0415

    slide, mpp = section.slide, section.slide.require_mpp()
    table = AnnData(section.require_counts().X, obs=pd.DataFrame(index=section.counts.obs_names))
    table.var_names = section.require_counts().var_names
    table.obs["region"] = pd.Categorical(["spots"] * table.n_obs)
    table.obs["spot"] = table.obs_names.to_numpy(dtype=object)
    um = Scale([mpp, mpp], axes=("x", "y"))
    pixels = np.moveaxis(slide.read(0, 0, slide.width, slide.height), -1, 0)
    spatialdata.SpatialData(
        images={"he": Image2DModel.parse(pixels, transformations={"global": um, "px": Identity()})},
        shapes={
            "spots": ShapesModel.parse(
                section.coords, geometry=0, radius=27.5 / mpp, index=table.obs["spot"].to_numpy(),
                transformations={"global": um},
            )
        },
        tables={"table": TableModel.parse(table, "spots", "region", "spot")},
        attrs={"note": "mine"},
    ).write(path)  # fmt: skip
    return spatialdata.read_zarr(path)


@pytest.mark.filterwarnings("ignore")
def test_spatialdata_comes_back_with_more_and_loses_nothing(
    model: ds.Model, sections: list[ds.Section], tmp_path: Path
) -> None:
    from spatialdata.transformations import get_transformation  # noqa: PLC0415

    section = sections[2]
    sdata = stored(section, tmp_path / "s.zarr")
    mpp, options = section.slide.require_mpp(), ds.PredictOptions(all_genes=True)
    with pytest.raises(ds.InputError, match="mpp"):
        ds.tl.predict_spatialdata(sdata, model)
    found = ds.tl.predict_spatialdata(sdata, model, mpp=mpp, options=options, copy=True)
    assert found is not None
    assert "deepspace_prediction" not in sdata.tables
    assert {"he", "spots", "table", "deepspace_points", "deepspace_prediction"} == {
        name for _, name, _ in found.gen_elements()
    }
    assert found.images["he"] is sdata.images["he"]
    assert found.attrs == {"note": "mine"}
    direct = model.predict(section, options=options)
    np.testing.assert_array_equal(found.tables["deepspace_prediction"].X, direct.X)
    place = get_transformation(found.shapes["deepspace_points"], get_all=True)
    assert set(place) == {"global", "px"}
    np.testing.assert_allclose(
        place["global"].to_affine_matrix(("x", "y"), ("x", "y")), np.diag([mpp, mpp, 1])
    )
    ds.tl.predict_spatialdata(sdata, model, mpp=mpp, options=options)
    with pytest.raises(ds.InputError, match="already holds"):
        ds.tl.predict_spatialdata(sdata, model, mpp=mpp, options=options)
    for name in ("deepspace_points", "deepspace_prediction"):
        sdata.write_element(name)
    again = ds.tl.predict_spatialdata(
        sdata, model, mpp=mpp, options=options, key_added="more", copy=True
    )
    np.testing.assert_array_equal(again.tables["more_prediction"].X, direct.X)
    sdata.path = None
    with pytest.raises(ds.InputError, match="lies in no store"):
        ds.tl.predict_spatialdata(sdata, model, mpp=mpp)
