"""`complete` from end to end: everything is there, nothing is lost, a stopped run goes on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from anndata import AnnData, read_h5ad

from deepspace.core.config import Config
from deepspace.core.errors import InputError
from deepspace.core.resume import partial_folder
from deepspace.io.section import Section
from deepspace.output.volume import open_volume
from deepspace.simulate import BlockConfig, simulate_block
from deepspace.workflows import complete as module
from deepspace.workflows.beside import sum_to_spots
from deepspace.workflows.cohort import read_cohort
from deepspace.workflows.complete import complete
from deepspace.workflows.predict import PredictOptions, predict

pytestmark = pytest.mark.slow

CONFIG = Config().with_values(
    qc={"min_counts": 50, "min_genes": 5},
    target={"genes": "expressed:20"},
    encoder={"fov_um": (100.0,)},
    split={"folds": 2},
    complete={"at": ("spots", "grid:60")},
)


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=5, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("run") / "block")


@pytest.fixture(scope="module")
def done(sheet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "completed"
    complete(sheet, out, config=CONFIG)
    return out


def test_everything_is_there_and_measured_values_stay(sheet: Path, done: Path) -> None:
    summary = json.loads((done / "summary.json").read_text())
    assert set(summary["sections"]) == {"S1", "S3"}
    assert summary["volume"]["shape_zyx"][0] == 5
    assert summary["scores"]["split"] == "section"
    assert summary["within"]["split"] == "blob"
    spots = read_h5ad(done / "sections" / "S1-spots.h5ad")
    measured = spots.layers["measured"]
    known = ~np.isnan(measured).any(axis=1)
    assert (spots.obs["measured"].to_numpy() == known).all()
    assert spots.obs["failed"].sum() == summary["sections"]["S1"]["failed"]
    r = [np.corrcoef(measured[known, j], spots.X[known, j])[0, 1] for j in range(spots.n_vars)]
    assert np.nanmean(r) > 0.5
    assert "measured" not in read_h5ad(done / "sections" / "S2-spots.h5ad").layers
    volume = open_volume(done / "volume.ome.zarr")
    assert volume.grid.z_um.tolist() == [0.0, 15.0, 30.0, 45.0, 60.0]
    assert np.isfinite(volume.plane(1, volume.names[0])[0]).sum() > 100


def test_neighbours_help_where_the_image_does_not_tell(done: Path) -> None:
    models = json.loads((done / "summary.json").read_text())["within"]["models"]
    assert models["kriging (stain)"]["mean_pearson"] > models["colour ridge"]["mean_pearson"] + 0.1


def test_its_model_predicts_the_same(sheet: Path, done: Path) -> None:
    again = predict(done / "model", sheet, section="S2", at="spots")
    there = read_h5ad(done / "sections" / "S2-spots.h5ad")
    assert np.allclose(again.X, there.X, rtol=1e-5)
    alone = PredictOptions(image_only=True)
    image = predict(done / "model", sheet, section="S2", at="spots", options=alone)
    assert np.abs(image.X - there.X).max() > 0.01
    sds = [found.layers["sd"].mean(axis=0) for found in (there, image)]
    assert (sds[0] <= sds[1] * 1.01).all()


def test_a_finished_result_is_not_touched(sheet: Path, done: Path) -> None:
    with pytest.raises(InputError, match="already exists"):
        complete(sheet, done, config=CONFIG)


def test_a_stopped_run_goes_on_to_the_same_bytes(
    sheet: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "completed"

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "complete_volume", stop)
        with pytest.raises(KeyboardInterrupt):
            complete(sheet, out, config=CONFIG)
    assert not out.exists()
    assert (partial_folder(out) / "model" / "model.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(module, "train_sections", stop)  # not trained again
        complete(sheet, out, config=CONFIG)
    names = sorted(p.relative_to(done) for p in done.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    for name in names:
        assert (out / name).read_bytes() == (done / name).read_bytes(), name


def test_clusters_go_the_same_way(sheet: Path, tmp_path: Path) -> None:
    changes = {"score_within": False, "at": ("spots",)}
    config = CONFIG.with_values(target={"kind": "clusters"}, complete=changes)
    summary = complete(sheet, tmp_path / "completed", config=config)
    assert summary["target"] == "clusters"
    there = read_h5ad(tmp_path / "completed" / "sections" / "S2-spots.h5ad")
    assert there.X.sum(axis=1) == pytest.approx(1.0, abs=1e-3)
    assert set(there.obs["cluster"]) <= set(there.var_names)
    volume = open_volume(tmp_path / "completed" / "volume.ome.zarr")
    assert volume.record["unit"] == "probability"


def test_sections_without_a_table_of_spots_are_completed(
    sheet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaled = []

    def note(prediction: AnnData, section: Section, predictor: object) -> None:
        scaled.append(section.section)
        sum_to_spots(prediction, section, predictor)

    monkeypatch.setattr(module, "sum_to_spots", note)
    changes = {"score_within": False, "volume": False, "sum_to_spots": True}
    config = CONFIG.with_values(complete=changes)
    sections = [replace(s, spots=None) for s in read_cohort(sheet)]
    complete(sections, tmp_path / "completed", config=config)
    made = {path.stem for path in (tmp_path / "completed" / "sections").glob("*.h5ad")}
    assert made == {"S1-spots", "S1-grid60", "S2-grid100", "S2-grid60", "S3-spots", "S3-grid60"}
    assert scaled == ["S1", "S3"]
    spots = read_h5ad(tmp_path / "completed" / "sections" / "S1-spots.h5ad")
    assert list(spots.obs_names) == list(sections[0].require_counts().obs_names)
    assert np.isfinite(spots.layers["measured"]).all()


def test_failed_spots_can_be_named(sheet: Path, done: Path, tmp_path: Path) -> None:
    table = tmp_path / "failed.csv"
    table.write_text("section,barcode\nS9,x\n")
    with pytest.raises(InputError, match="no section 'S9'"):
        complete(sheet, tmp_path / "out", config=CONFIG, failed=table)
