"""Predictions that outlive a crash, and never lie whole in memory."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from calls import TINY_SETTINGS, call
from deepspace.core.errors import InputError
from deepspace.core.resume import partial_folder, working_folder
from deepspace.core.rows import RowStore
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows import pointwise
from deepspace.workflows.predict import PredictOptions, predict, predict_to_file

ALL = PredictOptions(all_genes=True)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=1, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("block"))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(TINY_SETTINGS)
    return path


@pytest.fixture(scope="module")
def model(sheet: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "m"
    options = ["--genes", "expressed:40", "--config", settings, "--quiet"]
    assert call("train", sheet, "--out", folder, *options)[0] == 0
    return folder


@pytest.fixture
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pointwise, "GROUP", 25)


def same(one: ad.AnnData, other: ad.AnnData) -> None:
    np.testing.assert_array_equal(one.X, other.X)
    for name in ("sd", "sd_latent"):
        np.testing.assert_array_equal(one.layers[name], other.layers[name])
    pd.testing.assert_frame_equal(one.obs, other.obs)
    pd.testing.assert_frame_equal(one.var, other.var)
    assert one.uns["deepspace"] == other.uns["deepspace"]


@pytest.mark.usefixtures("small_groups")
def test_what_is_written_is_what_is_given(model: Path, sheet: Path, tmp_path: Path) -> None:
    memory = predict(model, sheet, section="S2", at="grid:60", options=ALL)
    given = predict(model, sheet, section="S2", at="grid:60", options=ALL, out=tmp_path / "p.h5ad")
    same(memory, given)
    same(memory, ad.read_h5ad(tmp_path / "p.h5ad"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p-maps.png", "p.h5ad"]


@pytest.mark.usefixtures("small_groups")
def test_spatialdata_holds_the_same(model: Path, sheet: Path, tmp_path: Path) -> None:
    spatialdata = pytest.importorskip("spatialdata")
    out = tmp_path / "p.zarr"
    facts = predict_to_file(model, sheet, out, section="S2", at="grid:60", options=ALL)
    memory = predict(model, sheet, section="S2", at="grid:60", options=ALL)
    table = spatialdata.read_zarr(out).tables["prediction"]
    np.testing.assert_array_equal(table.X, memory.X)
    np.testing.assert_array_equal(table.layers["sd"], memory.layers["sd"])
    assert (facts["points"], facts["genes"]) == memory.shape
    assert facts["ood"] == memory.obs["ood"].sum()


@pytest.mark.usefixtures("small_groups")
def test_a_run_goes_on_where_it_was_stopped(
    model: Path, sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = {"section": "S2", "at": "grid:60", "options": ALL}
    predict_to_file(model, sheet, tmp_path / "whole.h5ad", **arguments)
    out, put, done = tmp_path / "p.h5ad", RowStore.put, []

    def stops(store: RowStore, group: int, values: dict[str, np.ndarray]) -> None:
        if len(done) == 3:
            raise KeyboardInterrupt
        put(store, group, values)
        done.append(group)

    monkeypatch.setattr(RowStore, "put", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_to_file(model, sheet, out, **arguments)
    assert not out.exists()

    def notes(store: RowStore, group: int, values: dict[str, np.ndarray]) -> None:
        put(store, group, values)
        done.append(group)

    monkeypatch.setattr(RowStore, "put", notes)
    with pytest.raises(InputError, match=r"unfinished run of other inputs.*at"):
        predict_to_file(model, sheet, out, **(arguments | {"at": "grid:70"}))
    predict_to_file(model, sheet, out, **arguments)
    assert len(done) == len(set(done)) > 6  # no group twice
    assert out.read_bytes() == (tmp_path / "whole.h5ad").read_bytes()
    assert not partial_folder(out).exists()


def test_two_writers_of_one_output_are_refused(model: Path, sheet: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.h5ad"
    with (
        working_folder(out, {"another": "run"}, overwrite=False),
        pytest.raises(InputError, match="another run is at work"),
    ):
        predict_to_file(model, sheet, out, section="S2", options=ALL)
    assert not out.exists()


def test_groups_hold_every_point_once_and_neighbours_together(model: Path, sheet: Path) -> None:
    found = {}

    def keeps(job: pointwise.Job) -> ad.AnnData:
        found["job"] = job
        return ad.AnnData()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deepspace.workflows.predict.predict_points", keeps)
        predict(model, sheet, section="S2", at="grid:20", options=ALL)
        patch.setattr(pointwise, "GROUP", 25)
        groups = found["job"].groups()
    coords = found["job"].points.coords
    assert sorted(np.concatenate(groups)) == list(range(len(coords)))
    spread = [np.ptp(coords[g], axis=0).max() for g in groups]
    assert np.median(spread) < 0.4 * np.ptp(coords, axis=0).max()
