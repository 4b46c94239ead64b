"""`cnn` from the command line: train, predict, evaluate, clusters, several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from calls import call
from deepspace.simulate import BlockConfig, simulate_block

pytestmark = pytest.mark.slow

SETTINGS = """
model = "cnn"
[qc]
min_counts = 10
min_genes = 5
[target]
context = 0
[encoder]
name = "vgg16"
weights = "random:0"
size_px = 16
fov_um = [100.0]
layers = [2]
[cnn]
epochs = 1
precision = "fp32"
"""


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = BlockConfig.preset("tiny", seed=2, unmeasured=("S2",))
    return simulate_block(config).write(tmp_path_factory.mktemp("cnn-cli") / "block")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("settings") / "cnn.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(scope="module")
def model(sheet: Path, settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    code = call("train", sheet, "--out", out, "--config", settings, "--genes", "expressed:15")[0]
    assert code == 0
    return out


def test_a_model_comes_with_its_history(model: Path) -> None:
    history = pd.read_csv(model / "history.csv")
    assert list(history["phase"]) == ["search", "search", "refit", "refit"][: len(history)]
    assert history["epoch"].iloc[0] == 0
    assert (model / "history.png").stat().st_size > 5000
    assert json.loads((model / "model.json").read_text())["model"] == "cnn"


def test_prediction_needs_no_training_data(model: Path, sheet: Path, tmp_path: Path) -> None:
    out = tmp_path / "S2.h5ad"
    assert call("predict", model, sheet, "--section", "S2", "--out", out, "--all-genes")[0] == 0
    found = ad.read_h5ad(out)
    assert found.n_vars == 15
    assert np.isfinite(found.X).all()
    assert (found.layers["sd"] > 0).all()


def test_evaluation_of_clusters_keeps_fold_models(
    sheet: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "clusters"
    options = ["--config", settings, "--target", "clusters", "--keep-models"]
    assert call("evaluate", sheet, "--out", out, *options)[0] == 0
    summary = json.loads((out / "summary.json").read_text())
    assert {"cnn (vgg16)", "majority class", "nearest colours"} <= set(summary["models"])
    assert (out / "recall.png").exists()
    folds = sorted(p.name for p in (out / "models").iterdir())
    assert folds == ["cnn-vgg16-fold1", "cnn-vgg16-fold2"]
    back = tmp_path / "S1.h5ad"
    kept = out / "models" / folds[0]
    assert call("predict", kept, sheet, "--section", "S1", "--out", back)[0] == 0
    assert ad.read_h5ad(back).X.sum(axis=1) == pytest.approx(1.0, abs=1e-4)


def test_faults_of_the_network_are_told_together(
    sheet: Path, settings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(settings.read_text() + 'head = "own"\naugment = ["flip"]\n')
    out = tmp_path / "model"
    code, _, told = call("train", sheet, "--out", out, "--config", wrong, capsys=capsys)
    assert code == 2
    assert "flips" in told
    assert "standardise" in told


@pytest.mark.slow
def test_two_processes_train_the_same_network(
    model: Path, sheet: Path, settings: Path, tmp_path: Path
) -> None:
    out = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "deepspace", "train", str(sheet), "--out", str(out), "--config"]
    command += [str(settings), "--genes", "expressed:15"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    one, two = (pd.read_csv(path / "history.csv") for path in (model, out))
    assert two["train_loss"].to_numpy() == pytest.approx(
        one["train_loss"].to_numpy(), rel=1e-4, nan_ok=True
    )
